"""SQL statements that read and change assignments, and functions that convert rows to `Held`.

`Held` is the class of an assignment in an answer to an agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    RowMapping,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.orm import aliased

from assignment_workers.assignment.answers import Held
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.dialer import MissedCall
from assignment_workers.schema.tables import Assignment, AssignmentState

MADE_BY_DIALER = "dialer-"
"""Prefix of the request ids of assignments that an adopted dialer made by a SQL statement.

An adopted dialer is an existing one whose tables this system has taken over. The dialer's own code
may still run after the takeover, and hand out a callback or a missed call to an agent, by an UPDATE
of the call's status. As a part of that UPDATE, a trigger inserts the assignment. There is no
request of an agent then, so the trigger makes up a request id with this prefix.
"""
ACTIVE = sql_text(AssignmentState.ACTIVE)

HELD_COLUMNS = tuple(getattr(Assignment, name) for name in Held.model_fields)

THIS_TRANSACTION = cast(cast(func.pg_current_xact_id(), Text), BigInteger)
"""SQL expression: the id of the running transaction, for `assignments.ended_xid`."""

_calls = aliased(Assignment, name="calls")
NAMED = (
    select(
        *HELD_COLUMNS,
        Assignment.outcome.label("ended_as"),
        Assignment.generation_id,
        Assignment.source_id,
        Assignment.ended_how,
        exists(
            select(1)
            .select_from(MissedCall)
            .where(
                MissedCall.user_id == Assignment.user_id, MissedCall.status == sql_text("pending")
            )
        ).label("has_missed_calls"),
        func.array(
            select(_calls.outcome)
            .where(
                _calls.user_id == Assignment.user_id,
                _calls.state == sql_text(AssignmentState.COMPLETED),
            )
            .correlate(Assignment)
            .scalar_subquery(),
            type_=ARRAY(Text),
        ).label("earlier"),
    )
    .where(Assignment.id == any_(bindparam("named", type_=ARRAY(Uuid))))
    .order_by(Assignment.id)
    .with_for_update()
)
"""SQL query that reads and locks the assignments whose ids are in the SQL parameter `named`.

The locks keep transactions of other lanes from changing these rows. The column `earlier` has the
outcomes of all completed calls of the assignment's user, which are found by the index on the user.
"""

_changed = rows(
    "changed",
    **{
        column.key: column.type
        for column in (
            Assignment.id,
            Assignment.state,
            Assignment.version,
            Assignment.lease_expires_at,
            Assignment.ended_at,
            Assignment.outcome,
            Assignment.notes,
            Assignment.accepted_at,
            Assignment.ended_how,
            Assignment.put_off_until,
        )
    },
)
CHANGE = (
    update(Assignment)
    .where(Assignment.id == _changed.c.id, Assignment.state == ACTIVE)
    .values(
        state=_changed.c.state,
        version=_changed.c.version,
        lease_expires_at=_changed.c.lease_expires_at,
        ended_at=_changed.c.ended_at,
        ended_xid=case((_changed.c.ended_at.is_not(None), THIS_TRANSACTION)),
        outcome=_changed.c.outcome,
        notes=_changed.c.notes,
        accepted_at=_changed.c.accepted_at,
        ended_how=_changed.c.ended_how,
        put_off_until=_changed.c.put_off_until,
    )
)
"""SQL statement that updates active assignments to the values in the SQL parameter `changed`.

The values end an assignment, mark it as accepted, or extend its lease.
"""


def held(row: RowMapping | dict[str, Any]) -> Held:
    """Convert a row with the columns of an assignment to a `Held`, its form in answers."""
    return held_by([row[name] for name in Held.model_fields])


def held_by(values: Sequence[Any]) -> Held:
    """Convert the column values of an assignment to a `Held`, its form in answers.

    `values`: one value for each field of `Held`, in the order of these fields.
    """
    return Held(**dict(zip(Held.model_fields, values, strict=True)))
