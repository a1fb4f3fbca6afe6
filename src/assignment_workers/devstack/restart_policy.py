"""Restarts of a process that ended: the pause before each, and the number of failures allowed."""

from __future__ import annotations

from collections import deque

LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A process that ran for at least this many seconds is restarted without a pause."""
START_SECONDS = 10.0
"""A process that fails within this many seconds after its start counts as a failed start."""
FAILURES = 5
WINDOW_SECONDS = 60.0


class RestartPolicy:
    """The restarts of one process: the first without a pause, the next after 1, 2, 4 ... 30 s.

    If the process ran for at least `STEADY_SECONDS` seconds, its pauses begin again from the start:
    the next restart is without a pause, the one after that has a pause of 1 s, and so on.

    A failed start is a failure within `START_SECONDS` seconds after the start. After `FAILURES`
    failed starts within `WINDOW_SECONDS` seconds, the process is not restarted. But a process that
    has once run for at least `START_SECONDS` seconds is always restarted.
    """

    def __init__(self) -> None:
        self._restarts = 0
        self._failures: deque[float] = deque()
        self.has_run = False
        """True if the process once ran for at least `START_SECONDS` seconds. This shows that its
        configuration is correct, so it is restarted after any number of failures.
        """

    def after_end(self, *, now: float, lived: float, failed: bool) -> float | None:
        """Return the seconds until the next start of the process; None for no further start.

        `now` is the time of any steady clock, and `lived` the time that the process ran, both in
        seconds. `failed` is False for a process that ended on purpose, or because a server that it
        needs was down.
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
