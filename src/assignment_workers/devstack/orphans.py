"""Ends the processes that an earlier stack left running when it and its guardian were killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from assignment_workers.runtime.errors import StackFailed
from assignment_workers.runtime.home import write_private

END_SECONDS = 5.0
"""The most seconds from SIGTERM to the end of a worker; then the worker is killed."""


class WorkerRecord:
    """A file that lists the running workers of a stack.

    The file is in the stack's directory, the home. If a stack leaves workers behind, the next stack
    with the same home ends them. A worker is identified by its process id and start time, because
    ids are reused. Only the process that has locked the home (`runtime.home.hold`) may use the
    record; it may do so from any thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._running: dict[int, float] = {}
        self._lock = threading.Lock()

    def add(self, pid: int) -> None:
        """Record the worker with this process id, which has just started."""
        with self._lock, contextlib.suppress(psutil.NoSuchProcess):
            self._running[pid] = psutil.Process(pid).create_time()
            self._write()

    def remove(self, pid: int) -> None:
        """Delete the worker with this process id, which has ended, from the record."""
        with self._lock:
            if self._running.pop(pid, None) is not None:
                self._write()

    def end_orphans(self) -> int:
        """End the workers that an earlier stack recorded and left running; return their number."""
        orphans = self._orphans()
        for each in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        psutil.wait_procs(orphans, END_SECONDS)
        for each in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(each.pid, signal.SIGKILL)  # a worker leads a group of its own
        psutil.wait_procs(orphans, END_SECONDS)
        return len(orphans)

    def _orphans(self) -> list[psutil.Process]:
        try:
            recorded = json.loads(self._path.read_text(encoding="utf-8"))
            workers = [(int(pid), float(begun)) for pid, begun in recorded]
        except (FileNotFoundError, ValueError, TypeError):
            return []
        found = []
        for pid, begun in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == begun and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _write(self) -> None:
        write_private(self._path, json.dumps(list(self._running.items())))


def end_orphans(
    name: str, matches: Callable[[Sequence[str]], bool], number: signal.Signals, *, seconds: float
) -> None:
    """End every process whose command line `matches`: by signal `number`, then by SIGKILL.

    SIGKILL follows after `seconds`. `name` is the kind of server, for the error message. The
    matching servers belong to one home (a stack's directory). Only the process that has locked that
    home may call this. Raises `StackFailed` if a process cannot be ended.
    """
    strays = [stray for stray in psutil.process_iter() if matches(_command_line(stray))]
    for ending, patience in ((number, seconds), (signal.SIGKILL, 5.0)):
        for stray in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                stray.send_signal(ending)
        deadline = time.monotonic() + patience
        while strays and time.monotonic() < deadline:
            strays = [stray for stray in strays if matches(_command_line(stray))]
            if strays:
                time.sleep(0.02)
    if strays:
        raise StackFailed(f"process {strays[0].pid}, an earlier {name}, cannot be ended")


def _command_line(process: psutil.Process) -> Sequence[str]:
    """Return the command line of a process; empty if it has ended or cannot be read."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []
