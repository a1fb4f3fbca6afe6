"""Embedded servers for as long as a block lasts: a PostgreSQL alone, or a whole stack."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from assignment_workers.devstack import postgres, server
from assignment_workers.devstack.guardian import Guardian, Ward
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.ports import LOOPBACK
from assignment_workers.runtime.errors import StackFailed
from assignment_workers.runtime.home import hold
from assignment_workers.runtime.stack import Stack, running_stack
from assignment_workers.settings import Settings

READY_SECONDS = 300.0
"""The longest time of a start on a busy machine.

A stack that fails to start ends earlier, which is reported at once.
"""
STOP_SECONDS = 60.0
FIRST = re.compile(rb"\b(assigned|no user)\b")
"""A pattern for the last line that a start prints; both dialer queues are built by then."""


@contextmanager
def database() -> Iterator[str]:
    """Yield the address of an empty PostgreSQL that syncs its writes. Raises `StackFailed`."""
    with (
        tempfile.TemporaryDirectory(prefix="assignment-workers-") as folder,
        hold(Path(folder) / "home") as home,
        Guardian(keeps=[home.descriptor]) as guardian,
    ):
        made = postgres.prepare(home.path / "postgres")
        child = server.start(made, Log(sys.stderr, colour=False), guardian)
        try:
            yield made.url
        finally:
            child.stop()


@contextmanager
def stack(folder: Path, variables: Mapping[str, str]) -> Iterator[Stack]:
    """Run a whole stack in this folder, with a demo CRM and a standby sequencer.

    A separate process runs `up` with only the settings in `variables`; the environment's are
    ignored. Its output goes to `stack.log` in the folder. Raises `StackFailed`.
    """
    home, log = folder / "home", folder / "stack.log"
    ours = ("ASSIGNMENT_WORKERS_", "DATABASE_URL", "REDIS_URL", "BROKER_URL", "CRM_DATABASE_URL")
    environment = {name: each for name, each in os.environ.items() if not name.startswith(ours)}
    environment |= {
        **variables,
        "ASSIGNMENT_WORKERS_HOME": str(home),
        "ASSIGNMENT_WORKERS_GATEWAY_PORT": str(_free_port()),
        "ASSIGNMENT_WORKERS_FLOWER_PORT": str(_free_port()),
    }
    command = [sys.executable, "-m", "assignment_workers", "up", "--demo", "--sequencers", "2"]
    with log.open("wb") as output, Guardian() as guardian:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        guardian.watch(Ward(process.pid, signal.SIGTERM, STOP_SECONDS, server=True))
        try:
            yield _ready(process, home, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            guardian.forget(process.pid)


def _ready(process: subprocess.Popen[bytes], home: Path, log: Path) -> Stack:
    """Wait until the stack works and has printed its first assignment; return its addresses."""
    settings = Settings.model_validate({"home": home})
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if (found := running_stack(settings)) and FIRST.search(log.read_bytes()):
            return found
        if process.poll() is not None:
            break
        time.sleep(0.1)
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    why = [line for line in words if "stopping: " in line] or words or ["it said nothing"]
    raise StackFailed(f"the stack did not start: {why[-1]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
