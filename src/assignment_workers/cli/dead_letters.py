"""Messages that could not be handled: list them, look at one, send one again."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.assignment.dead_letters import (
    Letter,
    arguments,
    letter,
    letters,
    mark_replayed,
)
from assignment_workers.cli.acting import OptionalWhy, kept
from assignment_workers.cli.servers import client, database
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.errors import UsageError

app = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(min=1, help="The dead letter's number.")]


@app.command("list")
def list_letters(json: AsJson = False) -> int:
    """The newest hundred."""
    with database() as connection:
        found = letters(connection)
    if json:
        as_json(found)
        return 0
    as_table(
        "Dead letters",
        ["number", "at", "task", "error", "replayed"],
        [
            (
                each.id,
                f"{each.at:%Y-%m-%d %H:%M:%SZ}",
                each.task or "unknown",
                each.error[:100],
                f"{each.replayed_at:%H:%M:%SZ}" if each.replayed_at else None,
            )
            for each in found
        ],
    )
    return 0


@app.command()
def show(number: Number) -> int:
    """One dead letter, whole."""
    as_json(_find(number))
    return 0


@app.command()
def replay(number: Number, why: OptionalWhy = None) -> int:
    """Send a dead letter's message again, under a new id."""
    found = _find(number)
    task, args, kwargs = arguments(found)
    with kept("replay", str(number), why) as told, client() as sending:
        name = told(sending.send_again(task, args, kwargs, found.celery_queue or "maintenance"))
    with database() as connection:
        mark_replayed(connection, number, name)
        connection.commit()
    typer.echo(f"sent again as task {name}")
    return 0


def _find(number: int) -> Letter:
    with database() as connection:
        found = letter(connection, number)
    if found is None:
        raise UsageError(f"no dead letter {number}")
    return found
