"""Agents' heartbeats, collected for a second and then written to the database in one transaction.

They do not pass through the assignment queue.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.agents.heartbeats import beat
from assignment_workers.assignment.answers import HeartbeatAnswer, Unavailable
from assignment_workers.client.accepted import Accepted
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings

EVERY_SECONDS = 1.0
"""The shortest time, in seconds, between two writes of heartbeats. After a longer pause, the next
heartbeat is written at once.
"""


@dataclass
class Heartbeats:
    """Collects the agents' heartbeats at one gateway, writes them together, then answers them."""

    engine: Engine
    settings: Settings
    accepted: Accepted = field(default_factory=Accepted)
    """The offers that agents have already accepted by a heartbeat at this gateway. A further
    heartbeat about such an offer sends no second accept command.
    """
    _waiting: dict[int, asyncio.Future[HeartbeatAnswer]] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _written_at: float = float("-inf")

    async def beat(self, agent: int) -> HeartbeatAnswer:
        """Store a heartbeat of the agent, then return the agent's state and assignment.

        The heartbeat records that the agent is present. This method waits until the heartbeat is
        stored. The state and the assignment are read in the same transaction, right after the
        heartbeat is written. Returns `Refused` for an unknown agent, and `Unavailable` if the
        database cannot answer.
        """
        loop = asyncio.get_running_loop()
        if agent not in self._waiting:
            self._waiting[agent] = loop.create_future()
        mine = self._waiting[agent]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())
        return await asyncio.shield(mine)

    async def close(self) -> None:
        """Write the waiting heartbeats."""
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(max(0.0, self._written_at + EVERY_SECONDS - loop.time()))
            waiting, self._waiting = self._waiting, {}
            self._written_at = loop.time()
            answers: dict[int, HeartbeatAnswer]
            try:
                answers = await asyncio.to_thread(self._recorded, list(waiting))
            except (DBAPIError, PoolTimeout):
                down = Unavailable(retry_after=2.0, reason="the database cannot answer")
                answers = dict.fromkeys(waiting, down)
            except BaseException as error:
                for future in waiting.values():
                    future.set_exception(error)
                raise
            for agent, future in waiting.items():
                if not future.done():
                    future.set_result(answers[agent])

    def _recorded(self, agents: list[int]) -> dict[int, HeartbeatAnswer]:
        with self.engine.begin() as connection:
            return beat(connection, dict.fromkeys(agents), dialer=loaded(), settings=self.settings)
