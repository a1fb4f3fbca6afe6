"""When a process that ended is started again, and when it is given up."""

from __future__ import annotations

from collections import deque

LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""Who ran this long is started again at once, as if for the first time."""
START_SECONDS = 10.0
"""Who failed sooner than this failed at its start."""
FAILURES = 5
WINDOW_SECONDS = 60.0


class RestartPolicy:
    """For one process: at once the first time, then after 1, 2, 4 ... 30 seconds.

    Given up after `FAILURES` failures at its start within `WINDOW_SECONDS`, if it has never run
    for `START_SECONDS`. One that has, and fails for a while, takes nobody down with it.
    """

    def __init__(self) -> None:
        self._restarts = 0
        self._failures: deque[float] = deque()
        self.has_run = False
        """Whether it ever ran for `START_SECONDS`: what it is started with is right."""

    def after_end(self, *, now: float, lived: float, failed: bool) -> float | None:
        """Seconds until the next start; None: no more. `now` is of any steady clock, in seconds.

        `failed` is false for a process that ended on purpose, or for want of what it needs.
        """
        if lived >= STEADY_SECONDS:
            self._restarts = 0
        self.has_run = self.has_run or lived >= START_SECONDS
        if failed and lived < START_SECONDS:
            self._failures.append(now)
        while self._failures and self._failures[0] < now - WINDOW_SECONDS:
            self._failures.popleft()
        if len(self._failures) >= FAILURES and not self.has_run:
            return None
        self._restarts += 1
        if self._restarts == 1:
            return 0.0
        return float(min(2 ** (self._restarts - 2), LONGEST_PAUSE_SECONDS))
