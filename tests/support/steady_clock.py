"""A steady clock for tests, in place of `time.monotonic`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SteadyClock:
    """Stands still until a test moves `now` on; goes on by `slow` with each look at it."""

    now: float = 1000.0
    slow: float = 0.0

    def __call__(self) -> float:
        self.now += self.slow
        return self.now
