"""Holds that nobody was told of: the caller had gone when the answer came.

Each is released after a grace, unless the agent has shown up meanwhile, at this gateway or another:
asked again, renewed or finished.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError
from sqlalchemy import Engine, bindparam, exists, select
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment.answers import Assigned, Held, from_json
from assignment_workers.schema.tables import Assignment, Request

if TYPE_CHECKING:
    from assignment_workers.client import AsyncClient
    from assignment_workers.client.gathering import Call

log = structlog.get_logger()

GRACE = timedelta(seconds=10)


class Abandoned:
    """The holds of callers who have gone, each with a task that waits for the grace to pass."""

    def __init__(self, engine: Engine, *, grace: timedelta = GRACE) -> None:
        self.client: AsyncClient
        """Set before the first call."""
        self._engine = engine
        self._grace = grace
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, call: Call, answer: object) -> None:
        """Take on an answer that nobody waits for."""
        try:
            read = from_json(answer)
        except ValidationError:
            return
        if isinstance(read, Assigned) and not read.replayed:
            task = asyncio.create_task(self._release(read.assignment))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait no longer: those holds end with their lease."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _release(self, held: Held) -> None:
        await asyncio.sleep(self._grace.total_seconds())
        try:
            forgotten = await asyncio.to_thread(self._is_forgotten, held)
        except DBAPIError:
            return  # the lease ends it
        if forgotten:
            answer = await self.client.release(held.id, held.agent_id, version=held.version)
            log.info(
                "released_abandoned",
                assignment_id=str(held.id),
                agent_id=held.agent_id,
                outcome=answer.outcome,
            )

    def _is_forgotten(self, held: Held) -> bool:
        with self._engine.connect() as connection:
            return bool(
                connection.execute(
                    _FORGOTTEN,
                    {
                        "id": held.id,
                        "agent": held.agent_id,
                        "version": held.version,
                        "until": held.lease_expires_at,
                        "since": held.claimed_at,
                    },
                ).scalar_one()
            )


_FORGOTTEN = select(
    exists().where(
        Assignment.id == bindparam("id"),
        Assignment.state == "active",
        Assignment.version == bindparam("version"),
        Assignment.lease_expires_at == bindparam("until"),
    )
    & ~exists().where(
        Request.answered_at > bindparam("since"), Request.agent_id == bindparam("agent")
    )
)
"""By the primary key, and by the index on `answered_at` over the seconds since the claim."""
