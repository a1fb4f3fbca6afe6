"""Measures the memory and the number of open files of each process of a running stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psutil

Life = tuple[int, float]
"""A process id and the start time of the process. Together they identify a process."""


class Measured(NamedTuple):
    """The memory and the number of open files of one process at one moment.

    `name` is the role of the process, such as `sequencers`. Several processes may have the same
    role, at the same time or one after the other; `life` tells them apart.
    """

    name: str
    life: Life
    memory_mb: float
    """The memory in MB that the process does not share with other processes."""
    files: int


def measured(stack: int) -> Iterator[Measured]:
    """Yield the memory and the open files of each long-lived process of a stack.

    `stack`: the id of the process that started the stack. That process is measured under the name
    `up`. Its descendants are measured if they have a role (see the function `role`), such as
    sequencers and Valkey. Raises `psutil.Error`, for example if the stack has ended.
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
    """Return the role of a process of a stack, such as `sequencers` or `Valkey`; None: no role.

    The processes of PostgreSQL and short-lived processes have no role. The role is read from the
    command line, which for a forked process is one string in place of separate arguments. Raises
    `psutil.Error`, for example if the process has ended.
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
