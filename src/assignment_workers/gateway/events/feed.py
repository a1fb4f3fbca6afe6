"""Read each committed event from the database once, and pass it to all open event streams.

One database connection listens for notifications of new events, for all streams of the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Protocol, TypeVar

import psycopg
import structlog
from pydantic_core import to_json
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment import events, user_ids
from assignment_workers.assignment.events import CHANNEL, StoredEvent
from assignment_workers.gateway.redaction import redacted
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.deadline import EXCHANGE_SECONDS, ending, located
from assignment_workers.schema.engine import conninfo, driver_url
from assignment_workers.schema.hosts import MOVED

log = structlog.get_logger()

T = TypeVar("T")

AWAY = (DBAPIError, PoolTimeout)
"""The errors that mean that the database is unavailable."""
PAGE = 500
"""The greatest number of events that one query reads."""
BEHIND_AT_MOST = 100_000
"""The greatest distance between the last event id of a client that reconnects and the newest id.

Up to this distance, the client gets the events that it missed. Beyond it, the client gets the event
`reset` instead.
"""
SILENCE_SECONDS = 15.0
"""Seconds without a notification after which the database is queried for new events, in case a
notification was lost.
"""
SETTLE_SECONDS = 0.02
BACK_OFF_SECONDS = 2.0
SENT_DETAILS = (
    "rank",
    "lease_expires_at",
    "until",
    "state",
    "outcome",
    "actions",
    "reason",
    "scheduled_for",
    "moved_to",
    "size",
    "trigger",
    "kind",
    "done",
)
"""The names of those details of an event that are sent to clients.

Other details are left out. A value that a person typed, such as the text of a `reason`, is sent to
no client: each client gets the words `(for operators)` in its place. A value that is a name is
sent, such as a `reason` that is the name of a rule.
"""


@dataclass(frozen=True)
class EventFilter:
    """The agent and the kinds of events to which a client's stream is limited.

    If a field is None, the stream is not limited by it.
    """

    agent_id: int | None = None
    kinds: frozenset[str] | None = None

    def covers(self, stored: StoredEvent) -> bool:
        """Return True if the filter includes this kind of event.

        The agent is not checked here: a `Feed` passes on only the events of the filter's agent.
        """
        return self.kinds is None or stored.kind in self.kinds


class SerializedEvent:
    """An event in the form in which it is sent. It is serialized once for all clients."""

    def __init__(self, stored: StoredEvent) -> None:
        self.stored = stored

    @cached_property
    def text(self) -> bytes:
        """The event as bytes in the format of server-sent events."""
        stored = self.stored
        said = {
            name: value
            for name, value in vars(stored).items()
            if value is not None and name != "details"
        }
        details = {name: stored.details[name] for name in SENT_DETAILS if name in stored.details}
        shown = redacted(said | {"details": details}, sees_text=False)
        return written(stored.id, stored.kind, shown)


def written(number: int, kind: str, said: dict[str, object]) -> bytes:
    """Return a server-sent event as bytes: with id `number`, type `kind` and data `said`."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), to_json(said))


class Follower(Protocol):
    """The interface of an object to which a `Feed` passes events."""

    event_filter: EventFilter

    def put(self, line: SerializedEvent) -> None:
        """Receive an event from a `Feed`; ignore the event if `event_filter` excludes its kind.

        This method need not check the agent of the event. If `event_filter` names an agent, the
        `Feed` passes only that agent's events to this object.
        """

    def restart(self) -> None:
        """Discard buffered events and send `reset`: the database was replaced by an older copy.

        The copy, such as a restored backup, does not have the newest events, and may use their ids
        for other events. After `reset`, the client must read the current state again.
        """


