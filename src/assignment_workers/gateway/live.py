"""Events as they are committed, to any number of readers: one listening connection for them all.

Every reader gets each event it may see once, in the order of ids, and can go on from the id it had
last, here or at another gateway. Nothing runs while nobody reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from random import Random
from typing import TypeVar

import psycopg
import structlog
from psycopg.conninfo import make_conninfo
from pydantic_core import to_json
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment import events
from assignment_workers.assignment.events import CHANNEL, Told
from assignment_workers.gateway.problems import unavailable
from assignment_workers.schema.engine import KEEPALIVES, driver_url

log = structlog.get_logger()

T = TypeVar("T")

_AWAY = (DBAPIError, PoolTimeout)
"""The database cannot answer now."""

PAGE = 500
"""Events read at once."""
BUFFERED = 8 * PAGE
"""Events kept for one reader; who is further behind is cut off, and reads on from the database."""
BEHIND_AT_MOST = 100_000
"""Events that a reader who comes back can have missed and still be told, one by one."""
READERS = 2_000
READERS_OF_ONE = 10
"""Streams at once: in all, and by one agent's token."""
SILENCE_SECONDS = 15.0
"""After so long without a notification the database is asked: does it answer, was one lost."""
SETTLE_SECONDS = 0.02
START_SECONDS = 5.0
BACK_OFF_SECONDS = 2.0

RESET = "reset"
"""What a reader is told who has missed what cannot be told any more: read how all stands anew."""

