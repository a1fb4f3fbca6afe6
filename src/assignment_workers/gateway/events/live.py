"""Events as they are committed, to any number of readers: one listening connection for them all.

Every reader gets each event it may see once, in the order of ids, and can go on from the id it had
last, here or at another gateway. Nothing runs while nobody reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import structlog
from sqlalchemy import Engine

from assignment_workers.gateway.events.feed import (
    AWAY,
    BACK_OFF_SECONDS,
    BEHIND_AT_MOST,
    PAGE,
    EventFilter,
    Feed,
    SerializedEvent,
    written,
)
from assignment_workers.gateway.problems import unavailable

log = structlog.get_logger()

BUFFERED = 8 * PAGE
"""Events kept for one reader; who is further behind is cut off, and reads on from the database."""
READERS = 2_000
READERS_OF_ONE = 10
"""Streams at once: in all, and by one agent's token."""
START_SECONDS = 5.0

RESET = "reset"
"""What a reader is told who has missed what cannot be told any more: read how all stands anew."""


@dataclass(eq=False)
class EventReader:
    """One stream. `last` is the id up to which all that it may see was given out."""

    feed: Feed
    event_filter: EventFilter
    last: int
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is over: this reader is too slow, or the gateway ends."""
    _lines: deque[SerializedEvent] = field(default_factory=deque)
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
            except AWAY:
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
        self.last = lines[-1].stored.id
        return b"".join(line.text for line in lines)

    def mark(self) -> bytes:
        """A sign of life that says how far the stream has come, so that little is read again."""
        return b": alive\nid: %d\n\n" % self.last

    def put(self, line: SerializedEvent) -> None:
        """Hand an event on; who has too many of them waiting is cut off."""
        if line.stored.id <= self.last or not self.event_filter.covers(line.stored):
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
        found = await self.feed.read(self.last, until, self.event_filter)
        self.last = found[-1].id if len(found) == PAGE else until
        return b"".join(SerializedEvent(stored).text for stored in found)


class Live:
    """Who reads, and the feed while somebody does."""

    def __init__(self, engine: Engine, listen_url: str) -> None:
        self._engine = engine
        self._url = listen_url
        self._readers: dict[EventReader, str | None] = {}
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
        self, event_filter: EventFilter, last: int | None, *, agent_token: str | None
    ) -> AsyncIterator[EventReader]:
        """A stream of what `event_filter` covers, beyond `last`, or from now on.

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
        reader = EventReader(feed, event_filter, last or 0)
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

    async def _placed(self, reader: EventReader, last: int | None) -> None:
        feed = reader.feed
        try:
            async with asyncio.timeout(START_SECONDS):
                await feed.started.wait()
                known = last is not None and await feed.is_known(last)
        except (TimeoutError, *AWAY) as error:
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
