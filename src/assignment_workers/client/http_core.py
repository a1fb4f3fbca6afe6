"""The methods of the clients over HTTP, without I/O; see `core`.

Each method is a generator that yields the HTTP requests to send, gets the responses, and returns
the answer.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from random import Random
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit
from uuid import UUID

import httpx

from assignment_workers.addresses import check_address
from assignment_workers.assignment.answers import (
    Code,
    FinishAnswer,
    HeartbeatAnswer,
    Held,
    Refused,
    RequestAnswer,
    StateAnswer,
    Unavailable,
)
from assignment_workers.assignment.lifecycle.verb import TIMEOUT, VerbCall
from assignment_workers.client.core import Core, Operation, Pause, Steps
from assignment_workers.client.event_stream import SILENT_SECONDS
from assignment_workers.client.reading import (
    as_finish_answer,
    as_heartbeat_answer,
    as_request_answer,
    as_state_answer,
    no_answer,
)
from assignment_workers.clock import Clock
from assignment_workers.errors import UsageError
from assignment_workers.identity import new_id

MARGIN_SECONDS = 2.0
"""Seconds by which the HTTP time-out exceeds the caller's time-out, to allow for the network."""
CONNECT_SECONDS = 5.0
"""The most seconds to wait for a connection to the gateway's stream of events."""
PAUSE_SECONDS = 0.1
"""Seconds before an HTTP request is repeated because the gateway could not be reached."""


@dataclass(frozen=True)
class HttpRequest:
    """An HTTP request that a client method yields, so that the client sends it.

    The method then gets the `Reply`, or None if no response in JSON arrives within `seconds`.
    """

    method: str
    path: str
    payload: Mapping[str, Any] | None
    seconds: float


HttpExchange: TypeAlias = HttpRequest | Pause
Reply: TypeAlias = tuple[int, object]
"""The HTTP status of a response, and its decoded JSON body."""


def gateway_address(gateway_url: str) -> str:
    """Return the gateway's address without a login and without a slash at its end.

    Raises `UsageError` if `gateway_url` is no HTTP address.
    """
    try:
        parts = urlsplit(check_address(gateway_url, "http", "https"))
    except ValueError as error:
        raise UsageError(f"gateway_url: {error}") from None
    if not parts.hostname:
        raise UsageError("gateway_url: the host is missing, as in https://gateway.example")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def headers(token: str | None) -> dict[str, str]:
    """Return the HTTP headers of every request, with the token if there is one."""
    said = {"Content-Type": "application/json"}
    return said | {"Authorization": f"Bearer {token}"} if token else said


def connection_options(gateway: str, token: str | None) -> dict[str, Any]:
    """Return the options of an httpx client for the gateway at this address.

    The operating system's certificates are trusted; proxies named in the environment are not used.
    """
    return {
        "base_url": gateway,
        "headers": headers(token),
        "verify": ssl.create_default_context() if gateway.startswith("https:") else False,
        "trust_env": False,
        "limits": httpx.Limits(max_connections=None),
        "timeout": httpx.Timeout(CONNECT_SECONDS, read=SILENT_SECONDS),
    }


def decoded(response: httpx.Response) -> object:
    """Return the decoded JSON body of a response; None if the body is not JSON."""
    try:
        return response.json()
    except ValueError:
        return None


