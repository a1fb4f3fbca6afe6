"""What operators do by command: kept with who and why before it is done, as other doors do."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

import typer

from assignment_workers.assignment.answers import Refused, Unavailable
from assignment_workers.assignment.claims.idempotency import next_position
from assignment_workers.assignment.operator_actions import WHY_AT_MOST, RequestedAction, begin, end
from assignment_workers.cli.servers import database

T = TypeVar("T")


def _reason(said: str | None) -> str | None:
    if said is None:
        return None
    if not 1 <= len(said.strip()) <= WHY_AT_MOST or not said.isprintable():
        raise typer.BadParameter(f"a reason of 1 to {WHY_AT_MOST} printable letters")
    return said.strip()


Why = Annotated[str, typer.Option(help="Why, for the records.", callback=_reason)]
OptionalWhy = Annotated[
    str | None, typer.Option("--why", help="Kept with who did it.", callback=_reason)
]


def whoever() -> str:
    """Who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a number need not have a name
        return f"uid {os.getuid()}"


class OutcomeRecorder:
    """Takes what came of an operator's action, and returns it as it is.

    `position`: where the database saw the action among all commands, for those that it sends.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.outcome: str | None = None

    def __call__(self, answer: T) -> T:
        self.outcome = _line(answer)
        return answer


@contextmanager
def recorded(name: str, subject: str, why: str | None) -> Iterator[OutcomeRecorder]:
    """A block in which an operator does something; it hands what came of it to what it is given.

    Raises `DatabaseUnavailable` before anything is done. A block that fails leaves a record without
    an outcome.
    """
    with database() as connection:
        number = begin(connection, RequestedAction(name, subject, whoever(), why))
        told = OutcomeRecorder(next_position(connection))
        connection.commit()
        yield told
        if told.outcome is not None:
            end(connection, number, told.outcome)
            connection.commit()


def _line(answer: object) -> str:
    if isinstance(answer, Refused | Unavailable):
        return f"{answer.outcome}: {answer.reason}"
    return "done"
