"""Servers that an earlier stack left running, when it and its guardian were both killed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence

import psutil

from assignment_workers.runtime.errors import StackFailed


def end_orphans(
    name: str, matches: Callable[[Sequence[str]], bool], number: signal.Signals, *, seconds: float
) -> None:
    """End every process whose command line `matches`: by the signal, after `seconds` by SIGKILL.

    Only the holder of the home may call this, because no other process may use these servers.
    Raises `StackFailed` if a process cannot be ended.
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
    """Return the command line; empty if the process has ended, even if it is a zombie."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []
