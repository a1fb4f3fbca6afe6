"""The interface of a dialer that the replay drives."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine


class RecordNotFound(Exception):
    """The row to update is not there: the original's database layer calls this P2025."""


@dataclass(frozen=True)
class Given:
    """A user who was handed to an agent. `token` identifies the hold for `finish`."""

    user_id: int
    token: object


class Contender(Protocol):
    """One way to hand out users, on a database of its own. Its methods are thread-safe."""

    def ask(self, agent: int) -> Given | None:
        """Return the next user for this agent; None: the agent sees that the queue is empty.

        Raises `RecordNotFound`.
        """

    def finish(self, agent: int, given: Given) -> bool:
        """Record an unanswered call. Return False if the agent's hold was gone by then."""

    def check_level(self) -> None:
        """Do the job of every five minutes: rebuild a queue that runs low."""

    def rebuild(self) -> None:
        """Do the job of every hour: rebuild the queue."""

    def rebuilds(self) -> int:
        """Return the number of rebuilds."""

    def settle(self) -> None:
        """Wait, after all agents have left, until holds that have a lease have expired."""

    def stuck(self) -> int:
        """Return the number of users whom the tables show as held.

        After all agents have left, these users are lost.
        """

    def close(self) -> None:
        """Close the connections."""


def warm(engine: Engine, connections: int) -> None:
    """Open this number of connections now, so that no request has to wait for one."""
    with ExitStack() as keep:
        for _ in range(connections):
            keep.enter_context(engine.connect())
