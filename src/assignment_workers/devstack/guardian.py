"""Ends what a supervisor leaves behind when it is killed and can no longer do so itself.

Run by its path, this file is a small process of its own session that reads from a pipe which
processes there are. The pipe ends when the supervisor does, however it does: then every worker is
sent SIGTERM, and SIGKILL after `WORKER_SECONDS`; after them the servers are stopped, last started
first, each with its own signal and time, so that their data is whole. What remains of a process's
group goes with it.

Its limits: a process that left its group (none of ours does) is not reached; and when the guardian
was killed too, nothing ends the rest: the next start on the same home ends servers left over there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

WORKER_SECONDS = 5.0


class Ward(NamedTuple):
    """A process to end: the leader of its group."""

    pid: int
    signal: int
    seconds: float
    """How long it may take after the signal."""
    server: bool
    """Ended after all that are not."""


class Guardian:
    """The supervisor's end of the pipe.

    Closed in good order, with nothing to end, it goes quietly.
    """

    def __init__(self, *, keeps: Sequence[int] = ()) -> None:
        """Start it; it holds the descriptors `keeps` open for as long as it runs."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=keeps,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def watch(self, ward: Ward) -> None:
        """From now on, end this process should the supervisor be killed."""
        self._write(f"watch {ward.pid} {ward.signal} {ward.seconds} {int(ward.server)}\n")

    def forget(self, pid: int) -> None:
        """This process has ended."""
        self._write(f"forget {pid}\n")

    def close(self) -> None:
        """End it, after it has ended all that it was not told to forget."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            return
        try:
            os.write(self._process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            return  # it was killed: the stack is worth more than its guardian


def main() -> None:
    """Read the wards until the pipe ends, then end them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wards: dict[int, Ward] = {}
    for line in sys.stdin:
        word, pid, *rest = line.split()
        if word == "watch":
            ending, seconds, server = rest
            wards[int(pid)] = Ward(int(pid), int(ending), float(seconds), server == "1")
        else:
            wards.pop(int(pid), None)
    newest_first = list(reversed(wards.values()))
    _end_together([ward for ward in newest_first if not ward.server])
    for ward in newest_first:
        if ward.server:
            _send(ward.pid, ward.signal)
            _await([ward], ward.seconds)
            _kill_group(ward.pid)


def _end_together(workers: list[Ward]) -> None:
    for ward in workers:
        _send(ward.pid, ward.signal)
    _await(workers, WORKER_SECONDS)
    for ward in workers:
        _kill_group(ward.pid)
    _await(workers, 1.0)


def _await(wards: list[Ward], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(_runs, wards)):
        time.sleep(0.02)


def _runs(ward: Ward) -> bool:
    try:
        os.kill(ward.pid, 0)
        # A zombie has ended; whether anybody reaps it here is not our business.
        return Path(f"/proc/{ward.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


if __name__ == "__main__":
    main()
