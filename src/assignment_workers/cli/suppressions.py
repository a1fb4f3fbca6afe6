"""Suppressed users: the do-not-contact list, the quarantine, and closed users."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from assignment_workers.assignment import suppression_lists, user_ids
from assignment_workers.assignment.answers import Done, Refused
from assignment_workers.assignment.suppressions import suppressions
from assignment_workers.cli.agent import line
from assignment_workers.cli.operator_actions import Why, operator_name, recorded
from assignment_workers.cli.servers import client, database, reader, user_id
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.client import commands
from assignment_workers.errors import UsageError
from assignment_workers.identity import UserId
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import SuppressionKind

contact = typer.Typer(help="Who asked not to be called, by user or phone.", no_args_is_help=True)
quarantine = typer.Typer(help="Users set aside for unclear reasons.", no_args_is_help=True)
closed = typer.Typer(help="Users out of a dialer queue: an agent closed it.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(contact, name="do-not-contact")
    app.add_typer(quarantine, name="quarantine")
    app.add_typer(closed, name="closed")


IMPORT_AT_MOST = timedelta(hours=1)
"""The longest time for one statement of an import or an export."""

User = Annotated[str, typer.Argument(help="The CRM's id of the user.")]
OptionalUser = Annotated[str | None, typer.Option(help="The CRM's id of the user.")]
Phone = Annotated[str | None, typer.Option(help="The phone number, however it is written.")]
OfQueue = Annotated[str | None, typer.Option("--queue", help="In this dialer queue alone.")]
Until = Annotated[datetime | None, typer.Option("--until", help="When it ends by itself, in UTC.")]
Source = Annotated[str | None, typer.Option(help="Where it is from, a register say.")]


@contact.command("list")
def list_contact(
    by_text: Annotated[
        bool, typer.Option("--by-text", help="Only entries that are no phone number.")
    ] = False,
    lists: Annotated[bool, typer.Option("--lists", help="The imported lists instead.")] = False,
    json: AsJson = False,
) -> int:
    """List the newest thousand entries of the do-not-contact list."""
    if lists:
        return _lists(json=json)
    return _list("Not to be contacted", SuppressionKind.DO_NOT_CONTACT, json=json, by_text=by_text)


@contact.command()
def add(
    why: Why,
    user: OptionalUser = None,
    phone: Phone = None,
    queue: OfQueue = None,
    until: Until = None,
    source: Source = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep a text that is no phone number.")
    ] = False,
) -> int:
    """Suppress a user, or every user with this phone number; an assignment under way goes on."""
    command = commands.do_not_contact(
        _id(user),
        phone,
        why,
        operator_name(),
        queue=queue,
        expires_at=until.replace(tzinfo=UTC) if until else None,
        source=source,
        raw=raw,
    )
    code = _ask("do_not_contact", _subject(user), why, command, "suppressed")
    if code == 0 and phone is not None:
        _tell_whom(phone)
    return code


def _tell_whom(phone: str) -> None:
    with database() as connection:
        found = suppression_lists.check(connection, phone, reader())
    if not found.numbers:
        typer.echo("no phone number: it matches users whose text is the same, and no others")
    elif not found.valid:
        typer.echo(f"{found.numbers[0]} is in no range that was given out")
    _tell_users(found)


def _tell_users(found: suppression_lists.Matched | suppression_lists.Staged) -> None:
    typer.echo(f"{_users(found.users)} have it now{_by_queue(found.queues)}")
    if found.waiting:
        typer.echo(
            f"{_users(found.waiting)} wait for an operator: their number ends alike, and one of "
            f"the two cannot be read for sure{_by_queue(found.waiting_queues)}"
        )


def _users(count: int) -> str:
    most = "at least " if count == suppression_lists.WHOM_AT_MOST else ""
    return f"{most}{count} {'user' if count == 1 else 'users'}"


def _by_queue(queues: Mapping[str, int]) -> str:
    where = ", ".join(f"{count} in {queue}" for queue, count in queues.items())
    return f" ({where})" if where else ""


@contact.command()
def lift(why: Why, user: OptionalUser = None, phone: Phone = None, queue: OfQueue = None) -> int:
    """Remove a user or a phone number from the do-not-contact list."""
    kind = SuppressionKind.DO_NOT_CONTACT
    command = commands.lift(kind.value, _id(user), phone, why, operator_name(), queue=queue)
    return _ask("lift", _subject(user), why, command, "off the list")


@contact.command()
def check(
    number: Annotated[str, typer.Argument(help="The phone number, however it is written.")],
    json: AsJson = False,
) -> int:
    """Print a phone number's E.164 form, its suppressions, and the number of users who have it.

    The exit code is 1 if the number is suppressed in at least one dialer queue.
    """
    with database() as connection:
        found = suppression_lists.check(connection, number, reader())
    if json:
        as_json(found)
        return int(found.suppressed)
    read = ", ".join(
        f"{each} ({kind})" for each, kind in zip(found.numbers, found.kinds, strict=True)
    )
    zones = f", in {' or '.join(found.zones)}" if found.zones else ""
    extension = f", extension {found.extension}" if found.extension else ""
    typer.echo(f"{read}{extension}{zones}" if read else "no phone number that can be read")
    for each in found.entries:
        where = each["queue"] or "every dialer queue"
        typer.echo(f"suppressed in {where} since {each['since']:%Y-%m-%d}: {each['reason']}")
    for each in found.lists:
        where = each["queue"] or "every dialer queue"
        typer.echo(f"suppressed in {where} by the list {each['name']!r}: {each['reason']}")
    if not found.suppressed:
        typer.echo("not suppressed")
    _tell_users(found)
    return int(found.suppressed)


@contact.command("import")
def import_list(
    file: Annotated[Path, typer.Argument(help="One number a line, or CSV.", dir_okay=False)],
    why: Why,
    name: Annotated[str, typer.Option("--list", help="The list's name.")],
    add_to: Annotated[
        bool, typer.Option("--add", help="Add to the list; else it is replaced whole.")
    ] = False,
    column: Annotated[str | None, typer.Option(help="The column of the number in CSV.")] = None,
    queue: OfQueue = None,
    until: Until = None,
    source: Source = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out lines that are no number.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would change; change nothing.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Load a list of phone numbers and put it in force, as a whole or not at all.

    The list may have any number of lines. The phone numbers in the list are not called. Unless
    --add is given, they replace the numbers of an earlier list with the same name.
    """
    named = suppression_lists.Named(
        name=name,
        replaces=not add_to,
        reason=why,
        by=operator_name(),
        source=source or file.name,
        queue=queue,
        expires_at=until.replace(tzinfo=UTC) if until else None,
    )
    try:
        stream = file.open(encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    with stream, database(patience=IMPORT_AT_MOST) as connection:
        found = suppression_lists.stage(
            connection,
            suppression_lists.lines_of(stream, column),
            named,
            reader(),
            queues=loaded().policies,
            dry_run=dry_run,
            skip_unreadable=skip_unreadable,
        )
    if json:
        as_json(asdict(found))
    if found.unreadable and not skip_unreadable:
        complain(
            f"{found.unreadable} lines are no phone number ({'; '.join(found.shown)}): nothing was "
            "loaded. Mend them, or leave them out with --skip-unreadable"
        )
        return 2
    if not json:
        typer.echo(
            f"{found.lines} lines, {found.numbers} numbers, {found.unreadable} lines that are none"
            + (f", {found.forgotten} numbers of forgotten people" if found.forgotten else "")
        )
        _tell_users(found)
    if found.list_id is None:
        return 0
    command = commands.flip_list(found.list_id, why, operator_name())
    return _ask("import_suppressions", name, why, command, f"list {name!r} stands", quiet=json)


@contact.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="Where to; standard output by default.")
    ] = None,
) -> int:
    """Write the do-not-contact entries, and the numbers of the imported lists, as CSV.

    An entry forbids calls to one user or to one phone number. Lifted and expired entries are left
    out.

    An imported list has phone numbers that must not be called. A list that was dropped or replaced
    is left out. Of every other list, all numbers are written. The list or one of its numbers may
    have an expiry, which the column `expires_at` shows. After that time, calls to the number are
    not forbidden by the list any more, but the number is still written.
    """
    with ExitStack() as stack:
        to = stack.enter_context(file.open("w", newline="")) if file else sys.stdout
        connection = stack.enter_context(database(patience=IMPORT_AT_MOST))
        writer = csv.writer(to)
        writer.writerow(suppression_lists.EXPORTED)
        for row in suppression_lists.exported(connection, loaded()):
            writer.writerow(
                each.isoformat() if isinstance(each, datetime) else each for each in row
            )
    return 0


