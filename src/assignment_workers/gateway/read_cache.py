"""What the database says now, read once for all who look at the same moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.reports.figures import Figures, figures
from assignment_workers.errors import CrmUnavailable
from assignment_workers.gateway.problems import unavailable
from assignment_workers.sequencer.term import APPLICATION

log = structlog.get_logger()

T = TypeVar("T")

FRESH_SECONDS = 0.5
"""How old what is shown may be when it is read."""
AT_ONCE = 2
"""Connections that viewers take: the others are left for who asks for users."""
READS = 200
"""Different reads that are remembered."""


@dataclass
class ReadCache:
    """Reads of the database, each done at most once in its time, for any number of viewers.

    For any thread. One who asks while another reads the same waits for that.
    """

    engine: Engine
    lanes: Lanes = ONE_LANE
    clock: Callable[[], float] = time.monotonic
    _kept: dict[object, tuple[float, Any]] = field(default_factory=dict)
    _age: int = 0
    """Grows when what was read until then is to be forgotten."""
    _locks: dict[object, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(AT_ONCE)
    )

    def figures(self) -> Figures:
        """See `assignment.reports.figures`."""
        return self.read(
            "figures", lambda each: figures(each, application=APPLICATION, lanes=self.lanes)
        )

    def read(
        self, name: object, what: Callable[[Connection], T], *, seconds: float = FRESH_SECONDS
    ) -> T:
        """What `what` reads, or read under this name less than `seconds` ago.

        `what` reads by its connection alone: it must not ask for another here.

        Raises `Problem` 503 where the database cannot answer.
        """
        return self.once(name, lambda: self._ask(what), seconds=seconds)

    def once(self, name: object, what: Callable[[], T], *, seconds: float = FRESH_SECONDS) -> T:
        """What `what` returns, or returned under this name less than `seconds` ago."""
        with self._guard:
            if len(self._locks) > READS:
                self._locks.clear()
                self._kept.clear()
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            at, found = self._kept.get(name, (float("-inf"), None))
            if self.clock() - at >= seconds:
                age, found = self._age, what()
                if age == self._age:
                    self._kept[name] = self.clock(), found
            kept: T = found
            return kept

    def forget(self) -> None:
        """Whoever asks from now on gets what is so from now on: something was changed."""
        with self._guard:
            self._age += 1
            self._kept.clear()

    def _ask(self, what: Callable[[Connection], T]) -> T:
        try:
            with self._slots, self.engine.connect() as connection:
                return what(connection)
        except CrmUnavailable as error:
            log.warning("unavailable", reason=str(error))
            raise unavailable(error.general, retry_after=error.retry_after) from error
        except (DBAPIError, PoolTimeout) as error:
            raise unavailable("the database cannot answer") from error
