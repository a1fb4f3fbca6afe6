"""The supervisor of a stack's processes: it keeps them running, and ends them all.

The supervisor works in the main thread. Signals and the ends of processes reach it over a queue.
Only long work (`call`) runs in another thread.

The library honcho also runs several processes, but only its printer is used (`log`). Honcho's
manager ends everything when one process ends, and honcho notices the end of a process only when
every process that inherited the output has closed it.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Self, TypeVar

from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.process import Child, ProcessSpec
from assignment_workers.devstack.restart_policy import (
    FAILURES,
    LONGEST_PAUSE_SECONDS,
    WINDOW_SECONDS,
    RestartPolicy,
)
from assignment_workers.devstack.server import POLL_SECONDS, READY_SECONDS, failure, is_ready
from assignment_workers.runtime.errors import StackFailed

LOST_LEADERSHIP = os.EX_TEMPFAIL
"""The exit status of a sequencer that ended itself because it no longer leads. The supervisor
starts the process again and counts no failure.
"""
ABANDONED_SECONDS = 10.0
"""The most seconds that a supervisor, at its end, waits for one thread that `Supervisor.call` has
started and that still runs. If several threads still run, the limit holds for each of them, one
after the other. The supervisor stops all servers before it begins to wait, so a thread that uses a
server normally fails soon.
"""

Result = TypeVar("Result")


class Interrupted(Exception):
    """A signal asked the stack to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)


class Signals:
    """A context manager that queues SIGINT, SIGTERM and SIGHUP for the supervisor."""

    def __init__(self) -> None:
        self.noted: queue.SimpleQueue[signal.Signals | Child | None] = queue.SimpleQueue()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.signal(number, self._note)
            self._before[number] = before
            if number is signal.SIGHUP and before is signal.SIG_IGN:  # started by nohup
                signal.signal(number, signal.SIG_IGN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self.noted.put(signal.Signals(number))


@dataclass
class _Service:
    """A process of the stack: its description, its `Child` while it runs, and its restarts."""

    spec: ProcessSpec
    child: Child | None = None
    was_ready: bool = False
    ready: bool = False
    restart_at: float | None = None
    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)


