"""Checks a whole run by its records: what the events, assignments and requests say really happened.

Events of a lane are numbered in the order in which their turns committed, so one pass over them
replays the run against a small model: who holds whom, who is claimable at which rank. Cost: one
pass, some microseconds an event; the entries of each published generation that is still kept are
read once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, select, text

from assignment_workers.assignment.regenerate import partition
from assignment_workers.assignment.turn import EventKind
from assignment_workers.schema.tables import Event, Generation
from assignment_workers.settings import Settings

ENDS = {EventKind.COMPLETED, EventKind.SKIPPED, EventKind.RELEASED, EventKind.EXPIRED}


UNSEEN = timedelta(seconds=10)
"""A turn's instant is before its commit: a build that began in between has not seen what it did."""


class Fact(NamedTuple):
    """One event as far as the check needs it. `rank` of a grant."""

    id: int
    at: datetime
    kind: str
    term: int | None
    queue: str | None
    user_id: int | None
    agent_id: int | None
    assignment_id: UUID | None
    request_id: str | None
    generation_id: int | None
    rank: int | None = None


@dataclass(frozen=True)
class Breach:
    """A guarantee that the history breaks, and the event at which it does."""

    guarantee: int
    event: int
    what: str


@dataclass
class _Hold:
    assignment: UUID
    agent: int
    user: int
    lease_until: datetime


@dataclass
class _Board:
    """A published generation as the events leave it: who is claimable, at which rank."""

    ranks: dict[int, int]
    ready: set[int] = field(default_factory=set)
    heap: list[tuple[int, int]] = field(default_factory=list)
    waiting: list[tuple[datetime, int]] = field(default_factory=list)
    uncertain: set[int] = field(default_factory=set)
    """Completed about when the build began: the events do not say whether it had seen that."""

    def make_ready(self, user: int) -> None:
        if user in self.ranks and user not in self.ready:
            self.ready.add(user)
            heapq.heappush(self.heap, (self.ranks[user], user))

    def wait(self, user: int, until: datetime) -> None:
        if user in self.ranks:
            self.ready.discard(user)
            heapq.heappush(self.waiting, (until, user))

    def promote(self, now: datetime) -> None:
        while self.waiting and self.waiting[0][0] <= now:
            self.make_ready(heapq.heappop(self.waiting)[1])

    def better_than(self, rank: int) -> Iterator[int]:
        """Claimable users with a better rank, best first."""
        kept: list[tuple[int, int]] = []
        try:
            while self.heap and self.heap[0][0] < rank:
                place = heapq.heappop(self.heap)
                if place[1] in self.ready and (not kept or kept[-1] != place):
                    kept.append(place)
                    yield place[1]
        finally:
            for place in kept:
                heapq.heappush(self.heap, place)


