"""Count this gateway's answers to requests, for the service levels.

This gateway counts every call of `POST /v1/requests` in memory. Each kind of answer that callers
got has a count of its own. The counts are written to the database every few seconds, so that no
call waits for the database. While the database is unavailable, the counts stay in memory.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assignment_workers.assignment.answer_counts import AnswerTally, CountedHour, store
from assignment_workers.gateway.background import attempt, repeat
from assignment_workers.gateway.command_dispatcher import CLIENT_CLOSED_REQUEST
from assignment_workers.gateway.problems import ASKED_AT
from assignment_workers.schema.tables import AnswerKind

log = structlog.get_logger()

EVERY_SECONDS = 5.0
"""Seconds between two writes of the counts of answers to the database."""
_OUTCOMES = {each.value: each for each in AnswerKind}
_OF_STATUS = {
    HTTPStatus.SERVICE_UNAVAILABLE: AnswerKind.UNAVAILABLE,
    CLIENT_CLOSED_REQUEST: AnswerKind.LEFT,
    HTTPStatus.CONFLICT: AnswerKind.RULED,
}


class AnswerLog:
    """Counts one gateway's answers to requests; writes the counts to the database periodically."""

    def __init__(self, engine: Engine, counts: AnswerTally) -> None:
        self.counts = counts
        self._engine = engine
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to write the counts of answers to the database periodically, until `close`."""
        self._task = asyncio.create_task(repeat(EVERY_SECONDS, self.write))

    async def close(self) -> None:
        """End the periodic writes, and write all remaining counts of answers."""
        if self._task is not None:
            self._task.cancel()
        await attempt(self.write)

    async def write(self) -> None:
        """Write the counts of answers to the database.

        If that fails, the next write includes them.
        """
        hours = self.counts.take()
        if not hours:
            return
        try:
            await asyncio.to_thread(self._store, hours)
        except Exception as error:
            self.counts.put_back(hours)
            if not isinstance(error, DBAPIError | PoolTimeout):
                raise
            log.warning("answers_not_counted", sums=len(hours), why=type(error).__name__)

    def _store(self, hours: list[CountedHour]) -> None:
        with self._engine.begin() as connection:
            store(connection, hours)


class CountedAnswers:
    """ASGI middleware that counts each response to a request for a user, by kind of answer."""

    def __init__(self, app: ASGIApp, *, counts: AnswerTally) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != ASKED_AT or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        kind = AnswerKind.FAILED

        async def watched(message: Message) -> None:
            nonlocal kind
            if message["type"] == "http.response.start":
                kind = _kind(message["status"], scope)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._counts.add(kind)


def _kind(status: int, scope: Scope) -> AnswerKind:
    if status == HTTPStatus.OK:
        outcome = scope["state"]["outcome"]  # as `CommandDispatcher.ask` left it
        return _OUTCOMES.get(outcome, AnswerKind.FAILED)
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return AnswerKind.FAILED if failed else AnswerKind.MISTAKE
