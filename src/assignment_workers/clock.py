"""Where processes read the time, so that a test can fix it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Gives the present instant, timezone-aware UTC."""

    def __call__(self) -> datetime: ...


def system_clock() -> datetime:
    """This host's clock. Decisions about holds use the database's instead: see `sequencer.line`."""
    return datetime.now(UTC)