class Supervisor:
    """A context manager that runs the processes passed to `start`, and at the end stops them.

    The process that was started last is stopped first; servers are stopped after all others. While
    a method of the supervisor waits, it restarts processes that end. It raises `Interrupted` when a
    signal arrives, and `StackFailed` if a process cannot be kept running.
    """

    def __init__(self, log: Log, guardian: Guardian, signals: Signals) -> None:
        self._log = log
        self._guardian = guardian
        self._events = signals.noted
        self._services: dict[str, _Service] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        services = reversed(self._services.values())
        for service in sorted(services, key=lambda each: each.spec.is_server):
            if service.child and not service.child.is_over:
                self._stop(service.child)
        for thread in self._threads:
            thread.join(ABANDONED_SECONDS)

    def start(self, *specs: ProcessSpec) -> None:
        """Start these processes in this order. Does not wait until they are ready."""
        for spec in specs:
            service = _Service(spec)
            self._services[spec.name] = service
            self._run(service)

    def wait_ready(self) -> None:
        """Wait until every started server serves.

        Raises `StackFailed` if a server ends before that, or takes too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not self._servers_ready():
            if time.monotonic() > deadline:
                late = next(each for each in self._services.values() if not each.ready)
                raise StackFailed(f"{late.spec.name} was not ready within {READY_SECONDS:g} s")
            self._step(POLL_SECONDS)

    def call(self, work: Callable[[], Result]) -> Result:
        """Call `work` in a thread; return its result or raise its error.

        While this method waits, a signal raises `Interrupted`. The thread is not stopped then:
        `work` runs on, and its result is dropped. `StackFailed` is raised in the same way if a
        process cannot be kept running.
        """
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised again by `call`
                future.set_exception(error)
            self._events.put(None)

        thread = threading.Thread(target=run, name="supervised-call", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()
        while not future.done():
            self._step(None)
        return future.result()

    def supervise(self, seconds: float | None = None) -> None:
        """Restart processes that end, during `seconds` (None: until a signal arrives)."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            self._step(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _step(self, longest: float | None) -> None:
        """Wait for the next event at most `longest` seconds (None: no limit), and handle it.

        An event is a signal, which raises `Interrupted`, or the end of a process or a thread. Then
        note the servers that have become ready, and start the processes whose restart is due.
        """
        waits = [
            longest,
            None if self._servers_ready() else POLL_SECONDS,
            *(
                max(0.0, service.restart_at - time.monotonic())
                for service in self._services.values()
                if service.restart_at is not None and self._may_restart(service)
            ),
        ]
        try:
            event = self._events.get(timeout=min((w for w in waits if w is not None), default=None))
        except queue.Empty:
            event = None
        match event:
            case signal.Signals():
                raise Interrupted(event)
            case Child():
                self._on_end(event)
            case None:
                pass
        self._look_for_ready()
        self._restart_due()

    def _run(self, service: _Service) -> None:
        spec = service.spec
        service.restart_at = None
        try:
            service.child = Child(spec, self._log, self._guardian, ended=self._events.put)
        except OSError as error:
            if not service.restart_policy.has_run:
                raise StackFailed(f"{spec.name} cannot be started: {error}") from error
            service.restart_at = time.monotonic() + LONGEST_PAUSE_SECONDS
            self._log.say(f"{spec.name} cannot be started: {error}; the others go on")
            return
        service.ready = not spec.is_server
        self._log.note(f"{spec.name} started (pid {service.child.pid})")

    def _on_end(self, child: Child) -> None:
        service = self._services[child.spec.name]
        if service.child is not child:
            return
        service.child = None
        if child.spec.is_server and not service.was_ready:
            raise StackFailed(failure(child))
        now = time.monotonic()
        service.ready = not child.spec.is_server
        pause = service.restart_policy.after_end(
            now=now,
            lived=now - child.started_at,
            failed=child.spec.is_server
            or (child.status != LOST_LEADERSHIP and self._servers_ready()),
        )
        if not self._log.verbose:
            for line in child.last_lines() if child.status != LOST_LEADERSHIP else ():
                self._log.say(f"  {child.spec.name}: {line}")
        if pause is None:
            raise StackFailed(
                f"{failure(child)}, {FAILURES} times at its start within {WINDOW_SECONDS:g} s: "
                "the stack cannot run without it"
            )
        service.restart_at = now + pause
        when = f"in {pause:g} s" if pause else "at once"
        self._log.say(f"{failure(child)}; it is started again {when}")

    def _look_for_ready(self) -> None:
        for service in self._services.values():
            if service.child and not service.ready and is_ready(service.child):
                service.ready = True
                again = " again" if service.was_ready else ""
                service.was_ready = True
                self._log.note(f"{service.spec.name} serves{again}")

    def _restart_due(self) -> None:
        """Start the processes whose restart is due.

        Processes other than servers wait until all servers are ready, because without the servers
        they would fail.
        """
        for service in self._services.values():
            due = service.restart_at is not None and service.restart_at <= time.monotonic()
            if due and self._may_restart(service):
                self._run(service)

    def _may_restart(self, service: _Service) -> bool:
        return service.spec.is_server or self._servers_ready()

    def _servers_ready(self) -> bool:
        return all(service.ready for service in self._services.values() if service.spec.is_server)

    def _stop(self, child: Child) -> None:
        def waiting(left: float) -> None:
            while not self._events.empty():
                if isinstance(self._events.get(), signal.Signals):
                    name = child.spec.name
                    self._log.say(f"already stopping: {name} has {left:.0f} s left to end")

        child.stop(waiting=waiting)
        self._log.note(f"{child.spec.name} stopped")
