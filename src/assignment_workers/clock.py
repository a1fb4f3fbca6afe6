"""The source of the current time in a process; a test can replace it by a fixed time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

DATABASE_AHEAD_KEY = "assignment-workers:database-ahead"
"""The Redis key with the seconds by which the database's clock is ahead of Redis's clock.

The sequencer measures the difference and writes it.
"""


class Clock(Protocol):
    """A function that returns the current time, with time zone UTC."""

    def __call__(self) -> datetime: ...


def system_clock() -> datetime:
    """Return the time of this host's clock.

    Decisions about assignments and deadlines use the database's clock instead
    (`sequencer.transaction_runner`, `client.wire.database_clock`).
    """
    return datetime.now(UTC)
