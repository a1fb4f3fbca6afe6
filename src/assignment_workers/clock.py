"""Where processes read the time, so that a test can fix it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

DATABASE_AHEAD_KEY = "assignment-workers:database-ahead"
"""In Redis: how many seconds the database's clock is ahead of Redis's, as the sequencer found."""


class Clock(Protocol):
    """Gives the present instant, timezone-aware UTC."""

    def __call__(self) -> datetime: ...


def system_clock() -> datetime:
    """This host's clock. Decisions about holds and deadlines use the database's instead.

    See `sequencer.transaction_runner` and `client.wire.database_clock`.
    """
    return datetime.now(UTC)
