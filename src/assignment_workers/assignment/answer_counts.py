"""Counts of answers as callers get them, for the service levels.

The database has every answer that was committed. It may have nothing about a request that was
answered `unavailable`, that timed out, or whose caller left. Therefore the gateway and the clients
count every request by its answer, in memory, and store the sums later. A row of `answer_counts` has
the counts of one hour, one number for each minute.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Empty,
    Paused,
    Refused,
    RequestAnswer,
    TooLate,
    Unavailable,
)
from assignment_workers.clock import Clock
from assignment_workers.schema.states import AnswerKind

if TYPE_CHECKING:
    from sqlalchemy import Connection

HOURS = 48
"""Maximum age in hours of counts that wait in memory while the database is unavailable.

Older counts are added to the kind `dropped`.
"""
MINUTES = 60
RULES = frozenset({Code.ON_BREAK, Code.OFFLINE, Code.SESSION_LIMIT, Code.BREAK_DUE, Code.CALL_GAP})
"""Codes of refusals because of a rule about the agent, such as a break that is due.

A request that is refused with one of these codes has no mistake. A refusal with any other code is
counted as a mistake of the caller.
"""
USEFUL = frozenset({AnswerKind.ASSIGNED, AnswerKind.EMPTY, AnswerKind.PAUSED, AnswerKind.RULED})
"""Kinds of answers that give the agent a user, or the reason for which there is none now."""
LOST = frozenset({AnswerKind.UNAVAILABLE, AnswerKind.LEFT, AnswerKind.FAILED})
"""Kinds of results of a request after which the caller has no usable answer.

The database may have an answer that came too late for the caller.
"""


class CountedHour(BaseModel):
    """The number of answers of one kind in each minute of the hour that begins at `hour`."""

    model_config = ConfigDict(extra="forbid")

    hour: AwareDatetime
    kind: AnswerKind
    by_minute: Annotated[
        list[Annotated[int, Field(ge=0, le=10**9)]],
        Field(min_length=MINUTES, max_length=MINUTES),
    ]


def kind_of(answer: RequestAnswer) -> AnswerKind:
    """Return the kind under which a request's answer is counted."""
    match answer:
        case Assigned():
            return AnswerKind.ASSIGNED
        case Empty():
            return AnswerKind.EMPTY
        case Paused():
            return AnswerKind.PAUSED
        case TooLate():
            return AnswerKind.TOO_LATE
        case Refused(code=code):
            return AnswerKind.RULED if code in RULES else AnswerKind.MISTAKE
        case Unavailable():
            return AnswerKind.UNAVAILABLE


@dataclass
class AnswerTally:
    """The number of answers of each kind in each minute, counted in the memory of one process.

    The numbers stay here until they are stored in the database, for 48 hours at most. Thread-safe.
    """

    clock: Clock
    _sums: dict[tuple[datetime, AnswerKind], list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: AnswerKind) -> None:
        """Count one answer of this kind in the present minute."""
        now = self.clock()
        hour = now.replace(minute=0, second=0, microsecond=0)
        with self._lock:
            self._of(hour, kind)[now.minute] += 1

    def has_lost(self) -> bool:
        """Return True if the counts include a request whose caller got no usable answer.

        Only such counts have to be stored soon, because the database may have no other record of
        the request. The table `requests` has most other answers: the transaction that makes an
        answer stores the answer there.
        """
        with self._lock:
            return any(kind in LOST for _, kind in self._sums)

    def take(self) -> list[CountedHour]:
        """Return all counts, and remove them from this tally, so that the caller can store them."""
        with self._lock:
            sums, self._sums = self._sums, {}
        return [
            CountedHour(hour=hour, kind=kind, by_minute=by_minute)
            for (hour, kind), by_minute in sorted(sums.items())
        ]

    def put_back(self, hours: Iterable[CountedHour]) -> None:
        """Put counts back into this tally, after an attempt to store or send them has failed.

        Counts of an hour that began 48 hours before the present hour, or earlier, are not put back.
        The number of answers in such counts is added to the kind `dropped`, in the present minute.
        """
        now = self.clock()
        this_hour = now.replace(minute=0, second=0, microsecond=0)
        with self._lock:
            for each in hours:
                if each.hour <= this_hour - timedelta(hours=HOURS):
                    self._of(this_hour, AnswerKind.DROPPED)[now.minute] += sum(each.by_minute)
                    continue
                sums = self._of(each.hour, each.kind)
                for minute, count in enumerate(each.by_minute):
                    sums[minute] += count

    def _of(self, hour: datetime, kind: AnswerKind) -> list[int]:
        return self._sums.setdefault((hour, kind), [0] * MINUTES)


def store(connection: Connection, hours: Sequence[CountedHour]) -> None:
    """Add the counts of answers in `hours` to those in the database. The caller commits."""
    from sqlalchemy import text  # not for clients, which count and do not store

    if not hours:
        return
    # In the order of the key, so that two writers never wait for each other in a ring.
    rows = sorted(hours, key=lambda each: (each.hour, each.kind))
    connection.execute(
        text(_STORE),
        [{"hour": each.hour, "kind": each.kind, "counts": each.by_minute} for each in rows],
    )


_STORE = """
INSERT INTO assignment.answer_counts AS stored (hour, kind, by_minute)
VALUES (:hour, :kind, cast(:counts AS int[]))
ON CONFLICT (hour, kind) DO UPDATE SET by_minute = ARRAY(
    SELECT before + more
    FROM unnest(stored.by_minute, excluded.by_minute) WITH ORDINALITY AS t (before, more, minute)
    ORDER BY minute
)
"""