SHOWN = (
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
"""Details that are sent: none says more of a person than their id."""


@dataclass(frozen=True)
class Sight:
    """Which events a reader may see and wants; None: all."""

    agent_id: int | None = None
    kinds: frozenset[str] | None = None

    def covers(self, told: Told) -> bool:
        """Whether this is one of them; `agent_id` is looked at by whoever asks."""
        return self.kinds is None or told.kind in self.kinds


class Line:
    """An event as it travels, written once for all who get it."""

    def __init__(self, told: Told) -> None:
        self.told = told

    @cached_property
    def text(self) -> bytes:
        """As a server-sent event."""
        told = self.told
        said = {
            name: value
            for name, value in vars(told).items()
            if value is not None and name != "details"
        }
        details = {name: told.details[name] for name in SHOWN if name in told.details}
        return written(told.id, told.kind, said | {"details": details})


def written(number: int, kind: str, said: dict[str, object]) -> bytes:
    """A server-sent event."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), to_json(said))


@dataclass(eq=False)
class Reader:
    """One stream. `last` is the id up to which all that it may see was given out."""

    feed: Feed
    sight: Sight
    last: int
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is over: this reader is too slow, or the gateway ends."""
    _lines: deque[Line] = field(default_factory=deque)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _resumed: bool = False
    """What it missed can be told, and is being told."""
    _follows: bool = False
    """All that it missed was told; the feed hands on the rest."""

    async def more(self, seconds: float) -> bytes:
        """What there is to send, waiting so long for it at the most; nothing: b''.

        What a returning reader missed is read from the database, a page at a time and no faster
        than it is taken; what is committed from then on comes from the feed. While the database is
        away there is nothing.
        """
        if not self._follows:
            try:
                said = await self._caught_up()
            except _AWAY:
                await asyncio.sleep(min(seconds, BACK_OFF_SECONDS))
                return b""
            if said or not self._follows:
                return said
        if not self._lines:
            self._woken.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                if not self._lines:  # then nothing up to here is still to be sent
                    self.last = max(self.last, self.feed.position)
                    return b""
        lines = [self._lines.popleft() for _ in range(min(len(self._lines), PAGE))]
        self.last = lines[-1].told.id
        return b"".join(line.text for line in lines)

    def mark(self) -> bytes:
        """A sign of life that says how far the stream has come, so that little is read again."""
        return b": alive\nid: %d\n\n" % self.last

    def put(self, line: Line) -> None:
        """Hand an event on; who has too many of them waiting is cut off."""
        if line.told.id <= self.last or not self.sight.covers(line.told):
            return
        if len(self._lines) >= BUFFERED:
            self._lines.clear()
            self.cut.set()
            return
        self._lines.append(line)
        self._woken.set()

    async def _caught_up(self) -> bytes:
        until = self.feed.position
        if self.last >= until:  # nothing is awaited from here on, so none falls in between
            self.feed.add(self)
            self._follows = True
            return b""
        if not self._resumed and not await self.feed.can_tell(self.last, until):
            self.last = until
            return written(until, RESET, {"id": until, "kind": RESET})
        self._resumed = True
        found = await self.feed.read(self.last, until, self.sight)
        self.last = found[-1].id if len(found) == PAGE else until
        return b"".join(Line(told).text for told in found)


class Feed:
    """The listening connection, for as long as somebody reads."""

    def __init__(self, engine: Engine, listen_url: str) -> None:
        self.position = 0
        """Every event up to this id was handed on, or will never be there."""
        self.started = asyncio.Event()
        self._engine = engine
        self._url = listen_url
        self._returning = asyncio.Semaphore(1)
        self._all: set[Reader] = set()
        self._of: dict[int, set[Reader]] = {}
        self._chance = Random()

    def add(self, reader: Reader) -> None:
        """Hand on to this reader what comes from now on."""
        self._among(reader).add(reader)

    def remove(self, reader: Reader) -> None:
        """Hand on nothing more."""
        self._among(reader).discard(reader)
        if reader.sight.agent_id is not None and not self._among(reader):
            del self._of[reader.sight.agent_id]

    def _among(self, reader: Reader) -> set[Reader]:
        agent = reader.sight.agent_id
        return self._all if agent is None else self._of.setdefault(agent, set())

    async def run(self) -> None:
        """Follow the events until cancelled; a lost database is waited for, and nothing missed."""
        while True:
            try:
                await self._follow()
            except (psycopg.Error, OSError, *_AWAY) as error:
                reason = str(getattr(error, "orig", None) or error).strip().splitlines()
                log.warning("live_lost", reason=reason[0] if reason else type(error).__name__)
            await asyncio.sleep(BACK_OFF_SECONDS * self._chance.uniform(0.1, 1.0))

    async def _follow(self) -> None:
        url = driver_url(self._url).set(drivername="postgresql")
        connecting = psycopg.AsyncConnection.connect(
            make_conninfo(
                url.render_as_string(hide_password=False),
                application_name="assignment-workers gateway live",
                connect_timeout=5,
                **KEEPALIVES,
            ),
            autocommit=True,
        )
        async with await connecting as connection:
            # Listening comes first: whatever commits after the next read wakes us.
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            if not self.started.is_set():
                _, newest = await self._ask(events.bounds)
                await self._settle()
                self.position = newest
                self.started.set()
            while True:
                await self._read_on()
                async for _ in connection.notifies(timeout=SILENCE_SECONDS, stop_after=1):
                    pass

    async def _read_on(self) -> None:
        """Hand on all that is there."""
        while found := await self._ask(
            lambda connection: events.between(connection, self.position, limit=PAGE)
        ):
            whole = _without_gap(found, self.position)
            self._hand_on(found[:whole])
            if whole < len(found):
                await self._settle()
                await self._hand_on_up_to(found[-1].id)
            if len(found) < PAGE:
                return

    async def _hand_on_up_to(self, until: int) -> None:
        """What is not there by now never will be."""
        while self.position < until:
            found = await self._ask(
                lambda connection: events.between(connection, self.position, until, limit=PAGE)
            )
            self._hand_on(found)
            if len(found) < PAGE:
                self.position = until

    async def _settle(self) -> None:
        """Wait for each transaction that may hold an id back."""
        held_back = await self._ask(events.writers)
        while held_back:
            await asyncio.sleep(SETTLE_SECONDS)
            held_back &= await self._ask(events.writers)

    def _hand_on(self, found: Iterable[Told]) -> None:
        for told in found:
            line = Line(told)
            for reader in self._all:
                reader.put(line)
            if told.agent_id is not None:
                for reader in self._of.get(told.agent_id, ()):
                    reader.put(line)
            self.position = told.id

    async def read(self, after: int, until: int, sight: Sight) -> Sequence[Told]:
        """A page of what is there for these eyes beyond `after`, up to `until`."""
        return await self._ask_for_reader(
            lambda connection: events.between(
                connection, after, until, limit=PAGE, agent_id=sight.agent_id, kinds=sight.kinds
            )
        )

    async def can_tell(self, last: int, until: int) -> bool:
        """Whether what a reader missed is kept, and little enough."""
        if until - last > BEHIND_AT_MOST:
            return False
        oldest, _ = await self._ask_for_reader(events.bounds)
        return last + 1 >= oldest

    async def is_known(self, last: int) -> bool:
        """Whether there can have been an event of this id."""
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
        """Readers who come back take turns: all at once they would keep the feed waiting."""
        async with self._returning:
            return await self._ask(what)


def _without_gap(found: Sequence[Told], after: int) -> int:
    """How many of these follow one another from `after` on."""
    return next(
        (place for place, told in enumerate(found) if told.id != after + 1 + place), len(found)
    )


class Live:
    """Who reads, and the feed while somebody does."""

    def __init__(self, engine: Engine, listen_url: str) -> None:
        self._engine = engine
        self._url = listen_url
        self._readers: dict[Reader, str | None] = {}
        self._feed: Feed | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the gateway ends."""
        return self._closed

    @property
    def readers(self) -> int:
        """Streams now."""
        return len(self._readers)

    @asynccontextmanager
    async def reader(
        self, sight: Sight, last: int | None, *, agent_token: str | None
    ) -> AsyncIterator[Reader]:
        """A stream of what `sight` covers, beyond `last`, or from now on.

        Raises `Problem`: 503 while the database cannot answer or `READERS` read, 429 for one more
        of `READERS_OF_ONE` by an agent's token.
        """
        if self._closed or len(self._readers) >= READERS:
            raise unavailable("no more streams can be opened here now")
        mine = [token for token in self._readers.values() if token == agent_token]
        if agent_token is not None and len(mine) >= READERS_OF_ONE:
            raise unavailable(
                f"this token has {READERS_OF_ONE} streams open already",
                status=HTTPStatus.TOO_MANY_REQUESTS,
            )
        feed = self._running()
        reader = Reader(feed, sight, last or 0)
        self._readers[reader] = agent_token
        try:
            await self._placed(reader, last)
            yield reader
        finally:
            feed.remove(reader)
            del self._readers[reader]
            if not self._readers:
                await self._stop()

    async def close(self) -> None:
        """End every stream; nobody is let in any more."""
        self._closed = True
        for reader in self._readers:
            reader.cut.set()
        await self._stop()

    async def _placed(self, reader: Reader, last: int | None) -> None:
        feed = reader.feed
        try:
            async with asyncio.timeout(START_SECONDS):
                await feed.started.wait()
                known = last is not None and await feed.is_known(last)
        except (TimeoutError, *_AWAY) as error:
            raise unavailable("the database cannot answer") from error
        if last is None:
            reader.last = feed.position
        elif not known:
            # An id of another database, or of one that was set back: as if all had been missed.
            reader.last = feed.position - BEHIND_AT_MOST - 1

    def _running(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self._engine, self._url)
            self._task = asyncio.create_task(self._feed.run())
            self._task.add_done_callback(self._ended)
        return self._feed

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A feed ends by `_stop` alone; by a defect no reader must wait in vain."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("live_failed", exc_info=error)
            self._feed = None
            for reader in self._readers:
                reader.cut.set()

    async def _stop(self) -> None:
        task, self._task, self._feed = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