class HttpCore(Core):
    """The methods of the clients over HTTP, as generators that yield the HTTP requests to send.

    So two clients share the methods. `HttpClient` blocks the calling thread until a response
    arrives. `AsyncHttpClient` is for asyncio: it awaits the response.
    """

    def __init__(self, clock: Clock, randomness: Random) -> None:
        self._clock = clock
        self._randomness = randomness

    def act(self, call: VerbCall) -> Steps[FinishAnswer]:
        """Send a command about an assignment, such as `complete`."""
        path = f"/v1/assignments/{quote(call.arguments['assignment_id'], safe='')}/{call.verb}"
        return as_finish_answer((yield from _post(path, call.own, call.timeout)))

    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[RequestAnswer]:
        """Request the next user; see `Core.request_next`."""
        name = request_id or str(new_id(self._clock(), self._randomness))
        payload = {"agent_id": agent_id, "queue": queue, "request_id": name}
        return as_request_answer((yield from _post("/v1/requests", payload, timeout, timed=True)))

    def state(
        self,
        agent_id: int,
        becomes: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[StateAnswer]:
        """Set the agent's state; see `Core.state`.

        `by` is not sent: the token identifies the caller.
        """
        payload = {"state": becomes, "why": why}
        path = f"/v1/agents/{agent_id}/state"
        return as_state_answer((yield from _post(path, payload, timeout)))

    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[HeartbeatAnswer]:
        """Record that the agent is present; see `Core.heartbeat`."""
        payload = {"assignment_id": None if assignment_id is None else str(assignment_id)}
        path = f"/v1/agents/{agent_id}/heartbeat"
        return as_heartbeat_answer((yield from _post(path, payload, timeout)))

    def active_assignment(
        self, agent_id: int, *, timeout: timedelta = TIMEOUT
    ) -> Steps[Held | Unavailable | Refused | None]:
        """Return the agent's active assignment; None if there is none."""
        path = f"/v1/agents/{agent_id}/assignment"
        match (yield HttpRequest("GET", path, None, timeout.total_seconds())):
            case (HTTPStatus.OK, body):
                return Held.model_validate(body)
            case (HTTPStatus.NOT_FOUND, _):
                return None
            case (int(status), body):
                answer = as_finish_answer(_answer(status, body))
                return answer if isinstance(answer, Refused) else _unavailable(answer)
            case _:
                return no_answer(timeout)


class HttpMethods:
    """The methods that only the clients over HTTP have."""

    active_assignment = Operation(HttpCore.active_assignment)


def _post(
    path: str, payload: Mapping[str, Any], timeout: timedelta, *, timed: bool = False
) -> Steps[object]:
    """Post `payload` to the gateway and return the answer.

    While the gateway cannot be reached and time is left, the request is repeated. That is safe,
    because a command that arrives twice takes effect once. `timed`: True to send the remaining time
    with the payload.
    """
    ends = time.monotonic() + timeout.total_seconds()
    while True:
        left = ends - time.monotonic()
        if timed:
            payload = {**payload, "timeout_ms": min(max(round(left * 1000), 100), 30_000)}
        found: Reply | None = yield HttpRequest("POST", path, payload, left + MARGIN_SECONDS)
        if found is not None:
            return _answer(*found)
        if time.monotonic() + PAUSE_SECONDS >= ends:
            return no_answer(timeout)
        yield Pause(PAUSE_SECONDS)


def _answer(status: int, body: object) -> object:
    """Return the client's answer for a response of the gateway with this status and JSON `body`."""
    payload: dict[str, Any] = body if isinstance(body, dict) else {}
    reason = str(payload.get("detail") or payload.get("reason") or f"HTTP status {status}")
    if status < HTTPStatus.BAD_REQUEST:
        return body
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = payload.get("retry_after")
        return Unavailable(
            retry_after=float(seconds) if isinstance(seconds, int | float) else 2.0, reason=reason
        ).model_dump()
    code, soon = payload.get("code"), payload.get("retry_after")
    read = Code(str(code)) if code in set(Code) else _BY_STATUS.get(status, Code.MALFORMED)
    return Refused(
        code=read, reason=reason, retry_after=float(soon) if isinstance(soon, int | float) else None
    ).model_dump()


_BY_STATUS: dict[int, Code] = {
    HTTPStatus.UNAUTHORIZED: Code.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: Code.FORBIDDEN,
}
"""Maps an HTTP status to the `Code` of a refusal if the body of the response names no `Code`.

The gateway names a `Code` in the body. A response without a `Code` is from a proxy.
"""


def _unavailable(answer: object) -> Unavailable:
    if isinstance(answer, Unavailable):
        return answer
    return Unavailable(retry_after=2.0, reason=f"not an answer: {answer!r:.80}")
