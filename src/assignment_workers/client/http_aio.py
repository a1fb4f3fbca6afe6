"""The client over HTTP for asyncio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from random import Random

import httpx
from httpx_sse import SSEError, aconnect_sse

from assignment_workers.client.assignment_client import AsyncAssignmentClient
from assignment_workers.client.core import Pause
from assignment_workers.client.event_stream import PATH, EventPosition, StreamedEvent
from assignment_workers.client.http_core import (
    HttpCore,
    HttpExchange,
    HttpMethods,
    HttpRequest,
    Reply,
    connection_options,
    decoded,
    gateway_address,
)
from assignment_workers.clock import Clock, system_clock


class AsyncHttpClient(HttpMethods, AsyncAssignmentClient):
    """`HttpClient` with coroutines. It must be made and used in one event loop.

    Connections are kept open and shared by all requests. If a caller is cancelled, the gateway
    drops the caller's request, or releases the user whom the request has assigned.
    """

    def __init__(
        self,
        gateway_url: str,
        *,
        token: str | None = None,
        clock: Clock = system_clock,
        randomness: Random | None = None,
    ) -> None:
        """Prepare the client. Raises `UsageError` if `gateway_url` is no address of a gateway."""
        self.core: HttpCore = HttpCore(clock, randomness or Random())
        options = connection_options(gateway_address(gateway_url), token)
        self._connections = httpx.AsyncClient(**options)

    async def close(self) -> None:
        """Close the connections to the gateway."""
        await self._connections.aclose()

    async def exchange(self, exchange: HttpExchange) -> Reply | None:
        """Carry out one step of a client method: send an HTTP request, or sleep for a `Pause`.

        A client method is a generator, and each value that it yields is such a step (see `core`).
        Returns the response. Returns None after a pause, or if no response in JSON arrived in time.
        """
        match exchange:
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case HttpRequest():
                return await self._send(exchange)

    async def events(
        self, *, agent_id: int | None = None, after: int | None = None
    ) -> AsyncIterator[StreamedEvent]:
        """Yield events as they are committed, without end; see `HttpClient.events`."""
        position = EventPosition(agent_id, after)
        while True:
            try:
                async with aclosing(self._stream(position)) as stream:
                    async for each in stream:
                        yield each
            except (httpx.HTTPError, SSEError):
                pass  # connected again below
            await asyncio.sleep(position.pause())

    async def _stream(self, position: EventPosition) -> AsyncGenerator[StreamedEvent, None]:
        said = {"params": position.parameters, "headers": position.headers}
        async with aconnect_sse(self._connections, "GET", PATH, **said) as source:
            if source.response.status_code != HTTPStatus.OK:
                await source.response.aread()
                position.refused(source.response.status_code, decoded(source.response))
                return
            position.connected()
            async for each in source.aiter_sse():
                if (event := position.event(each)) is not None:
                    yield event

    async def _send(self, said: HttpRequest) -> Reply | None:
        body = None if said.payload is None else json.dumps(said.payload).encode()
        try:
            async with asyncio.timeout(max(said.seconds, 0.1)):
                answer = await self._connections.request(
                    said.method, said.path, content=body, timeout=None
                )
            return answer.status_code, answer.json()
        except (httpx.HTTPError, OSError, ValueError):  # TimeoutError is an OSError
            return None