@contact.command()
def drop(
    name: Annotated[str, typer.Argument(help="The list's name.")],
    why: Why,
) -> int:
    """End an imported list, so that it no longer suppresses its phone numbers.

    The next build of a dialer queue can include users with these numbers again. A user whom another
    list or an entry suppresses stays out.
    """
    command = commands.drop_list(name, why, operator_name())
    return _ask("drop_suppressions", name, why, command, f"list {name!r} counts no more")


def _lists(*, json: bool) -> int:
    with database() as connection:
        found = suppression_lists.standing_lists(connection)
    if json:
        as_json(found)
        return 0
    as_table(
        "Lists",
        ["list", "numbers", "queue", "source", "since", "until", "by", "reason"],
        [
            (
                each["name"],
                each["size"],
                each["queue"],
                each["source"],
                f"{each['stands_since']:%Y-%m-%d %H:%M:%SZ}",
                each["expires_at"],
                each["by"],
                each["reason"],
            )
            for each in found
        ],
    )
    return 0


@quarantine.command("list")
def list_quarantine(json: AsJson = False) -> int:
    """List the newest thousand users in quarantine."""
    return _list("In quarantine", SuppressionKind.QUARANTINE, json=json)


@quarantine.command()
def release(user: User, why: Why) -> int:
    """Release a user from quarantine; the next build includes the user again."""
    kind = SuppressionKind.QUARANTINE
    command = commands.lift(kind.value, _id(user), None, why, operator_name())
    return _ask("release_from_quarantine", _subject(user), why, command, "released")


