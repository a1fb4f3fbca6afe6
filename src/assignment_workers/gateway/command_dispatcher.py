"""One call through the coalescing client, for as long as its caller stays."""

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
"""Nobody reads it: the caller has gone."""


@dataclass
class CommandDispatcher:
    """Puts commands to the sequencer and makes responses of the answers."""

    client: AsyncClient
    metrics: Metrics
    abandoned: Callable[[object], None]
    """Takes on an answer whose caller has gone."""

    async def ask(
        self,
        request: Request,
        command: CommandCall,
        timeout: timedelta,  # noqa: ASYNC109 - the command's, which ends by itself
        **facts: str,
    ) -> Response:
        """The answer as a response, with `facts` added to it.

        A caller who disconnects takes the command back, if it has not gone out yet; a hold that
        nobody is told of is taken on by `abandoned`.
        """
        began = time.perf_counter()
        move = command.task.rpartition(".")[2]
        asked = asyncio.ensure_future(self.client.ask(command, timeout))
        left = asyncio.ensure_future(until_gone(request.receive))
        self.metrics.waiting.inc()
        try:
            await asyncio.wait((asked, left), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                self.metrics.gone.inc()
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            answer = _plain(asked.result())
            if left.done():  # the answer and the hanging up came together
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
        return response(answer, **facts)


def response(answer: dict[str, Any], **facts: str) -> Response:
    """An answer as HTTP says it: what is refused and what is unavailable is a problem."""
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
    """Wait until the caller has hung up. For a call whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
