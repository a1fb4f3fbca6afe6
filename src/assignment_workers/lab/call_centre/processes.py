"""The memory and the open files of the processes of a stack, for each life of each process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psutil

Life = tuple[int, float]
"""A process's id and the time of its start; no two processes share both."""


class Measured(NamedTuple):
    """The measurement of one process at one moment.

    Several processes may have the same name, at once or one after the other.
    """

    name: str
    life: Life
    memory_mb: float
    """The memory that the process shares with no other process, in MB."""
    files: int


def measured(stack: int) -> Iterator[Measured]:
    """Measure every process of a stack. `stack` is the id of its first process.

    Raises `psutil.Error`.
    """
    main = psutil.Process(stack)
    for process in (main, *main.children(recursive=True)):
        try:
            name = "up" if process.pid == main.pid else role(process)
            if name is not None:
                yield Measured(
                    name,
                    (process.pid, process.create_time()),
                    process.memory_full_info().uss / 1e6,
                    process.num_fds(),
                )
        except psutil.NoSuchProcess:
            continue  # it has just ended


def role(process: psutil.Process) -> str | None:
    """Return the role of a process of a stack; None for short-lived processes.

    A fork has a title for a command line, whose words are not apart. Raises `psutil.Error`.
    """
    match " ".join(process.cmdline()).split():
        case [*_, "process", "sequencer", "--lane", lane]:
            return f"sequencers of {lane}"
        case [*_, "process", "sequencer"]:
            return "sequencers"
        case [*_, "process", str(name)]:
            return name
        case [first, *_] if "valkey" in first:
            return "Valkey"
        case _:
            return None
