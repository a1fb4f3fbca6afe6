"""The health of the system as this gateway reads and reports it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from assignment_workers.health.model import Health
from assignment_workers.health.monitor import HealthMonitor
from assignment_workers.health.readings import NO_ANSWER, Readings
from assignment_workers.health.signs import AnswerCounts, LifeSigns
from assignment_workers.schema.deadline import hang_up
from assignment_workers.schema.engine import ConnectionGate
from assignment_workers.settings import Settings

STALE = timedelta(seconds=10)
"""If the latest health reading is older than this, this gateway reports that it is not ready,
because its monitoring thread is stuck.
"""
WINDOW_SECONDS = 60
RECENT_SECONDS = 15


class DatabaseGuard:
    """Ends statements that wait for a database that does not answer; refuses new connections to it.

    On a frozen server every statement would wait for its whole timeout. While the health readings
    get no answer from the database, statements of the gateway's engine fail at once instead.
    """

    def __init__(self, engine: Engine, gate: ConnectionGate) -> None:
        """Track the connections of `engine` that are in use, so that `update` can end them.

        `gate` is the switch that stops `engine` from opening new connections.
        """
        self._engine = engine
        self._gate = gate
        self._in_use: set[psycopg.Connection[Any]] = set()
        self._lock = threading.Lock()
        event.listen(engine, "checkout", self._taken)
        event.listen(engine, "checkin", self._returned)

    def update(self, readings: Readings) -> None:
        """Refuse new connections while the database does not answer; otherwise allow them.

        `readings` is the latest reading of the system's health, which shows whether the database
        answers. When the database stops answering, the statements that wait for it are ended.
        """
        was_down = self._gate.is_closed
        self._gate.is_closed = readings.database.trouble == NO_ANSWER
        if self._gate.is_closed and not was_down:
            with self._lock:
                waiting = list(self._in_use)
            for each in waiting:
                hang_up(each)
            self._engine.dispose()

    def _taken(self, _: DBAPIConnection, record: ConnectionPoolEntry, __: object) -> None:
        with self._lock:
            self._in_use.add(cast("psycopg.Connection[Any]", record.driver_connection))

    def _returned(self, _: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        with self._lock:
            self._in_use.discard(cast("psycopg.Connection[Any]", record.driver_connection))


class AnswerWindow:
    """Counts, per second, the calls of agents and how many of them were answered 503."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[tuple[int, int, int]] = deque()

    def count(self, *, unavailable: bool) -> None:
        """Count one call. `unavailable`: True if it was answered 503."""
        now = int(self._clock())
        at, asked, useless = self._seconds[-1] if self._seconds else (now - 1, 0, 0)
        if at == now:
            self._seconds[-1] = (now, asked + 1, useless + unavailable)
        else:
            self._seconds.append((now, 1, int(unavailable)))
            while self._seconds[0][0] <= now - WINDOW_SECONDS:
                self._seconds.popleft()

    def counts(self) -> AnswerCounts:
        """Return the numbers of agents' calls and of those answered 503, in two periods.

        The periods are the last minute and the last 15 seconds (`RECENT_SECONDS`). The shorter
        period shows if calls are answered 503 at present. If the shorter period has no such call,
        all calls of the minute that were answered 503 came earlier.
        """
        now = int(self._clock())
        minute = [each for each in list(self._seconds) if each[0] > now - WINDOW_SECONDS]
        recent = [each for each in minute if each[0] > now - RECENT_SECONDS]
        return AnswerCounts(
            asked=sum(each[1] for each in minute),
            unavailable=sum(each[2] for each in minute),
            recent_asked=sum(each[1] for each in recent),
            recent_unavailable=sum(each[2] for each in recent),
        )


class SystemHealth:
    """A gateway's monitoring: it reads the health of the system, and controls the `DatabaseGuard`.

    It also stores in Redis, every second, that this gateway is alive.
    """

    def __init__(self, settings: Settings, engine: Engine, gate: ConnectionGate) -> None:
        self._settings = settings
        self._guard = DatabaseGuard(engine, gate)
        self._monitor: HealthMonitor | None = None
        self._signs: LifeSigns | None = None
        self.answers = AnswerWindow()

    def start(self) -> None:
        """Read the health of the system once, then repeat the reading in a background thread.

        The first reading takes seconds if a server is down.
        """
        monitor = HealthMonitor(self._settings, read=self._guard.update)
        self._signs = LifeSigns(
            self._settings.redis,
            "gateway",
            folder=self._settings.home,
            more=lambda: {"answers": self.answers.counts(), "sees": monitor.sees()},
        )
        self._signs.start()
        monitor.start()
        self._monitor = monitor

    def stop(self) -> None:
        """Stop reading the health, and store in Redis that this gateway ended in an orderly way."""
        if self._monitor is not None:
            self._monitor.stop()
        if self._signs is not None:
            self._signs.stop(in_order=True)

    @property
    def latest(self) -> Health:
        """The latest health of the system; without components before the first reading."""
        if self._monitor is None:
            return Health(at=datetime.min.replace(tzinfo=UTC), components=[])
        return self._monitor.latest

    @property
    def is_current(self) -> bool:
        """True if the latest health reading is younger than `STALE`."""
        return datetime.now(UTC) - self.latest.at < STALE
