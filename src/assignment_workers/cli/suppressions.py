"""Who is not to be offered: the do-not-contact list, and users set aside by the claim."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.assignment.answers import Done, Refused
from assignment_workers.assignment.suppressions import suppressions
from assignment_workers.cli.acting import Why, kept, whoever
from assignment_workers.cli.agent import line
from assignment_workers.cli.servers import client, database
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.client import commands
from assignment_workers.schema.tables import SuppressionKind

contact = typer.Typer(help="Who asked not to be called, by user or phone.", no_args_is_help=True)
quarantine = typer.Typer(help="Users set aside for unclear reasons.", no_args_is_help=True)

closed = typer.Typer(help="Users out of a dialer queue: an agent closed it.", no_args_is_help=True)

OptionalUser = Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="The user.")]
Phone = Annotated[str | None, typer.Option(help="The phone number; its last nine digits count.")]


@contact.command("list")
def list_contact(json: AsJson = False) -> int:
    """The newest thousand."""
    return _list("Not to be contacted", SuppressionKind.DO_NOT_CONTACT, json=json)


@contact.command()
def add(why: Why, user: OptionalUser = None, phone: Phone = None) -> int:
    """Offer a user, or whoever has a phone number, to nobody; a hold that stands goes on."""
    command = commands.do_not_contact(user, phone, why, whoever())
    return _ask("do_not_contact", _subject(user), why, command, "suppressed")


@contact.command()
def lift(why: Why, user: OptionalUser = None, phone: Phone = None) -> int:
    """Take a user or a phone number off the list: the next build has them again."""
    kind = SuppressionKind.DO_NOT_CONTACT
    command = commands.lift(kind.value, user, phone, why, whoever())
    return _ask("lift", _subject(user), why, command, "off the list")


@quarantine.command("list")
def list_quarantine(json: AsJson = False) -> int:
    """The newest thousand."""
    return _list("In quarantine", SuppressionKind.QUARANTINE, json=json)


@quarantine.command()
def release(
    user: Annotated[int, typer.Argument(min=1, max=2**63 - 1, help="The user.")], why: Why
) -> int:
    """Let a user be offered again: the next build has them."""
    kind = SuppressionKind.QUARANTINE
    command = commands.lift(kind.value, user, None, why, whoever())
    return _ask("release_from_quarantine", str(user), why, command, "released")


def _subject(user: int | None) -> str:
    """As it is kept: a phone number is not, its suppression has it."""
    return "a phone number" if user is None else str(user)


@closed.command("list")
def list_closed(json: AsJson = False) -> int:
    """The newest thousand."""
    return _list("Closed", SuppressionKind.CLOSED, json=json)


@closed.command("lift")
def lift_closed(
    user: Annotated[int, typer.Argument(min=1, max=2**63 - 1, help="The user.")],
    queue: Annotated[str, typer.Option(help="The dialer queue.")],
    why: Why,
) -> int:
    """Let a user be offered in a dialer queue again: the next build has them."""
    kind = SuppressionKind.CLOSED.value
    command = commands.lift(kind, user, None, why, whoever(), queue=queue)
    return _ask("lift_closed", f"{user} in {queue}", why, command, "lifted")


def _list(title: str, kind: SuppressionKind, *, json: bool) -> int:
    with database() as connection:
        found = suppressions(connection, kind)
    if json:
        as_json(found)
        return 0
    as_table(
        title,
        ["user", "phone", "queue", "since", "by", "reason"],
        [
            (
                each.user_id,
                each.phone,
                each.queue,
                f"{each.since:%Y-%m-%d %H:%M:%SZ}",
                each.by,
                each.reason,
            )
            for each in found
        ],
    )
    return 0


def _ask(name: str, subject: str, why: str, command: commands.Command, done: str) -> int:
    with kept(name, subject, why) as told, client() as asking:
        answer = told(asking.command(command.at(told.position)))
    if isinstance(answer, Done):
        typer.echo(f"{done}{' (it was already so)' if answer.replayed else ''}")
        return 0
    complain(line(answer))
    return 2 if isinstance(answer, Refused) else 1
