"""An embedded server that is ready to be started."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.process import Child, ProcessSpec
from assignment_workers.runtime.errors import StackFailed

POLL_SECONDS = 0.02
READY_SECONDS = 300.0
"""The longest time of a start. It is long because a server recovers its data after a crash."""


@dataclass(frozen=True)
class Server:
    """The process of a server, and the address at which programs reach it."""

    spec: ProcessSpec
    url: str
    make: Callable[[], None] = lambda: None
    """A function to call once before the start: it creates the data if there are none."""


def start(server: Server, log: Log, guardian: Guardian) -> Child:
    """Start the server without a supervisor and wait until it serves: for tests and short runs.

    The caller stops the child. Raises `StackFailed`.
    """
    child = Child(server.spec, log, guardian)
    deadline = time.monotonic() + READY_SECONDS
    while not is_ready(child):
        if child.is_over:
            raise StackFailed(failure(child))
        if time.monotonic() > deadline:
            child.kill()
            raise StackFailed(f"{child.spec.name} was not ready within {READY_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    return child


def is_ready(child: Child) -> bool:
    """Return True if this process, not another server on its port, serves now."""
    return not child.is_over and (child.spec.ready is None or child.spec.ready(child.pid))


def failure(child: Child) -> str:
    """Return one line about a server that ended when it should not have."""
    words = child.last_words()
    return (
        f"{child.spec.name} ended with {child.how_it_ended()}"
        + (f": {words}" if words else "")
        + (f" (log: {child.spec.log})" if child.spec.log else "")
    )
