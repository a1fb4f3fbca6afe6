"""Embedded servers: their description, their start, and the check that they serve."""

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
"""The most seconds that a server may take to start. It is long because of recovery after a crash.
"""


@dataclass(frozen=True)
class Server:
    """An embedded server: its process, and the address at which programs reach it."""

    spec: ProcessSpec
    url: str
    make: Callable[[], None] = lambda: None
    """A function to call once before the server is started. It creates the server's data if there
    are none yet.
    """


def start(server: Server, log: Log, guardian: Guardian) -> Child:
    """Start the server without a supervisor, and wait until it serves. For tests and short runs.

    The caller stops the returned process. Raises `StackFailed` if the server does not start.
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
    """Return True if this process serves now. Another server on the same port does not count."""
    return not child.is_over and (child.spec.ready is None or child.spec.ready(child.pid))


def failure(child: Child) -> str:
    """Return a line about a process that ended unexpectedly, with the last error in its log."""
    words = child.last_words()
    return (
        f"{child.spec.name} ended with {child.how_it_ended()}"
        + (f": {words}" if words else "")
        + (f" (log: {child.spec.log})" if child.spec.log else "")
    )
