"""Sends a caller's command to the workers and returns the answer, if the caller stays connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import Request, Response
from pydantic_core import to_json
from starlette.types import Receive

from assignment_workers.assignment.answers import Unavailable
from assignment_workers.client import AsyncClient
from assignment_workers.client.commands import CommandCall
from assignment_workers.gateway.metrics import Metrics
from assignment_workers.gateway.problems import STATUS_OF, refused, unavailable

log = structlog.get_logger()

CLIENT_CLOSED_REQUEST = 499
"""The HTTP status for a caller who disconnected before the response; nobody reads the response."""


@dataclass
class CommandDispatcher:
    """Sends commands to the sequencer and converts their answers to HTTP responses."""

    client: AsyncClient
    metrics: Metrics
    abandoned: Callable[[object], None]
    """A function that is called with the answer to a command whose caller has disconnected."""

    async def ask(
        self,
        request: Request,
        command: CommandCall,
        timeout: timedelta,  # noqa: ASYNC109 - the command's, which ends by itself
        **facts: str,
    ) -> Response:
        """Send a command or a request to the workers; return the answer as an HTTP response.

        `command`: the command, or an agent's request for a user. `facts`: further fields of the
        response. If an agent's command is sent with another token than the agent's own, such as the
        token of a frontend, the name of that token is recorded with the events of the command.

        If the caller disconnects before the answer, a message that has not been sent is dropped. If
        the message has been sent, its answer is passed to `abandoned`, so that an assignment in the
        answer can be released. There are two cases. If the answer and the disconnection are noticed
        at the same moment, this method passes the answer. If the answer comes later, the attribute
        `client`, which has sent the message, passes the answer.
        """
        began = time.perf_counter()
        move = command.task.rpartition(".")[2]
        caller = getattr(request.state, "caller", None)
        if caller is not None and caller.sender is not None:
            command = command.sent_by(caller.sender)
        asked = asyncio.ensure_future(self.client.ask(command, timeout))
        left = asyncio.ensure_future(until_gone(request.receive))
        self.metrics.waiting.inc()
        try:
            await asyncio.wait((asked, left), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                self.metrics.gone.inc()
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            answer = _plain(asked.result())
            if left.done():  # the answer and the disconnection came together
                self.metrics.gone.inc()
                self.abandoned(answer)
        finally:
            asked.cancel()
            left.cancel()
            self.metrics.waiting.dec()
        seconds = time.perf_counter() - began
        log.debug("answered", move=move, outcome=answer["outcome"], ms=round(seconds * 1000, 2))
        self.metrics.seconds.labels(move).observe(seconds)
        self.metrics.answers.labels(move, answer["outcome"]).inc()
        request.state.outcome = answer["outcome"]
        return response(answer, **facts)


def response(answer: dict[str, Any], **facts: str) -> Response:
    """Return a JSON response with the fields of `answer`, and `facts` as further fields.

    If the `outcome` in `answer` is `refused` or `unavailable`, the response has problem details
    (RFC 9457) and `facts` instead.
    """
    match answer:
        case {"outcome": "refused", "code": code, "reason": reason}:
            status = STATUS_OF.get(code, HTTPStatus.CONFLICT)
            soon = answer.get("retry_after")
            return refused(status, code, reason, retry_after=soon).response(**facts)
        case {"outcome": "unavailable", "reason": reason, "retry_after": seconds}:
            return unavailable(reason, retry_after=seconds).response(**facts)
        case _:
            return Response(to_json(answer | facts), media_type="application/json")


def _plain(answer: object) -> dict[str, Any]:
    if isinstance(answer, dict) and isinstance(answer.get("outcome"), str):
        return answer
    reason = "the workers answered what this version cannot read"
    down = answer if isinstance(answer, Unavailable) else None
    return (down or Unavailable(retry_after=1.0, reason=reason)).model_dump(mode="json")


async def until_gone(receive: Receive) -> None:
    """Wait until the caller disconnects. The body of the request must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
