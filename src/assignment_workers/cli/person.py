"""A person's rights as commands: export what is stored about a user, and erase it."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.assignment import person, user_ids
from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.suppressions import FORGOTTEN
from assignment_workers.cli.agent import line
from assignment_workers.cli.operator_actions import Why, operator_name, recorded
from assignment_workers.cli.servers import (
    client,
    database,
    database_and_crm,
    reader,
    resolved,
    user_id,
)
from assignment_workers.cli.show import AsJson, as_json, complain
from assignment_workers.client import commands
from assignment_workers.client.erasing import forget_results_at
from assignment_workers.policy.process_dialer import loaded

group = typer.Typer(help="What is stored about a person, and its erasure.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="person")


User = Annotated[str, typer.Argument(help="The CRM's id of the user.")]


@group.command()
def export(user: User, why: Why = "a request for access", json: AsJson = False) -> int:
    """Print everything that is stored about a user, without the CRM's own tables."""
    named = user_id(user)
    with recorded("person_export", str(named), why) as told, database() as connection:
        found = person.export(
            connection, loaded(), user_ids.number_of(loaded(), connection, named), reader()
        )
        told(Done())
    if json:
        as_json(found)
        return 0
    for name, rows in found.tables.items():
        typer.echo(f"{name}: {len(rows)}")
        for row in rows:
            typer.echo("  " + ", ".join(f"{key}={each}" for key, each in row.items() if each))
    return 0


@group.command()
def forget(user: User, why: Why = "a request for erasure") -> int:
    """Erase a user's phone numbers and the texts about the user, who is never offered again.

    The texts are those that people typed, such as notes. First, the user is put on the
    do-not-contact list. If an agent holds the user, nothing is erased, and the user stays on that
    list: release the assignment, and repeat the command.
    """
    named = user_id(user)
    with recorded("person_forget", str(named), why) as told, client() as asking:
        command = commands.do_not_contact(named, None, FORGOTTEN, operator_name())
        answer = asking.command(command.at(told.position))
        # What waits on another lane's queue may name the person too.
        for celery_queue in lanes_of(resolved()).celery_queues[1:]:
            if isinstance(answer, Done):
                answer = asking.command(commands.passing(celery_queue))
        if not isinstance(answer, Done):
            told(answer)
            complain(line(answer))
            return 2 if isinstance(answer, Refused) else 1
        with database_and_crm() as (connection, crm):
            number = user_ids.number_of(loaded(), connection, named)
            held = person.is_held(connection, number)
            if held is not None:
                told(Refused(code=Code.NOT_ACTIVE, reason="the user is held"))
                complain(f"user {user} is held by agent {held}: release the assignment first")
                return 1
            known = person.find(connection, loaded(), number, reader())
            counts = person.forget(connection, loaded(), crm, number, reader())
            connection.commit()
        counts["results"] = forget_results_at(resolved().redis_url, known)
        told(Done())
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    typer.echo(f"user {user} is forgotten: {said}")
    return 0
