"""What the replay asks of a dialer, whichever way it hands users out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine


class RecordNotFound(Exception):
    """The row to update is not there: what the original's database layer calls P2025."""


@dataclass(frozen=True)
class Given:
    """A user whom an agent was given. `token` is the dialer's own, for `finish`."""

    user_id: int
    token: object


class Dialer(Protocol):
    """One way to hand out users, on a database of its own. Called from many threads at once."""

    def ask(self, agent: int) -> Given | None:
        """The next user for this agent; None: the agent is told that the queue is empty.

        Raises `RecordNotFound`.
        """

    def finish(self, agent: int, given: Given) -> bool:
        """The call was made, nobody answered. False: the agent's hold was gone by then."""

    def check_level(self) -> None:
        """The job of every five minutes: rebuild a queue that runs low."""

    def rebuild(self) -> None:
        """The job of every hour: rebuild the queue."""

    def rebuilds(self) -> int:
        """How often it was rebuilt."""

    def settle(self) -> None:
        """All agents are gone: let whatever ends by itself end."""

    def stuck(self) -> int:
        """How many users its records show as held: once all agents are gone, lost ones."""

    def close(self) -> None:
        """Give back the connections."""


def warm(engine: Engine, connections: int) -> None:
    """Open so many connections now, so that no request pays for them."""
    with ExitStack() as keep:
        for _ in range(connections):
            keep.enter_context(engine.connect())
