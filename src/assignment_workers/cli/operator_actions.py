"""Record each action that an operator starts by a command: its author, its reason, its outcome."""

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


def operator_name() -> str:
    """Return the name of the operating system's user who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a uid may have no name
        return f"uid {os.getuid()}"


class OutcomeRecorder:
    """A callable that notes the outcome of an operator's action, for the record of the action.

    Call the object with the answer to the action; it returns that answer.

    An action may send commands that set a state, such as the pause of a dialer queue. An older
    command that arrives late must not undo a newer one. Therefore, the object has the attribute
    `position`: the number of the action in the order of all operators' actions. Send each command
    of the action with this number (`CommandCall.at`). The context manager `recorded` takes the
    number from the database before the action begins.

    A command is refused if a command with a higher number was already carried out for the same
    thing, such as the pause or the resumption of the same dialer queue. All commands of an action
    share one number, because the time of the operator's decision counts, not the time at which each
    command is sent.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.outcome: str | None = None

    def __call__(self, answer: T, *, done: str = "done") -> T:
        """Set the outcome of the action, and return `answer`.

        If `answer` is a refusal or `Unavailable`, the outcome says so, with the reason. Otherwise,
        the outcome is the text in `done`. At the end of its block, the context manager `recorded`
        stores the outcome in the database.
        """
        self.outcome = _line(answer, done)
        return answer


@contextmanager
def recorded(name: str, subject: str, why: str | None) -> Iterator[OutcomeRecorder]:
    """Record an operator's action before and after the block that carries it out.

    Yields a recorder. The block carries out the action, and calls the recorder with the answer to
    the action. At the end of the block, the outcome is stored in the record. If the block raises an
    error, or does not call the recorder, the record stays without an outcome. Raises
    `DatabaseUnavailable` before the block runs if the action cannot be recorded.
    """
    with database() as connection:
        number = begin(connection, RequestedAction(name, subject, operator_name(), why))
        told = OutcomeRecorder(next_position(connection))
        connection.commit()
        yield told
        if told.outcome is not None:
            end(connection, number, told.outcome)
            connection.commit()


def _line(answer: object, done: str) -> str:
    if isinstance(answer, Refused | Unavailable):
        return f"{answer.outcome}: {answer.reason}"
    return done