class Feed:
    """Reads new events from the database and passes them to all open streams.

    It listens on one connection for notifications, while streams are open.
    """

    def __init__(self, engine: Engine, listen_url: str) -> None:
        self.position = 0
        """All events up to this id were passed on. No event with a smaller id can appear later."""
        self.started = asyncio.Event()
        self._engine = engine
        self._url = listen_url
        self._last: StoredEvent | None = None
        """The event that was passed on last."""
        self._returning = asyncio.Semaphore(1)
        self._all: set[Follower] = set()
        self._of: dict[int, set[Follower]] = {}
        self._chance = Random()

    def add(self, reader: Follower) -> None:
        """Pass new events to `reader` from now on."""
        self._among(reader).add(reader)

    def remove(self, reader: Follower) -> None:
        """Stop passing events to `reader`."""
        self._among(reader).discard(reader)
        if reader.event_filter.agent_id is not None and not self._among(reader):
            del self._of[reader.event_filter.agent_id]

    def _among(self, reader: Follower) -> set[Follower]:
        agent = reader.event_filter.agent_id
        return self._all if agent is None else self._of.setdefault(agent, set())

    async def run(self) -> None:
        """Read and pass on events until cancelled.

        A lost connection is reopened without losing events.
        """
        while True:
            try:
                await self._follow()
            except (psycopg.Error, OSError, *AWAY) as error:
                reason = str(getattr(error, "orig", None) or error).strip().splitlines()
                log.warning("live_lost", reason=reason[0] if reason else type(error).__name__)
            await asyncio.sleep(BACK_OFF_SECONDS * self._chance.uniform(0.1, 1.0))

    async def _follow(self) -> None:
        address = conninfo(
            driver_url(self._url), application_name="assignment-workers gateway live"
        )
        address, served = await asyncio.to_thread(located, address)
        connecting = psycopg.AsyncConnection.connect(address, autocommit=True)
        async with await connecting as connection:
            # Listening comes first, so that every commit after the next read causes a notification.
            with ending(connection, EXCHANGE_SECONDS):
                await connection.execute(f"LISTEN {CHANNEL}".encode())
            _, newest = await self._ask(events.bounds)
            if not self.started.is_set():
                await self._settle()
                self.position = newest
                self.started.set()
            elif newest < self.position or not await self._has_last():
                await self._settle()
                self._restart(newest)
            while True:
                await self._read_on()
                async for _ in connection.notifies(timeout=SILENCE_SECONDS, stop_after=1):
                    pass
                if served is not None and served.has_moved:
                    raise psycopg.OperationalError(MOVED)

    async def _has_last(self) -> bool:
        """Return True if the database still has the event that was passed on last.

        If not, the database was replaced by an older copy, such as a restored backup.
        """
        last = self._last
        if last is None:
            return True
        found = await self._ask(lambda it: _page(it, last.id - 1, last.id, limit=1))
        return [each.at for each in found] == [last.at]

    def _restart(self, newest: int) -> None:
        """Make every stream send `reset`, because an older copy replaced the database.

        The feed continues after `newest`, the id of the newest event in the copy.
        """
        log.warning("live_moved_back", position=self.position, newest=newest)
        self.position, self._last = newest, None
        for reader in [*self._all, *(each for of in self._of.values() for each in of)]:
            reader.restart()

    async def _read_on(self) -> None:
        """Read the events committed since the last read, and pass them to the streams."""
        while found := await self._ask(
            lambda connection: _page(connection, self.position, limit=PAGE)
        ):
            whole = _without_gap(found, self.position)
            self._hand_on(found[:whole])
            if whole < len(found):
                await self._settle()
                await self._hand_on_up_to(found[-1].id)
            if len(found) < PAGE:
                return

    async def _hand_on_up_to(self, until: int) -> None:
        """Pass on the events with ids up to `until`.

        The ids may have gaps, but no event can still appear in a gap. The caller has called
        `_settle`, which waits for the end of every transaction that could write such an event.
        """
        while self.position < until:
            found = await self._ask(
                lambda connection: _page(connection, self.position, until, limit=PAGE)
            )
            self._hand_on(found)
            if len(found) < PAGE:
                self.position = until

    async def _settle(self) -> None:
        """Wait until no new event can appear with an id below the last id that was read.

        A transaction that has taken an id and has not ended could still write such an event, so
        this method waits for the end of each such transaction. After the wait, an id without an
        event stays unused if it is below the last id that was read.
        """
        held_back = await self._ask(events.writers)
        while held_back:
            await asyncio.sleep(SETTLE_SECONDS)
            held_back &= await self._ask(events.writers)

    def _hand_on(self, found: Iterable[StoredEvent]) -> None:
        for stored in found:
            line = SerializedEvent(stored)
            for reader in self._all:
                reader.put(line)
            if stored.agent_id is not None:
                for reader in self._of.get(stored.agent_id, ()):
                    reader.put(line)
            self.position, self._last = stored.id, stored

    async def read(
        self, after: int, until: int, event_filter: EventFilter
    ) -> Sequence[StoredEvent]:
        """Return stored events that the filter includes, in the order of their ids.

        The ids are above `after` and at most `until`. Of more than 500 events (`PAGE`), only the
        first 500 are returned.
        """
        return await self._ask_for_reader(
            lambda connection: _page(
                connection,
                after,
                until,
                limit=PAGE,
                agent_id=event_filter.agent_id,
                kinds=event_filter.kinds,
            )
        )

    async def can_tell(self, last: int, until: int) -> bool:
        """Return True if all events after id `last` up to id `until` can still be sent.

        They must still be stored, and their ids must span at most 100,000 (`BEHIND_AT_MOST`).
        """
        if until - last > BEHIND_AT_MOST:
            return False
        oldest, _ = await self._ask_for_reader(events.bounds)
        return last + 1 >= oldest

    async def is_known(self, last: int) -> bool:
        """Return True if the newest event has the id `last` or a higher id.

        A client that reconnects sends `last`: the id up to which it has the events. The result is
        False if no event has an id as high as `last`. Then `last` is from another database, or the
        database was replaced by an older copy, such as a restored backup. An id from another
        database is not noticed if the newest id here is as high.
        """
        if last <= self.position:
            return True
        _, newest = await self._ask_for_reader(events.bounds)
        return last <= newest

    async def _ask(self, what: Callable[[Connection], T]) -> T:
        def ask() -> T:
            with self._engine.connect() as connection:
                return what(connection)

        return await asyncio.to_thread(ask)

    async def _ask_for_reader(self, what: Callable[[Connection], T]) -> T:
        """Call `what` with a database connection, and return the result.

        `what` is a query for a client that has reconnected. Such queries run one at a time.
        """
        async with self._returning:
            return await self._ask(what)


def _page(connection: Connection, *given: int, **choice: Any) -> Sequence[StoredEvent]:  # noqa: ANN401
    """Read events in a range of ids; return them with the CRM's ids of users.

    `given`: the id after which the range begins and, unless the range is open, its last id.
    `choice`: the greatest number of events (`limit`) and, if the events are filtered, the filter
    (`agent_id`, `kinds`). `given` and `choice` are passed to `events.between`, which reads the
    events. A stored event has an internal integer id of its user, which the CRM's id replaces here.
    """
    return user_ids.shown(loaded(), connection, events.between(connection, *given, **choice))


def _without_gap(found: Sequence[StoredEvent], after: int) -> int:
    """Return the number of events in `found` before the first gap in their ids.

    `found` is in the order of ids. Without a gap, its ids are `after` + 1, `after` + 2 and so on.
    """
    return next(
        (place for place, stored in enumerate(found) if stored.id != after + 1 + place), len(found)
    )
