"""Assignments as rows: the columns that an answer shows, who holds whom, and how holds change."""

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
"""What the request id of a hold begins with that an adopted dialer's own claim made."""
ACTIVE = sql_text(AssignmentState.ACTIVE)

HELD_COLUMNS = tuple(getattr(Assignment, name) for name in Held.model_fields)

THIS_TRANSACTION = cast(cast(func.pg_current_xact_id(), Text), BigInteger)
"""The number of the running transaction, for `assignments.ended_xid`."""

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
"""The assignments of these ids, locked against another lane's.

`earlier`: the outcomes of their users' completed calls, by the index on user.
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
"""Active assignments become what their rows say: ended, or held for longer."""


def held(row: RowMapping | dict[str, Any]) -> Held:
    """The assignment in a row that has `HELD_COLUMNS`."""
    return held_by([row[name] for name in Held.model_fields])


def held_by(values: Sequence[Any]) -> Held:
    """The same, of the values of those columns in their order."""
    return Held(**dict(zip(Held.model_fields, values, strict=True)))
