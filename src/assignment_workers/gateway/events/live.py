"""The open streams of a gateway, which send events to clients as the events are committed.

A client gets each event that it may see, in the order of ids, and none twice. It can resume after
its last id at any gateway. One database connection serves all streams. It is closed while no stream
is open.
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
"""The greatest number of events that are buffered for one client.

If one more event arrives while the buffer is full, the client is disconnected. The client can
resume after the last event that it got.
"""
READERS = 2_000
READERS_OF_ONE = 10
"""The greatest number of streams that one agent's token may have open at a gateway."""
START_SECONDS = 5.0

RESET = "reset"
"""The kind of the event that tells a client that its missed events cannot be sent. The client must
then read the current state again.
"""


@dataclass(eq=False)
class EventReader:
    """One open stream of events.

    `last`: the event id up to which the stream is complete. Each event up to this id was sent, or
    precedes the start of the stream, or is not for this client. If missed events cannot be sent,
    the client gets the event `reset` instead of them.
    """

    feed: Feed
    event_filter: EventFilter
    last: int
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the stream has to end, because its client is too slow or the gateway stops."""
    _lines: deque[SerializedEvent] = field(default_factory=deque)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _resumed: bool = False
    """True once a check has shown that all events that the client missed can still be sent."""
    _follows: bool = False
    """True once the events that the client missed were sent. Later events come from the feed."""

    async def more(self, seconds: float) -> bytes:
        """Return the next bytes to send, after at most `seconds`; empty if there are none.

        The events that a reconnected client missed are read from the database, one page per call.
        Later events come from the feed. While the database is unavailable, the result is empty.
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
                if not self._lines:  # then every event up to here was sent
                    self.last = max(self.last, self.feed.position)
                    return b""
        if not self._lines:
            return b""  # the reader was told to begin again
        lines = [self._lines.popleft() for _ in range(min(len(self._lines), PAGE))]
        self.last = lines[-1].stored.id
        return b"".join(line.text for line in lines)

    def mark(self) -> bytes:
        """Return an SSE comment with the stream's last id, from which the client can resume."""
        return b": alive\nid: %d\n\n" % self.last

    def put(self, line: SerializedEvent) -> None:
        """Buffer an event for sending; end the stream if the buffer is full."""
        if line.stored.id <= self.last or not self.event_filter.covers(line.stored):
            return
        if len(self._lines) >= BUFFERED:
            self._lines.clear()
            self.cut.set()
            return
        self._lines.append(line)
        self._woken.set()

    def restart(self) -> None:
        """Send the client the event `reset`: the database was replaced by an older copy of itself.

        The client has seen events that the database no longer has.
        """
        self.feed.remove(self)
        self._lines.clear()
        self._resumed = self._follows = False
        self.last = self.feed.position - BEHIND_AT_MOST - 1
        self._woken.set()

    async def _caught_up(self) -> bytes:
        until = self.feed.position
        if self.last >= until:  # no await from here on, so no event falls in between
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
    """The open event streams of this gateway, and their common feed."""

    def __init__(self, engine: Engine, listen_url: str) -> None:
        self._engine = engine
        self._url = listen_url
        self._readers: dict[EventReader, str | None] = {}
        self._feed: Feed | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once the gateway stops."""
        return self._closed

    @property
    def readers(self) -> int:
        """The number of open streams."""
        return len(self._readers)

    @asynccontextmanager
    async def reader(
        self, event_filter: EventFilter, last: int | None, *, agent_token: str | None
    ) -> AsyncIterator[EventReader]:
        """Open a stream of the events that the filter includes.

        The stream begins after the event id `last`, or if `last` is None, with the next new event.
        Raises `Problem` 503 while the database cannot answer or 2,000 streams (`READERS`) are open,
        and 429 if an agent's token has 10 streams (`READERS_OF_ONE`) open.
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
        """End every stream and accept no more readers."""
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
            # The id is of another or a restored database: treat all events as missed.
            reader.last = feed.position - BEHIND_AT_MOST - 1

    def _running(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self._engine, self._url)
            self._task = asyncio.create_task(self._feed.run())
            self._task.add_done_callback(self._ended)
        return self._feed

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End every stream if the task that runs the `Feed` has failed: no events would arrive."""
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
