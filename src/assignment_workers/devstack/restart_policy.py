"""The times at which a process that ended is started again, and the limit of its failures."""

from __future__ import annotations

from collections import deque

LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A process that ran for this long is restarted at once, without a pause."""
START_SECONDS = 10.0
"""A process that failed sooner than this failed at its start."""
FAILURES = 5
WINDOW_SECONDS = 60.0


class RestartPolicy:
    """The pauses before the restarts of one process: none at first, then 1, 2, 4 ... 30 seconds.

    The process is given up after `FAILURES` failures at its start within `WINDOW_SECONDS`, if
    it has never run for `START_SECONDS`. If it has, it is restarted for ever, so that its
    failures do not end the stack.
    """

    def __init__(self) -> None:
        self._restarts = 0
        self._failures: deque[float] = deque()
        self.has_run = False
        """True if the process ever ran for `START_SECONDS`: it is then configured rightly."""

    def after_end(self, *, now: float, lived: float, failed: bool) -> float | None:
        """Return the seconds until the next start, or None for no further start.

        `now` is the time of any steady clock, and `lived` the running time of the process, both in
        seconds. `failed` is false for a process that ended on purpose, or because a server that it
        needs was not there.
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
