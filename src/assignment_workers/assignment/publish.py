"""Publish a generation: the pointer flips, and what happened since its build began is brought in.

The cost is that of the holds, active and ended since the build began; ten users or ten million in
the generation make no difference.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, bindparam, func, null, select, text, update

from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.entries import (
    HELD,
    OUT,
    PUBLISHED_STATE,
    READY,
    WAITING,
)
from assignment_workers.assignment.holds import ACTIVE
from assignment_workers.assignment.regenerate import fail
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.schema.base import Instant, word
from assignment_workers.schema.tables import (
    Assignment,
    AssignmentState,
    Entry,
    Generation,
    GenerationState,
)

LONGEST_TURN = timedelta(minutes=10)
"""No turn lasts longer, so whatever a build missed ended at most this long before it began."""


def publish(turn: Turn, number: int) -> Done | Refused:
    """Make this generation the one its queue hands out from; the one before is retired.

    Held users are marked held in it and keep their place; users completed since the build began are
    out of it; users skipped or deferred since then wait (guarantee 2). Saying it again changes
    nothing. Refused: a number that is no generation, or one that is not built or has failed. One
    that is older than the published one is marked failed: the newer build wins.
    """
    # Of every lane: a turn of another may be ending holds of users who have places here.
    turn.need_all()
    row = turn.connection.execute(_FIND, {"generation": number}).first()
    if row is None:
        return Refused(code=Code.UNKNOWN_GENERATION, reason=f"no generation {number}")
    if row.state in (GenerationState.PUBLISHED, GenerationState.RETIRED):
        return Done(replayed=True)
    if row.state == GenerationState.FAILED or row.built_at is None:
        state = "failed" if row.state == GenerationState.FAILED else "not built"
        return Refused(code=Code.UNKNOWN_GENERATION, reason=f"generation {number} is {state}")
    before = turn.connection.execute(_PUBLISHED, {"queue": row.queue}).scalar_one_or_none()
    if before is not None and before > number:
        fail(turn.connection, number, row.queue, turn.now, f"generation {before} was built later")
        return Done(replayed=True)
    if before is not None:
        turn.connection.execute(_RETIRE, {"generation": before, "at": turn.now})
        turn.record(
            {
                "kind": EventKind.GENERATION_RETIRED,
                "queue": row.queue,
                "generation_id": before,
            }
        )
    turn.connection.execute(_PUBLISH, {"generation": number, "at": turn.now})
    counts = _bring_in(turn, number, row)
    turn.record(
        {
            "kind": EventKind.GENERATION_PUBLISHED,
            "queue": row.queue,
            "generation_id": number,
            "details": {"size": row.size, "trigger": row.trigger, **counts},
        }
    )
    return Done(counts=counts)


def _bring_in(turn: Turn, number: int, row: Row[*tuple[Any, ...]]) -> dict[str, int]:
    """What the build could not know: who is held now, and who was finished since it began."""
    since = {
        "generation": number,
        "earliest": row.started_at - LONGEST_TURN,
        "snapshot": row.snapshot,
    }
    return {
        "held": turn.connection.execute(_HOLD, {"generation": number}).rowcount,
        "completed_since": turn.connection.execute(_LEAVE, since).rowcount,
        "skipped_since": turn.connection.execute(_WAIT, since | {"instant": turn.now}).rowcount,
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
    .values(state=word(GenerationState.RETIRED), retired_at=bindparam("at"))
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

# The build's snapshot says exactly which ends it had not seen; the time is there for the index.
_UNSEEN = text(
    "assignment.assignments.ended_at >= :earliest AND NOT pg_visible_in_snapshot("
    "CAST(CAST(assignment.assignments.ended_xid AS text) AS xid8), CAST(:snapshot AS pg_snapshot))"
)

_LEAVE = (
    update(Entry)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.user_id == Assignment.user_id,
        Assignment.state == word(AssignmentState.COMPLETED),
        _UNSEEN,
        Entry.state.in_([READY, WAITING]),
    )
    .values(state=OUT, available_from=null(), reason=word("completed"))
)

_skipped = (
    select(Assignment.user_id, func.max(Assignment.put_off_until).label("until"))
    .where(Assignment.state == word(AssignmentState.SKIPPED), _UNSEEN)
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
