"""What the processes of a stack take: memory and open files, of each life of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import psutil

Life = tuple[int, float]
"""A process's id and the time of its start, which no other process has."""


class Measured(NamedTuple):
    """One process at this moment; several have the same name, one after the other or together."""

    name: str
    life: Life
    memory_mb: float
    """What it shares with no other process."""
    files: int


def measured(stack: int) -> Iterator[Measured]:
    """Every process of the stack whose first process has this id. Raises `psutil.Error`."""
    main = psutil.Process(stack)
    for process in (main, *main.children(recursive=True)):
        try:
            name = _name(process.cmdline(), is_main=process.pid == main.pid)
            if name is not None:
                yield Measured(
                    name,
                    (process.pid, process.create_time()),
                    process.memory_full_info().uss / 1e6,
                    process.num_fds(),
                )
        except psutil.NoSuchProcess:
            continue  # it has just ended


def _name(command: Sequence[str], *, is_main: bool) -> str | None:
    """What a process of the stack is; None for what comes and goes, like a build's backend."""
    if is_main:
        return "up"
    match command:
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
