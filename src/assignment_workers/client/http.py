"""The client over HTTP through a gateway, for programs that cannot reach Redis."""

from __future__ import annotations

import json
import ssl
import threading
import time
from datetime import datetime, timedelta
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

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
from assignment_workers.client.assignment_client import TIMEOUT, AssignmentClient
from assignment_workers.client.reading import (
    as_finish_answer,
    as_heartbeat_answer,
    as_request_answer,
    as_state_answer,
    no_answer,
)
from assignment_workers.clock import Clock, system_clock
from assignment_workers.errors import UsageError
from assignment_workers.identity import new_id
from assignment_workers.runtime.errors import NoStack
from assignment_workers.runtime.stack import running_stack
from assignment_workers.settings import Settings

MARGIN_SECONDS = 2.0
"""Seconds added to a request's own timeout, for the way to the gateway and back."""
PAUSE_SECONDS = 0.1
"""Seconds before a call is repeated when the gateway could not be reached."""


class HttpClient(AssignmentClient):
    """A client of the gateway's HTTP interface. Safe to share between threads.

    Each thread keeps a connection open.
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
        try:
            parts = urlsplit(check_address(gateway_url, "http", "https"))
        except ValueError as error:
            raise UsageError(f"gateway_url: {error}") from None
        if not parts.hostname:
            raise UsageError("gateway_url: the host is missing, as in https://gateway.example")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._clock = clock
        self._randomness = randomness or Random()
        self._mine = threading.local()
        self._opened: list[HTTPConnection] = []
        self._lock = threading.Lock()

    @classmethod
    def of_stack(cls, home: Path = Path(".assignment-workers")) -> HttpClient:
        """Return a client, with its token, of the stack that `assignment-workers up` runs here.

        `home` is the home of the stack. Raises `NoStack` if none runs on it, and `HomeUnusable` if
        the home belongs to another user.
        """
        stack = running_stack(Settings.model_validate({"home": home}))
        if stack is None or stack.gateway_url is None:
            raise NoStack(home.absolute())
        return cls(stack.gateway_url, token=stack.gateway_token)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()

    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> RequestAnswer:
        """Request the next user for this agent, from `queue` or any queue allowed to the agent.

        See `AssignmentClient.request_next`.
        """
        payload = {
            "agent_id": agent_id,
            "queue": queue,
            "request_id": request_id or str(new_id(self._clock(), self._randomness)),
        }
        return as_request_answer(self._post("/v1/requests", payload, timeout, timed=True))

    def complete(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        outcome: str,
        *,
        version: int | None = None,
        notes: str | None = None,
        callback_at: datetime | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment with the outcome of the call.

        See `AssignmentClient.complete`.
        """
        payload = {
            "agent_id": agent_id,
            "version": version,
            "outcome": outcome,
            "notes": notes,
            "callback_at": callback_at.isoformat() if callback_at else None,
        }
        return self._finish(assignment_id, "complete", payload, timeout)

    def skip(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment, because the agent does not want to call this user now.

        See `AssignmentClient.skip`.
        """
        payload = {"agent_id": agent_id, "version": version}
        return self._finish(assignment_id, "skip", payload, timeout)

    def defer(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        until: datetime | None = None,
        seconds: int | None = None,
        why: str | None = None,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment; offer the user to nobody before `until`, or for `seconds`.

        See `AssignmentClient.defer`.
        """
        payload = {
            "agent_id": agent_id,
            "version": version,
            "until": until.isoformat() if until else None,
            "seconds": seconds,
            "why": why,
        }
        return self._finish(assignment_id, "defer", payload, timeout)

    def close_user(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        why: str,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment and close this dialer queue for the user, for the reason `why`.

        See `AssignmentClient.close_user`.
        """
        payload = {"agent_id": agent_id, "version": version, "why": why}
        return self._finish(assignment_id, "close", payload, timeout)

    def accept(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Accept the offer: the assignment becomes accepted work with a new lease.

        See `AssignmentClient.accept`.
        """
        payload = {"agent_id": agent_id, "version": version}
        return self._finish(assignment_id, "accept", payload, timeout)

    def state(
        self,
        agent_id: int,
        becomes: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> StateAnswer:
        """Set the agent's state to `becomes`, such as `available` or `break`.

        See `AssignmentClient.state`. `by` is not sent, because the token identifies the caller.
        """
        payload = {"state": becomes, "why": why}
        path = f"/v1/agents/{agent_id}/state"
        return as_state_answer(self._post(path, payload, timeout, timed=False))

    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> HeartbeatAnswer:
        """Record that the agent is present; the first one that names an offer accepts it.

        See `AssignmentClient.heartbeat`.
        """
        payload = {"assignment_id": None if assignment_id is None else str(assignment_id)}
        path = f"/v1/agents/{agent_id}/heartbeat"
        return as_heartbeat_answer(self._post(path, payload, timeout, timed=False))

    def release(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment; the user can be offered again at once.

        See `AssignmentClient.release`.
        """
        payload = {"agent_id": agent_id, "version": version}
        return self._finish(assignment_id, "release", payload, timeout)

    def renew(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Renew the lease of the assignment: it starts again from now.

        See `AssignmentClient.renew`.
        """
        payload = {"agent_id": agent_id, "version": version}
        return self._finish(assignment_id, "renew", payload, timeout)

    def active_assignment(
        self, agent_id: int, *, timeout: timedelta = TIMEOUT
    ) -> Held | Unavailable | Refused | None:
        """Return the agent's active assignment; None if there is none."""
        ends = time.monotonic() + timeout.total_seconds()
        found = self._send("GET", f"/v1/agents/{agent_id}/assignment", None, ends)
        match found:
            case (HTTPStatus.OK, body):
                return Held.model_validate(body)
            case (HTTPStatus.NOT_FOUND, _):
                return None
            case None:
                return no_answer(timeout)
            case (status, body):
                answer = as_finish_answer(_answer(status, body))
                return answer if isinstance(answer, Refused) else _unavailable(answer)

    def _finish(
        self, assignment_id: UUID | str, move: str, payload: dict[str, Any], timeout: timedelta
    ) -> FinishAnswer:
        return as_finish_answer(
            self._post(f"/v1/assignments/{assignment_id}/{move}", payload, timeout, timed=False)
        )

    def _post(
        self, path: str, payload: dict[str, Any], timeout: timedelta, *, timed: bool
    ) -> object:
        """Post `payload` to the gateway and return the answer.

        The call is repeated while the gateway cannot be reached and time is left; every command may
        be sent twice. `timed`: True to send the timeout with the payload.
        """
        ends = time.monotonic() + timeout.total_seconds()
        while True:
            left = ends - time.monotonic()
            if timed:
                payload["timeout_ms"] = min(max(round(left * 1000), 100), 30_000)
            found = self._send("POST", path, payload, ends + MARGIN_SECONDS)
            if found is not None:
                return _answer(*found)
            if time.monotonic() + PAUSE_SECONDS >= ends:
                return no_answer(timeout)
            time.sleep(PAUSE_SECONDS)

    def _send(
        self, method: str, path: str, payload: dict[str, Any] | None, ends: float
    ) -> tuple[int, object] | None:
        """Send one HTTP request; return the status and the JSON of the response.

        None if no gateway answered before `ends`, a time of the monotonic clock.
        """
        connection = self._connection()
        connection.timeout = max(ends - time.monotonic(), 0.1)
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        try:
            body = None if payload is None else json.dumps(payload)
            connection.request(method, f"{self._path}{path}", body, self._headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, HTTPException, ValueError):
            connection.close()
            return None

    def _connection(self) -> HTTPConnection:
        found: HTTPConnection | None = getattr(self._mine, "connection", None)
        if found is None:
            found = (
                HTTPSConnection(self._host, self._port, context=ssl.create_default_context())
                if self._secure
                else HTTPConnection(self._host, self._port)
            )
            self._mine.connection = found
            with self._lock:
                self._opened.append(found)
        return found


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
"""The `Code` for each HTTP status of a refusal whose body has none, because a proxy sent it."""


def _unavailable(answer: object) -> Unavailable:
    if isinstance(answer, Unavailable):
        return answer
    return Unavailable(retry_after=2.0, reason=f"not an answer: {answer!r:.80}")
