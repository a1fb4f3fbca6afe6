"""Reads of the database, shared by all viewers who look at the same time."""

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

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.reports.figures import Figures, figures
from assignment_workers.errors import CrmUnavailable
from assignment_workers.gateway.problems import unavailable
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.term import APPLICATION

log = structlog.get_logger()

T = TypeVar("T")

FRESH_SECONDS = 0.5
"""Seconds for which a value read from the database is used again."""
AT_ONCE = 2
"""The greatest number of database connections that viewers' reads use at the same time. The
gateway's other connections are left for agents' calls.
"""
READS = 200
"""The greatest number of cached values. When there are more, all are dropped."""


@dataclass
class ReadCache:
    """A cache of values read from the database, for any number of viewers.

    May be used from any thread. A caller waits while another thread does the same read.
    """

    engine: Engine
    crm: Crm | None = None
    """The external CRM; None if the CRM is in our own database."""
    lanes: Lanes = ONE_LANE
    clock: Callable[[], float] = time.monotonic
    _kept: dict[object, tuple[float, Any]] = field(default_factory=dict)
    _age: int = 0
    """The number of calls of `forget` so far. If this number changes while a value is being read,
    the value is returned but not cached, because it may be out of date.
    """
    _locks: dict[object, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(AT_ONCE)
    )

    def figures(self) -> Figures:
        """Return the figures for operators, such as the claimable users of each dialer queue.

        The figures are cached for `FRESH_SECONDS`. See `assignment.reports.figures`.
        """
        return self.read(
            "figures",
            lambda each: figures(
                each, loaded(), self.crm, application=APPLICATION, lanes=self.lanes
            ),
        )

    def read(
        self, name: object, what: Callable[[Connection], T], *, seconds: float = FRESH_SECONDS
    ) -> T:
        """Call `what` with a connection and return the result, or the cached result if it is fresh.

        The result is cached under `name` for `seconds`. In the result, the internal integer ids of
        users are replaced by the CRM's ids of these users. `what` must not use another connection
        of this cache. Raises `Problem` 503 if the database cannot answer.
        """
        return self.once(name, lambda: self._ask(what), seconds=seconds)

    def once(self, name: object, what: Callable[[], T], *, seconds: float = FRESH_SECONDS) -> T:
        """Call `what` and return the result, or the cached result if it is fresh.

        The result is cached under `name` for `seconds`.
        """
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
        """Drop all cached values, because data was changed."""
        with self._guard:
            self._age += 1
            self._kept.clear()

    def _ask(self, what: Callable[[Connection], T]) -> T:
        try:
            with self._slots, self.engine.connect() as connection:
                return user_ids.shown(loaded(), connection, what(connection))
        except CrmUnavailable as error:
            log.warning("unavailable", reason=str(error))
            raise unavailable(error.general, retry_after=error.retry_after) from error
        except (DBAPIError, PoolTimeout) as error:
            raise unavailable("the database cannot answer") from error
