"""The process that ends what a supervisor leaves behind when the supervisor is killed.

Run by its path, this file is a small process in a session of its own. The supervisor names the
running processes to it over a pipe. The pipe closes when the supervisor ends, for whatever reason.
Then every worker (a process that is no server) is sent SIGTERM, and SIGKILL after `WORKER_SECONDS`.
After the workers the servers are stopped, the last started first, each with its own signal and
time, so that no data are lost. When a process has ended or its time is over, its whole process
group is killed.

The guardian has two limits. First, it does not reach a child process that left the group of the
named process. Our own processes never leave that group. The processes of PostgreSQL's sessions do,
but they normally end with their server. Second, if the guardian was killed too, nothing ends the
processes at once. A stack has a home, its directory. The next stack on the same home ends the
servers and workers that this stack left over (`orphans`).
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
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from assignment_workers.devstack.orphans import WorkerRecord

WORKER_SECONDS = 5.0


class Ward(NamedTuple):
    """A process that the guardian ends when the supervisor is gone.

    The process must be the leader of a process group. After the process has ended, or when its time
    is over, the guardian kills all processes of that group.
    """

    pid: int
    signal: int
    seconds: float
    """For a server: the most seconds that the guardian waits for the server to end.

    The wait begins when the guardian has sent the signal `signal` to the server. A server that has
    not ended after this time is killed. For every other process, the fixed time `WORKER_SECONDS` is
    used instead.
    """
    server: bool
    """True for a server. Servers are ended after all other processes."""


class Guardian:
    """The supervisor's side of the guardian, a process that cleans up if the supervisor is killed.

    This class starts the guardian process and names to it, over a pipe, the running processes of
    the stack. When the pipe closes, the guardian ends every process that was passed to `watch` but
    not to `forget`.
    """

    def __init__(self, *, keeps: Sequence[int] = (), record: WorkerRecord | None = None) -> None:
        """Start the guardian process.

        `keeps`: file descriptors that the guardian keeps open, such as those of locks. `record`:
        the file of the stack's running workers. Each process passed to `watch`, except servers, is
        stored there until it is passed to `forget`.
        """
        self._record = record
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
        """The process id of the guardian."""
        return self._process.pid

    def watch(self, ward: Ward) -> None:
        """Add a process that the guardian ends if the supervisor is killed."""
        self._write(f"watch {ward.pid} {ward.signal} {ward.seconds} {int(ward.server)}\n")
        if self._record is not None and not ward.server:
            self._record.add(ward.pid)

    def forget(self, pid: int) -> None:
        """Remove a process, which has ended, from those that the guardian would end."""
        self._write(f"forget {pid}\n")
        if self._record is not None:
            self._record.remove(pid)

    def close(self) -> None:
        """Close the pipe and wait for the guardian, which first ends the remaining processes."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            return
        try:
            os.write(self._process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            return  # the guardian was killed: the stack goes on without it


def main() -> None:
    """Run the guardian process: when the supervisor has ended, end the processes that it leaves.

    Standard input is a pipe, on which the supervisor names its running processes. The pipe closes
    when the supervisor ends.
    """
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
        # A zombie has ended; whether its parent reaps it does not matter here.
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
