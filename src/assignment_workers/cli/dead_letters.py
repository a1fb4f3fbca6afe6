"""Messages that could not be handled: list them, show one, send one again, dismiss some."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.assignment.dead_letters import (
    Letter,
    arguments,
    dismiss,
    letter,
    letters,
    mark_replayed,
)
from assignment_workers.cli.operator_actions import OptionalWhy, Why, operator_name, recorded
from assignment_workers.cli.servers import client, database
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.errors import UsageError

group = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="dead-letters")


Number = Annotated[int, typer.Argument(min=1, help="The dead letter's number.")]


@group.command("list")
def list_letters(json: AsJson = False) -> int:
    """List the newest hundred dead letters."""
    with database() as connection:
        found = letters(connection)
    if json:
        as_json(found)
        return 0
    as_table(
        "Dead letters",
        ["number", "at", "task", "error", "state"],
        [
            (
                each.id,
                f"{each.at:%Y-%m-%d %H:%M:%SZ}",
                each.task or "unknown",
                each.error[:100],
                each.state.replace("_", " "),
            )
            for each in found
        ],
    )
    return 0


@group.command()
def show(number: Number) -> int:
    """Print one dead letter with all its fields."""
    as_json(_find(number))
    return 0


@group.command()
def replay(number: Number, why: OptionalWhy = None) -> int:
    """Send a dead letter's message again, under a new id."""
    found = _find(number)
    task, args, kwargs = arguments(found)
    queue = found.celery_queue or "maintenance"
    with recorded("replay", str(number), why) as told, client() as sending:
        name = told(sending.send_again(task, args, kwargs, queue, dead_letter=number))
    with database() as connection:
        mark_replayed(connection, found, name)
        connection.commit()
    typer.echo(f"sent again as task {name}")
    return 0


@group.command("dismiss")
def dismiss_letters(
    why: Why,
    numbers: Annotated[
        list[int] | None, typer.Argument(min=1, help="The dead letters' numbers.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every one neither sent again nor dismissed.")
    ] = False,
) -> int:
    """Mark dead letters as dismissed; they stay stored until their retention ends."""
    if every == bool(numbers):
        raise UsageError("name the dead letters by their numbers, or say --all")
    subject = "all" if every else ", ".join(map(str, numbers or ()))
    with recorded("dismiss", subject, why) as told, database() as connection:
        taken = told(dismiss(connection, None if every else numbers, by=operator_name(), why=why))
        connection.commit()
    typer.echo(f"dismissed: {', '.join(map(str, taken)) or 'none'}")
    return 0


def _find(number: int) -> Letter:
    with database() as connection:
        found = letter(connection, number)
    if found is None:
        raise UsageError(f"no dead letter {number}")
    return found
