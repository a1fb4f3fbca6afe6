"""The client over HTTP through a gateway, for programs that cannot reach Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any

import httpx
from httpx_sse import SSEError, connect_sse
from urllib3 import PoolManager, Timeout
from urllib3.exceptions import HTTPError

from assignment_workers.client.assignment_client import AssignmentClient
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
    headers,
)
from assignment_workers.clock import Clock, system_clock

CONNECTIONS_KEPT = 64
"""The greatest number of connections that are kept open while no request uses them."""


class HttpClient(HttpMethods, AssignmentClient):
    """A client of the gateway's HTTP interface. Safe to share between threads.

    Connections are kept open and shared by all threads.
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
        self._gateway, self._token = gateway_address(gateway_url), token
        self._connections = PoolManager(
            num_pools=1, headers=headers(token), maxsize=CONNECTIONS_KEPT, retries=False
        )

    @classmethod
    def of_stack(cls, home: Path = Path(".assignment-workers")) -> HttpClient:
        """Return a client for a stack that `assignment-workers up` runs on this machine.

        `home` is the home (the directory) of the stack. A relative path starts at the working
        directory. The client uses the stack's own token, which permits everything. Raises `NoStack`
        if no stack runs with this home, if the stack is not ready yet, or if it has no gateway.
        Raises `HomeUnusable` if the directory belongs to another operating system user.
        """
        from assignment_workers.runtime.errors import NoStack
        from assignment_workers.runtime.stack import running_stack
        from assignment_workers.settings import Settings

        stack = running_stack(Settings.model_validate({"home": home}))
        if stack is None or stack.gateway_url is None:
            raise NoStack(home.absolute())
        return cls(stack.gateway_url, token=stack.gateway_token)

    def close(self) -> None:
        """Close the connections to the gateway."""
        self._connections.clear()

    def exchange(self, exchange: HttpExchange) -> Reply | None:
        """Carry out one step of a client method: send an HTTP request, or sleep for a `Pause`.

        A client method is a generator, and each value that it yields is such a step (see `core`).
        Returns the response. Returns None after a pause, or if no response in JSON arrived in time.
        """
        match exchange:
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case HttpRequest():
                return self._send(exchange)

    def events(
        self, *, agent_id: int | None = None, after: int | None = None
    ) -> Iterator[StreamedEvent]:
        """Yield events as they are committed, without end; reconnect after a lost connection.

        `agent_id`: only events of this agent are yielded. If it is None, all events are yielded
        that the token may see. `after`: the id of an event; only events after that event are
        yielded. If it is None, only events that are committed from now on are yielded. No event is
        yielded twice. Raises `EventsRefused`, for example if the gateway refuses the token. Leaving
        the loop closes the connection.
        """
        position = EventPosition(agent_id, after)
        with httpx.Client(**connection_options(self._gateway, self._token)) as http:
            while True:
                with suppress(httpx.HTTPError, SSEError):  # connected again below
                    yield from _stream(http, position)
                time.sleep(position.pause())

    def _send(self, said: HttpRequest) -> Reply | None:
        body = None if said.payload is None else json.dumps(said.payload).encode()
        try:
            answer = self._connections.request(
                said.method,
                f"{self._gateway}{said.path}",
                body=body,
                timeout=Timeout(total=max(said.seconds, 0.1)),
                redirect=False,
            )
            read: Any = answer.json()
        except (HTTPError, OSError, ValueError):
            return None
        return answer.status, read


def _stream(http: httpx.Client, position: EventPosition) -> Iterator[StreamedEvent]:
    said = {"params": position.parameters, "headers": position.headers}
    with connect_sse(http, "GET", PATH, **said) as source:
        if source.response.status_code != HTTPStatus.OK:
            source.response.read()
            return position.refused(source.response.status_code, decoded(source.response))
        position.connected()
        for each in source.iter_sse():
            if (event := position.event(each)) is not None:
                yield event
