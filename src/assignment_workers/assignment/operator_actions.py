"""What operators ask for, by whichever door: kept before it is done, with what came of it after."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, update

from assignment_workers.schema.tables import OperatorAction

WHY_AT_MOST = 500
"""Letters of a reason."""


@dataclass(frozen=True)
class RequestedAction:
    """What is asked for, of what, by whom and why; `why` None: no reason was given."""

    name: str
    subject: str
    who: str
    why: str | None


def begin(connection: Connection, action: RequestedAction) -> int:
    """Keep that it was asked for; the number of the record. To be committed before it is done."""
    return connection.execute(
        insert(OperatorAction)
        .values(
            at=func.clock_timestamp(),
            who=action.who,
            action=action.name,
            subject=action.subject,
            why=action.why,
        )
        .returning(OperatorAction.id)
    ).scalar_one()


def end(connection: Connection, number: int, outcome: str) -> None:
    """Keep what came of it: `done`, `refused: ...` or `unavailable: ...`."""
    connection.execute(
        update(OperatorAction)
        .where(OperatorAction.id == number)
        .values(outcome=outcome, ended_at=func.clock_timestamp())
    )
