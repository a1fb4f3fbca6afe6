"""Record each operator action before it runs, and its outcome afterwards, for every interface."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, update

from assignment_workers.schema.tables import OperatorAction

ASKED = "asked: the job's page tells when it has run"
"""The outcome of an action that only sent a message, such as the request for a rebuild."""
WHY_AT_MOST = 500
"""Maximum length of the reason that an operator gives for an action, in characters."""


@dataclass(frozen=True)
class RequestedAction:
    """An action that an operator requested: its name, its subject, and the operator.

    `why`: the operator's reason; None: none was given.
    """

    name: str
    subject: str
    who: str
    why: str | None


def begin(connection: Connection, action: RequestedAction) -> int:
    """Record the requested action; return the record's number.

    The caller has to commit the record before the action is carried out.
    """
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
    """Record the outcome of an action.

    `number`: the record's number, which `begin` returned. `outcome`: a text that begins with one of
    four words; details may follow after a colon.

    - `done`: the action was carried out.
    - `asked`: only a message that requests the action was sent, so the action may not have run yet.
    - `refused`: the action was not carried out; the details give the reason.
    - `unavailable`: no usable answer arrived; the details give the reason.
    """
    connection.execute(
        update(OperatorAction)
        .where(OperatorAction.id == number)
        .values(outcome=outcome, ended_at=func.clock_timestamp())
    )
