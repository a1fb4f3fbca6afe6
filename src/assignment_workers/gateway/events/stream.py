"""A response that streams server-sent events, and frees its resources when the stream ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from assignment_workers.gateway.command_dispatcher import until_gone
from assignment_workers.gateway.events.feed import EventFilter
from assignment_workers.gateway.events.live import EventReader, Live

log = structlog.get_logger()

MEDIA_TYPE = "text/event-stream"
BEAT_SECONDS = 15.0
"""Seconds between two comments that keep a stream open. The caller's token is checked at each."""
LAST_WORD_SECONDS = 1.0


class EventStream(Response):
    """A response that streams the events that a filter includes, after the id `last`.

    The response ends when the client disconnects or is too slow, when the client's token is
    revoked, or when the gateway stops.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        live: Live,
        event_filter: EventFilter,
        last: int | None,
        *,
        agent_token: str | None,
        may_go_on: Callable[[], Awaitable[bool]],
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._live = live
        self._event_filter = event_filter
        self._last = last
        self._agent_token = agent_token
        self._may_go_on = may_go_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client disconnects, is too slow, or its token is revoked.

        Raises `Problem` if the stream cannot be opened; no byte has been sent then.
        """
        async with self._live.reader(
            self._event_filter, self._last, agent_token=self._agent_token
        ) as reader:
            sending = asyncio.ensure_future(self._send(send, reader))
            over = [
                sending,
                asyncio.ensure_future(until_gone(receive)),
                asyncio.ensure_future(reader.cut.wait()),
            ]
            try:
                await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in over:
                    each.cancel()
                await asyncio.wait(over)
        if not sending.cancelled():
            sending.result()
        elif reader.cut.is_set():
            log.info("stream_cut", agent_id=self._event_filter.agent_id, at=reader.last)
            await _end(send)

    async def _send(self, send: Send, reader: EventReader) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": list(self.raw_headers)}
        )
        await send(_body(b"retry: 2000\n\n" + (reader.mark() if self._last is None else b"")))
        beat = time.monotonic() + BEAT_SECONDS
        while True:
            said = await reader.more(max(beat - time.monotonic(), 0.0))
            if time.monotonic() >= beat:
                if not await self._may_go_on():
                    await _end(send)
                    return
                said += reader.mark()
                beat = time.monotonic() + BEAT_SECONDS
            if said:
                await send(_body(said))


def _body(said: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": said, "more_body": more}


async def _end(send: Send) -> None:
    """Send the end of the response; give up after a second if the client does not read.

    After a failed attempt, the HTTP server closes the connection, because the response is not
    complete.
    """
    try:
        async with asyncio.timeout(LAST_WORD_SECONDS):
            await send(_body(b"", more=False))
    except TimeoutError:
        pass  # the server closes the connection
