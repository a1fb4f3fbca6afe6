"""Why nothing is claimable: what operators ask most is said with the answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from sqlalchemy import ARRAY, BigInteger, any_, bindparam, func, select

from assignment_workers.assignment.answers import Empty
from assignment_workers.assignment.entries import WAITING
from assignment_workers.assignment.holds import ACTIVE
from assignment_workers.assignment.turn import Turn
from assignment_workers.schema.tables import Assignment, Entry

RETRY_SECONDS = 30.0
"""When to ask again where nothing becomes claimable sooner by itself."""


class Place(Protocol):
    """A dialer queue as the claim saw it."""

    @property
    def paused(self) -> bool: ...
    @property
    def generation(self) -> int | None: ...


def nothing_claimable(
    turn: Turn, queue: str | None, places: Mapping[str, Place], *, skipped: bool
) -> Empty:
    """The answer for a request that nobody was found for in these dialer queues.

    Per dialer queue one of: 'paused'; 'skipped_by_agent' (who is claimable was skipped by this
    agent lately, or nobody is); 'all_held'; 'waiting' (skipped lately); 'none_left' (no user of
    this generation is left; the next may have some). Cost: two index reads for all of them.
    """
    generations = [place.generation for place in places.values() if place.generation is not None]
    waiting = _times(turn, _WAITING, generations=generations)
    held = _times(turn, _HELD, queues=list(places))
    why: dict[str, str] = {}
    for name, place in places.items():
        if place.paused:
            why[name] = "paused"
        elif place.generation in waiting:
            why[name] = "waiting"
        elif name in held:
            why[name] = "all_held"
        else:
            why[name] = "skipped_by_agent" if skipped else "none_left"
    soonest = min([*waiting.values(), *held.values()], default=None)
    seconds = (soonest - turn.now).total_seconds() if soonest else RETRY_SECONDS
    return Empty(queue=queue, retry_after=min(max(seconds, 1.0), RETRY_SECONDS), why=why)


def _times(turn: Turn, statement: object, **parameters: object) -> dict[object, datetime]:
    rows = turn.connection.execute(statement, parameters)  # type: ignore[call-overload]
    return {key: at for key, at in rows if at is not None}


_WAITING = (
    select(Entry.generation_id, func.min(Entry.available_from))
    .where(
        Entry.generation_id == any_(bindparam("generations", type_=ARRAY(BigInteger))),
        Entry.state == WAITING,
    )
    .group_by(Entry.generation_id)
)
_HELD = (
    select(Assignment.queue, func.min(Assignment.lease_expires_at))
    .where(Assignment.state == ACTIVE, Assignment.queue == any_(bindparam("queues")))
    .group_by(Assignment.queue)
)
