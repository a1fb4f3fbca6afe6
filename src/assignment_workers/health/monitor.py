"""The health of the system as one process sees it: read again and again, or once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import UTC, datetime

import structlog

from assignment_workers.health.inputs import Inputs
from assignment_workers.health.judgement import judge, live
from assignment_workers.health.model import Component, Health, HealthState
from assignment_workers.health.readings import READING_SECONDS, Readings
from assignment_workers.health.signs import SeenSign, SeenState
from assignment_workers.settings import Settings

log = structlog.get_logger()

EVERY_SECONDS = 0.5
"""Seconds between the end of one reading and the start of the next."""
WITHIN_SECONDS = 1.2
"""Seconds within which all servers must answer. If one does not, all are read once more, with the
same limit, so that a server on a busy machine is not taken for a frozen one.
"""

ONCE_SECONDS = 3.0
"""Seconds within which all servers must answer if a command reads the health only once.

The limit is longer than `WITHIN_SECONDS`, for two reasons. The command's own process has just
started, and its first reading is slower than later ones. Also, there is no later reading that would
correct a wrong one.
"""


class HealthMonitor:
    """A background thread that reads the health of the system again and again.

    `latest` has the last result, which is at most three seconds old. So callers do not wait for a
    server.

    `since` of a component is the earliest known start of its present state. There are three sources
    for the start: the facts read from the servers, the earlier readings of this process, and the
    signs of life of gateways. A gateway's sign of life names each component that the gateway does
    not see as good, with the component's state and the start of this state.
    """

    def __init__(self, settings: Settings, *, read: Callable[[Readings], None]) -> None:
        """Prepare the monitor. `read` is called with each reading, in the monitor's thread."""
        self._inputs = Inputs(settings)
        self._is_read = read
        self._since: dict[str, SeenState] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="health", daemon=True)
        self.latest = Health(at=datetime.now(UTC), components=[])
        """The latest health of the system. Before the first reading, it has no components."""

    def start(self) -> None:
        """Read the health once, then start the background thread."""
        self._read()
        self._thread.start()

    def stop(self) -> None:
        """Tell the background thread to stop; do not wait until it has stopped.

        If the thread is reading the servers, it completes this reading first. It then closes its
        connections.
        """
        self._stopped.set()

    def sees(self) -> dict[str, SeenState]:
        """Return, by name, the state of each component that this process does not see as good.

        A gateway stores the result in Redis every second.
        """
        return {
            name: seen for name, seen in self._since.items() if seen.state is not HealthState.GOOD
        }

    def _repeat(self) -> None:
        while not self._stopped.wait(EVERY_SECONDS):
            try:
                self._read()
            except Exception:
                # Without this thread every page would tell an old state for ever.
                log.exception("health_not_read")
        self._inputs.close()

    def _read(self) -> None:
        readings = self._inputs.read(within=WITHIN_SECONDS)
        if readings.is_incomplete:
            readings = self._inputs.read(within=WITHIN_SECONDS)
        self._is_read(readings)
        found = judge(readings, self._inputs.installation)
        health = _timed(found, readings, self._since)
        for each in health.components:
            before = self._since.get(each.name)
            if before is None or before.state is not each.state:
                log_change(each, before)
            self._since[each.name] = SeenState(state=each.state, since=each.since or health.at)
        self.latest = health


def log_change(component: Component, before: SeenState | None) -> None:
    """Log that a component has changed its state from `before` (None: it is seen the first time).

    A component that is good when it is first seen is not logged.
    """
    if component.state is HealthState.GOOD and before is None:
        return
    log.info(
        "health_changed",
        component=component.name,
        state=str(component.state),
        finding=component.finding,
    )


def read_once(settings: Settings) -> Health:
    """Read the health of the system once, within three seconds (`ONCE_SECONDS`)."""
    return next(read_repeatedly(settings, within=ONCE_SECONDS))


def read_repeatedly(
    settings: Settings, *, within: float = READING_SECONDS
) -> Generator[Health, None, None]:
    """Yield the health of the system without end. Each value is read when it is requested.

    Each reading takes at most `within` seconds. `since` of a component is the start of its present
    state, if this time is known from the servers or from a gateway; else None.
    """
    inputs = Inputs(settings)
    try:
        while True:
            readings = inputs.read(within=within)
            yield _timed(judge(readings, inputs.installation), readings, {})
    finally:
        inputs.close()


def _timed(health: Health, readings: Readings, own: Mapping[str, SeenState]) -> Health:
    """Return the health; set `since` of each component to the earliest known start of its state.

    Starts are known from `health` itself, from this process's earlier readings (`own`), and from
    the signs of life of gateways (in `readings`).
    """
    signs = live(readings.results.value.signs) if readings.results.value else []
    components = [_since(each, own, signs, health.at) for each in health.components]
    return health.model_copy(update={"components": components})


def _since(
    component: Component,
    own: Mapping[str, SeenState],
    signs: Iterable[SeenSign],
    at: datetime,
) -> Component:
    seen = [own[component.name]] if component.name in own else []
    seen += [each.sees[component.name] for each in signs if component.name in each.sees]
    same = [each.since for each in seen if each.state is component.state]
    if component.since is not None:
        same.append(component.since)
    elif not same and own:
        same.append(at)
    return component.model_copy(update={"since": min(same)}) if same else component
