"""The clock that processes read, so that a test can fix the time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

DATABASE_AHEAD_KEY = "assignment-workers:database-ahead"
"""The Redis key with the seconds by which the database's clock is ahead of Redis's.

The sequencer measures the difference and writes it.
"""


class Clock(Protocol):
    """A source of the present instant, in timezone-aware UTC."""

    def __call__(self) -> datetime: ...


def system_clock() -> datetime:
    """Return this host's time. Decisions on holds and deadlines use the database's clock instead.

    See `sequencer.transaction_runner` and `client.wire.database_clock`.
    """
    return datetime.now(UTC)
