"""Publish a generation: retire the previous one, and apply later changes of assignments.

The build can miss that an assignment began or ended after the build began. So the publication
changes the entry (position) of the assignment's user.

The cost does not depend on the size of the generation. The cost depends on two numbers. One is the
number of active assignments. The other is the number of assignments that ended after the build
began, or in the ten minutes before it (`LONGEST_TRANSACTION`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, bindparam, func, null, select, text, update

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.generations.entries import (
    HELD,
    OUT,
    PUBLISHED_STATE,
    READY,
    WAITING,
)
from assignment_workers.assignment.generations.regenerate import fail
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.tables import (
    Assignment,
    AssignmentState,
    Entry,
    Generation,
    GenerationState,
)

LONGEST_TRANSACTION = timedelta(minutes=10)
"""Assumed maximum duration of a sequencer's transaction.

If the end of an assignment is committed after the build of a generation began, the build does not
see the end. The publication has to find each such assignment, by its time of the end (`ended_at`).
That time is set when the transaction begins, so it may be earlier than the commit, by at most this
duration. Therefore the publication reads every assignment whose `ended_at` is not earlier than the
beginning of the build minus this duration.
"""


def publish(transaction: FencedTransaction, number: int) -> Done | Refused:
    """Make claims take users from this generation, and retire the previous generation.

    Users whom an agent holds are marked held in the new generation and keep their positions. Users
    whose call was completed since the build began are removed from the new generation. Users who
    were skipped or deferred since the build began have to wait in it (guarantee 2 in
    docs/how-it-works.md). Publishing again changes nothing. Refused: an unknown number, and a
    generation that is not built or has failed. If a generation that was built later is published
    already, this generation is marked failed, because the newer build wins. The answer is then
    `Done`, not a refusal.
    """
    # All lanes, because a transaction of another lane may be ending holds of users with entries
    # here.
    transaction.require_all_lanes()
    row = transaction.connection.execute(_FIND, {"generation": number}).first()
    if row is None:
        return Refused(code=Code.UNKNOWN_GENERATION, reason=f"no generation {number}")
    if row.state in (GenerationState.PUBLISHED, GenerationState.RETIRED):
        return Done(replayed=True)
    if row.state == GenerationState.FAILED or row.built_at is None:
        state = "failed" if row.state == GenerationState.FAILED else "not built"
        return Refused(code=Code.UNKNOWN_GENERATION, reason=f"generation {number} is {state}")
    before = transaction.connection.execute(_PUBLISHED, {"queue": row.queue}).scalar_one_or_none()
    if before is not None and before > number:
        fail(
            transaction.connection,
            number,
            row.queue,
            transaction.now,
            f"generation {before} was built later",
        )
        return Done(replayed=True)
    if before is not None:
        transaction.connection.execute(_RETIRE, {"generation": before, "at": transaction.now})
        transaction.record(
            {
                "kind": EventKind.GENERATION_RETIRED,
                "queue": row.queue,
                "generation_id": before,
            }
        )
    transaction.connection.execute(_PUBLISH, {"generation": number, "at": transaction.now})
    counts = _bring_in(transaction, number, row)
    transaction.record(
        {
            "kind": EventKind.GENERATION_PUBLISHED,
            "queue": row.queue,
            "generation_id": number,
            "details": {"size": row.size, "trigger": row.trigger, **counts},
        }
    )
    return Done(counts=counts)


def _bring_in(
    transaction: FencedTransaction, number: int, row: Row[*tuple[Any, ...]]
) -> dict[str, int]:
    """Mark users of the new generation as held, removed or waiting, because of their assignments.

    The state of a user's entry (position) becomes `held` if the user has an active assignment. If
    an assignment ended too late for the build to see the end, the state becomes `out` (removed) if
    the call was completed, and `waiting` if the user was skipped or deferred. `row`: the
    generation's row. Returns the numbers of changed entries: `held`, `completed_since` and
    `skipped_since`.
    """
    since = {
        "generation": number,
        "earliest": row.started_at - LONGEST_TRANSACTION,
        "snapshot": row.snapshot,
    }
    return {
        "held": transaction.connection.execute(_HOLD, {"generation": number}).rowcount,
        "completed_since": transaction.connection.execute(_LEAVE, since).rowcount,
        "skipped_since": transaction.connection.execute(
            _WAIT, since | {"instant": transaction.now}
        ).rowcount,
    }


_FIND = (
    select(
        Generation.queue,
        Generation.state,
        Generation.trigger,
        Generation.size,
        Generation.snapshot,
        Generation.started_at,
        Generation.built_at,
    )
    .where(Generation.id == bindparam("generation"))
    .with_for_update()
)
_PUBLISHED = select(Generation.id).where(
    Generation.queue == bindparam("queue"), Generation.state == PUBLISHED_STATE
)
_RETIRE = (
    update(Generation)
    .where(Generation.id == bindparam("generation"))
    .values(state=sql_text(GenerationState.RETIRED), retired_at=bindparam("at"))
)
_PUBLISH = (
    update(Generation)
    .where(Generation.id == bindparam("generation"))
    .values(state=PUBLISHED_STATE, published_at=bindparam("at"))
)

_HOLD = (
    update(Entry)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.user_id == Assignment.user_id,
        Assignment.state == ACTIVE,
        Entry.state.in_([READY, WAITING]),
    )
    .values(state=HELD, available_from=null())
)

# The build's snapshot tells exactly which ends it had not seen; the time is for the index.
_UNSEEN = text(
    "assignment.assignments.ended_at >= :earliest AND NOT pg_visible_in_snapshot("
    "CAST(CAST(assignment.assignments.ended_xid AS text) AS xid8), CAST(:snapshot AS pg_snapshot))"
)

_LEAVE = (
    update(Entry)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.user_id == Assignment.user_id,
        Assignment.state == sql_text(AssignmentState.COMPLETED),
        _UNSEEN,
        Entry.state.in_([READY, WAITING]),
    )
    .values(state=OUT, available_from=null(), reason=sql_text("completed"))
)

_skipped = (
    select(Assignment.user_id, func.max(Assignment.put_off_until).label("until"))
    .where(Assignment.state == sql_text(AssignmentState.SKIPPED), _UNSEEN)
    .group_by(Assignment.user_id)
    .subquery("skipped")
)
_WAIT = (
    update(Entry)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.user_id == _skipped.c.user_id,
        _skipped.c.until > bindparam("instant", type_=Instant),
        Entry.state.in_([READY, WAITING]),
    )
    .values(state=WAITING, available_from=_skipped.c.until)
)
