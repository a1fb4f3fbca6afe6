"""The interface that each dialer implements to take part in the replay of the incident."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine


class RecordNotFound(Exception):
    """The row to update does not exist. The original's database layer calls this error P2025."""


@dataclass(frozen=True)
class Given:
    """A user who was handed to an agent.

    `token` identifies the agent's hold on the user. `Contender.finish` finds the hold by `token`.
    """

    user_id: int
    token: object


class Contender(Protocol):
    """A way to hand out users: the original dialer, a remedy for it, or this project.

    Each way has a database of its own. The methods are thread-safe.
    """

    def ask(self, agent: int) -> Given | None:
        """Return the next user for this agent; None if the agent is shown an empty queue.

        Raises `RecordNotFound` if the row that was found is gone when it is to be updated.
        """

    def finish(self, agent: int, given: Given) -> bool:
        """Record that the call ended with the outcome `no_answer`, as all calls of the replay do.

        Return False if the agent's hold on the user no longer existed.
        """

    def check_level(self) -> None:
        """Run the five-minute job, which rebuilds the queue if few users are left in it."""

    def rebuild(self) -> None:
        """Run the hourly job, which rebuilds the queue."""

    def rebuilds(self) -> int:
        """Return the number of rebuilds so far."""

    def settle(self) -> None:
        """Wait, after all agents have left, until the holds that have a lease have expired."""

    def stuck(self) -> int:
        """Return the number of users whom the tables show as held.

        After all agents have left, these users are lost.
        """

    def close(self) -> None:
        """Close the connections."""


def warm(engine: Engine, connections: int) -> None:
    """Open `connections` database connections now, so that no request has to wait for one."""
    with ExitStack() as keep:
        for _ in range(connections):
            keep.enter_context(engine.connect())