class History:
    """Replays facts in their order and collects what they break."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.breaches: list[Breach] = []
        self._term = 0
        self._by_user: dict[int, _Hold] = {}
        self._by_agent: dict[int, _Hold] = {}
        self._boards: dict[str, tuple[int, _Board]] = {}
        self._skipped: dict[tuple[int, int], datetime] = {}
        self._resting: dict[int, datetime] = {}
        self._completed: dict[int, datetime] = {}
        self._requests: set[str] = set()

    def publish(self, fact: Fact, ranks: dict[int, int], *, began: datetime) -> None:
        """A generation with these ranks is published; its build began at that instant."""
        if fact.queue is None or fact.generation_id is None:
            self._breach(11, fact, "published: no dialer queue or generation is named")
            return
        board = _Board(ranks)
        for user in ranks:
            rested = self._resting.get(user)
            completed = self._completed.get(user)
            if user in self._by_user:
                continue
            if completed is not None and completed >= began - UNSEEN:
                board.uncertain.add(user)
                continue
            if rested is not None and rested > fact.at:
                board.wait(user, rested)
            else:
                board.make_ready(user)
        before = self._boards.get(fact.queue)
        if before and before[0] > fact.generation_id:
            self._breach(2, fact, f"generation {fact.generation_id} follows {before[0]}")
        self._boards[fact.queue] = (fact.generation_id, board)

    def tell(self, fact: Fact) -> None:
        """The next fact."""
        if fact.term is not None:
            if fact.term < self._term:
                self._breach(9, fact, f"term {fact.term} after term {self._term}")
            self._term = max(self._term, fact.term)
        for _, board in self._boards.values():
            board.promote(fact.at)
        if fact.kind == EventKind.ASSIGNED:
            self._assigned(fact)
        elif fact.kind in ENDS:
            self._ended(fact)
        elif fact.kind == EventKind.RENEWED:
            hold = self._by_user.get(fact.user_id or 0)
            if hold is None or hold.assignment != fact.assignment_id:
                self._breach(8, fact, f"assignment {fact.assignment_id} renewed while not active")
            else:
                hold.lease_until = fact.at + self._settings.lease
        elif fact.kind == EventKind.TAKEN_OUT:
            self._drop(fact.user_id, fact.generation_id)
        elif fact.kind == EventKind.CONVERTED:
            self._drop(fact.user_id, None)

    def finish(self, now: datetime, *, bound: timedelta) -> None:
        """The history ends here: no hold may be older than its lease and `bound`."""
        for hold in self._by_user.values():
            if hold.lease_until + bound < now:
                self.breaches.append(
                    Breach(7, 0, f"assignment {hold.assignment} has outlived its lease")
                )

    def _assigned(self, fact: Fact) -> None:
        user, agent = fact.user_id, fact.agent_id
        if user is None or agent is None or fact.assignment_id is None:
            self._breach(11, fact, "assigned: no user, agent or assignment is named")
            return
        if user in self._by_user:
            held = self._by_user[user]
            self._breach(1, fact, f"user {user} is held by agent {held.agent} and given to {agent}")
        if agent in self._by_agent:
            self._breach(1, fact, f"agent {agent} holds user {self._by_agent[agent].user} already")
        if fact.request_id is not None:
            if fact.request_id in self._requests:
                self._breach(5, fact, f"request {fact.request_id} handed out twice")
            self._requests.add(fact.request_id)
        self._in_order(fact, user, agent)
        hold = _Hold(fact.assignment_id, agent, user, fact.at + self._settings.lease)
        self._by_user[user] = self._by_agent[agent] = hold
        for _, board in self._boards.values():
            board.ready.discard(user)

    def _in_order(self, fact: Fact, user: int, agent: int) -> None:
        known = self._boards.get(fact.queue or "")
        if known is None or fact.rank is None:
            return
        number, board = known
        if number != fact.generation_id:
            self._breach(2, fact, f"generation {fact.generation_id} is not the published {number}")
            return
        if user not in board.ready and user not in board.uncertain:
            self._breach(4, fact, f"user {user} was not claimable in generation {number}")
        since = fact.at - self._settings.skip_agent
        for better in board.better_than(fact.rank):
            skipped = self._skipped.get((agent, better))
            if skipped is None or skipped <= since:
                self._breach(4, fact, f"user {better} has a better rank than user {user}")
                return

    def _ended(self, fact: Fact) -> None:
        hold = self._by_user.get(fact.user_id or 0)
        if hold is None or hold.assignment != fact.assignment_id:
            self._breach(8, fact, f"assignment {fact.assignment_id} ended while not active")
            return
        if hold.agent != fact.agent_id:
            self._breach(8, fact, f"agent {fact.agent_id} ended the hold of agent {hold.agent}")
        if fact.kind == EventKind.EXPIRED and fact.at < hold.lease_until:
            self._breach(7, fact, f"assignment {hold.assignment} expired before its lease lapsed")
        del self._by_user[hold.user]
        self._by_agent.pop(hold.agent, None)
        if fact.kind == EventKind.COMPLETED:
            self._completed[hold.user] = fact.at
            return
        if fact.kind == EventKind.SKIPPED:
            until = fact.at + self._settings.skip_everyone
            self._skipped[hold.agent, hold.user] = fact.at
            self._resting[hold.user] = until
            for _, board in self._boards.values():
                board.wait(hold.user, until)
            return
        for _, board in self._boards.values():
            board.make_ready(hold.user)

    def _drop(self, user: int | None, generation: int | None) -> None:
        for number, board in self._boards.values():
            if generation in (None, number) and user is not None:
                board.ready.discard(user)
                board.ranks.pop(user, None)

    def _breach(self, guarantee: int, fact: Fact, what: str) -> None:
        self.breaches.append(Breach(guarantee, fact.id, what))


def check(connection: Connection, *, settings: Settings, bound: timedelta) -> list[Breach]:
    """What the whole history of this database breaks; empty for a good one.

    `settings` must be those it ran with. `bound`: how long after its lease a hold may still stand.
    Order is checked against the generations whose entries are still kept.
    """
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    history = History(settings)
    begun = {
        row.id: row.started_at
        for row in connection.execute(select(Generation.id, Generation.started_at))
    }
    for fact in _facts(connection):
        if fact.kind == EventKind.GENERATION_PUBLISHED and fact.generation_id is not None:
            ranks = _ranks(connection, fact.generation_id)
            if ranks:
                history.publish(fact, ranks, began=begun[fact.generation_id])
            elif fact.queue is not None:
                history._boards.pop(fact.queue, None)  # noqa: SLF001 - purged: order is unknown
        history.tell(fact)
    now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    history.finish(now, bound=bound)
    history.breaches.extend(_records(connection))
    return history.breaches


def _facts(connection: Connection) -> Iterator[Fact]:
    rows = connection.execution_options(stream_results=True, yield_per=10_000).execute(
        select(
            Event.id,
            Event.at,
            Event.kind,
            Event.term,
            Event.queue,
            Event.user_id,
            Event.agent_id,
            Event.assignment_id,
            Event.request_id,
            Event.generation_id,
            Event.details["rank"].as_integer(),
        ).order_by(Event.id)
    )
    with rows:
        for row in rows:
            yield Fact(*row)


def _ranks(connection: Connection, generation: int) -> dict[int, int]:
    """The ranks of a generation that is still kept; nothing for one that was purged."""
    there = connection.execute(
        text("SELECT to_regclass(:name) IS NOT NULL"), {"name": partition(generation)}
    ).scalar_one()
    if not there:
        return {}
    rows = connection.execute(
        text("SELECT user_id, rank FROM assignment.entries WHERE generation_id = :number"),
        {"number": generation},
    )
    return {row.user_id: row.rank for row in rows}


def _records(connection: Connection) -> Iterator[Breach]:
    """Where the tables disagree with the events."""
    for guarantee, what, sql in (
        (
            5,
            "is answered with another agent's assignment",
            (
                "SELECT r.request_id FROM assignment.requests r JOIN assignment.assignments a"
                " ON a.id = r.assignment_id WHERE a.agent_id <> r.agent_id"
            ),
        ),
        (
            11,
            "was made without an event",
            (
                "SELECT a.id::text FROM assignment.assignments a WHERE NOT EXISTS (SELECT 1 FROM"
                " assignment.events e WHERE e.assignment_id = a.id AND e.kind = 'assigned')"
            ),
        ),
        (
            11,
            "ended without an event",
            (
                "SELECT a.id::text FROM assignment.assignments a WHERE a.state <> 'active' AND NOT"
                " EXISTS (SELECT 1 FROM assignment.events e WHERE e.assignment_id = a.id"
                " AND e.kind = a.state)"
            ),
        ),
    ):
        for subject in connection.execute(text(sql)).scalars():
            yield Breach(guarantee, 0, f"{subject} {what}")