def _id(user: str | None) -> UserId | None:
    return None if user is None else user_id(user)


def _subject(user: str | None) -> str:
    """Return the user's id, or the words "a phone number" if `user` is None.

    The returned text is stored in the record of an operator's action. The phone number is stored
    only with the suppression.
    """
    return "a phone number" if user is None else str(user_id(user))


@closed.command("list")
def list_closed(json: AsJson = False) -> int:
    """List the newest thousand closed users."""
    return _list("Closed", SuppressionKind.CLOSED, json=json)


@closed.command("lift")
def lift_closed(
    user: User,
    queue: Annotated[str, typer.Option(help="The dialer queue.")],
    why: Why,
) -> int:
    """Let a dialer queue offer a closed user again; the next build includes the user."""
    kind = SuppressionKind.CLOSED.value
    command = commands.lift(kind, _id(user), None, why, operator_name(), queue=queue)
    return _ask("lift_closed", f"{_subject(user)} in {queue}", why, command, "lifted")


def _list(title: str, kind: SuppressionKind, *, json: bool, by_text: bool = False) -> int:
    with database() as connection:
        found = user_ids.shown(
            loaded(), connection, suppressions(connection, kind, by_text=by_text)
        )
    if json:
        as_json(found)
        return 0
    as_table(
        title,
        ["user", "phone", "compared as", "queue", "since", "until", "by", "reason"],
        [
            (
                each.user_id,
                each.phone,
                each.number or ("its text" if each.phone else None),
                each.queue,
                f"{each.since:%Y-%m-%d %H:%M:%SZ}",
                f"{each.expires_at:%Y-%m-%d %H:%M:%SZ}" if each.expires_at else None,
                each.by,
                each.reason,
            )
            for each in found
        ],
    )
    return 0


def _ask(
    name: str,
    subject: str,
    why: str,
    command: commands.CommandCall,
    done: str,
    *,
    quiet: bool = False,
) -> int:
    with recorded(name, subject, why) as told, client() as asking:
        answer = told(asking.command(command.at(told.position)))
    if isinstance(answer, Done):
        if quiet:
            return 0
        typer.echo(f"{done}{' (it was already so)' if answer.replayed else ''}")
        return 0
    complain(line(answer))
    return 2 if isinstance(answer, Refused) else 1
