"""Assignments whose caller had disconnected when the answer came.

Each is released after a grace period, unless its agent has meanwhile repeated the request, made
another request, or renewed or ended the assignment, at any gateway. The sequencer checks this in
the transaction that releases the assignment.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from assignment_workers.assignment.answers import Assigned, Done, Held, from_json
from assignment_workers.client import commands
from assignment_workers.client.reading import as_command_answer

if TYPE_CHECKING:
    from assignment_workers.client import AsyncClient

log = structlog.get_logger()

GRACE = timedelta(seconds=10)
TIMEOUT = timedelta(seconds=10)


class Abandoned:
    """Releases assignments whose callers disconnected before they got the answer.

    Each is released after the time `grace`, unless its agent has meanwhile repeated the request,
    made another request, or renewed or ended the assignment, at any gateway.
    """

    def __init__(self, *, grace: timedelta = GRACE) -> None:
        self.client: AsyncClient
        """The client that sends the release commands.

        The client must be set before this object is called for the first time.
        """
        self._grace = grace
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, answer: object) -> None:
        """Release the assignment in `answer` after a grace period, because its caller disconnected.

        During this period the agent may still repeat the request and keep the assignment. An answer
        without an assignment is ignored. So is an answer that was given before to the same request
        (`replayed`).
        """
        try:
            read = from_json(answer)
        except ValidationError:
            return
        if isinstance(read, Assigned) and not read.replayed:
            task = asyncio.create_task(self._release(read.assignment))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel every release of an assignment that is not finished, or that still waits.

        Such an assignment stays active until its agent ends it or its lease ends.
        """
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _release(self, held: Held) -> None:
        await asyncio.sleep(self._grace.total_seconds())
        command = commands.release_unclaimed(
            held.id, held.agent_id, version=held.version, lease_expires_at=held.lease_expires_at
        )
        answer = as_command_answer(await self.client.ask(command, TIMEOUT))
        log.info(
            "abandoned",
            assignment_id=str(held.id),
            agent_id=held.agent_id,
            outcome=answer.outcome,
            released=isinstance(answer, Done) and bool(answer.counts.get("released")),
        )
