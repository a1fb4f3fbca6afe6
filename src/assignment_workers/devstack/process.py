"""One process of the stack: its start, its stop, and its output."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from assignment_workers.devstack import forks
from assignment_workers.devstack.forks import Fork
from assignment_workers.devstack.guardian import Guardian, Ward
from assignment_workers.devstack.log import Log

LOG_BYTES = 10_000_000
"""The size in bytes above which a server's log file is renamed at the next start. Only one renamed
file is kept.
"""
LINE_BYTES = 65_536
LAST_LINES = 8
"""The number of last lines that are shown if a process fails."""
GRAVE = re.compile(r"FATAL|PANIC|fatal|failed|could not|can't|unable", re.IGNORECASE)


@dataclass(frozen=True)
class ProcessSpec:
    """The description of a process that runs as long as the stack."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that are added to this process's environment."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 30.0
    """The most seconds from `stop_signal` to the end of the process; then it is killed."""
    log: Path | None = None
    """The file for the output of the process; None: the log of the stack."""
    ready: Callable[[int], bool] | None = None
    """For a server: a function that returns, within a second, True if the process with this id
    serves.
    """
    is_ours: bool = False
    """True if the process runs a command of this package.

    `argv` is then the Python interpreter, `-m assignment_workers`, and the command. If possible,
    the command runs in a fork of a process that has already imported the package, because a fork
    starts faster than a new interpreter. If no fork is possible, `argv` is run.
    """
    clear: Callable[[], None] | None = None
    """For a server: a function that ends leftover processes of an earlier server, before each
    start.
    """

    @property
    def is_server(self) -> bool:
        """True for a server: other processes start once it is ready, and stop before it."""
        return self.ready is not None


class Child:
    """A running process of the stack, which leads a session and a process group of its own.

    SIGINT of the terminal goes to the foreground group and therefore does not reach this process.
    When the process ends, its whole group is killed.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        log: Log,
        guardian: Guardian,
        *,
        ended: Callable[[Child], None] | None = None,
    ) -> None:
        """Start the process.

        `ended` is called once, from another thread, when the process has ended. Raises OSError if
        the process cannot be started.
        """
        self.spec = spec
        self._log = log
        self._guardian = guardian
        self._ended = ended
        self._over = threading.Event()
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self.started_at = time.monotonic()
        if spec.clear:
            spec.clear()
        with _output(spec) as output:
            self._log_offset = spec.log.stat().st_size if spec.log else 0
            self._process = _started(spec, output)
        guardian.watch(Ward(self.pid, spec.stop_signal, spec.stop_seconds, server=spec.is_server))
        self._pump = threading.Thread(target=self._read, name=f"{spec.name}-log", daemon=True)
        self._pump.start()
        threading.Thread(target=self._await_end, name=f"{spec.name}-end", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its session and its process group."""
        return self._process.pid

    @property
    def is_over(self) -> bool:
        """True if the process has ended and its output is in the log."""
        return self._over.is_set()

    @property
    def status(self) -> int | None:
        """The exit status; negative if a signal ended the process; None while it runs."""
        return self._process.returncode if self.is_over else None

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process; return False if it still runs after `seconds`."""
        return self._over.wait(seconds)

    def ask_to_stop(self) -> None:
        """Send the process its stop signal."""
        self._process.send_signal(self.spec.stop_signal)

    def kill(self) -> None:
        """Kill the process and its whole group."""
        if not self.is_over:
            _kill_group(self.pid)

    def stop(self, *, waiting: Callable[[float], None] | None = None) -> None:
        """Ask the process to stop and wait for its end. If it is too slow, kill it and log a line.

        `waiting` is called several times a second with the seconds that are left.
        """
        self.ask_to_stop()
        deadline = time.monotonic() + self.spec.stop_seconds
        while not self.wait(0.1):
            left = deadline - time.monotonic()
            if left <= 0:
                self._log.say(
                    f"{self.spec.name} did not end within {self.spec.stop_seconds:g} s: killed"
                )
                self.kill()
                self.wait(5)
                return
            if waiting:
                waiting(left)

    def how_it_ended(self) -> str:
        """Return the end of the process as text, such as `exit status 3` or `signal SIGKILL`."""
        status = self._process.returncode
        if status is not None and status < 0:
            return f"signal {signal.Signals(-status).name}"
        return f"exit status {status}"

    def last_words(self) -> str:
        """Return the last line in the process's own log file that reports a failure.

        If none does, the last line is returned. Only lines since the start of the process count.
        Empty if there is no file or no line, or if a signal ended the process.
        """
        if not self.spec.log or (self._process.returncode or 0) < 0:
            return ""
        with self.spec.log.open("rb") as file:
            file.seek(self._log_offset)
            lines = file.read(LOG_BYTES).decode("utf-8", "replace").splitlines()
        told = [line.strip() for line in lines if line.strip()]
        grave = [line for line in told if GRAVE.search(line)]
        return (grave or told or [""])[-1]

    def last_lines(self) -> list[str]:
        """Return the last lines that the process wrote, at most `LAST_LINES`, the oldest first.

        The log of the stack has these lines too. The list is empty for a process whose output goes
        to a file of its own (`ProcessSpec.log`).
        """
        return list(self._last)

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        with self._process.stdout as stream:
            for line in iter(lambda: stream.readline(LINE_BYTES), b""):
                words = line.decode("utf-8", "replace").rstrip("\r\n")
                self._last.append(words)
                self._log.write(self.spec.name, words)

    def _await_end(self) -> None:
        self._process.wait()
        _kill_group(self.pid)
        # A process that left the group may still hold the pipe: its output is not waited for.
        self._pump.join(1)
        self._guardian.forget(self.pid)
        self._over.set()
        if self._ended:
            self._ended(self)


def _started(spec: ProcessSpec, output: int | IO[bytes] | None) -> subprocess.Popen[bytes] | Fork:
    env = {**os.environ, **spec.env}
    if spec.is_ours and spec.log is None and forks.can_fork():
        return Fork(spec.argv[len(forks.PYTHON) :], env)
    return subprocess.Popen(
        spec.argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@contextlib.contextmanager
def _output(spec: ProcessSpec) -> Iterator[int | IO[bytes]]:
    if spec.log is None:
        yield subprocess.PIPE
        return
    if spec.log.exists() and spec.log.stat().st_size > LOG_BYTES:
        spec.log.replace(spec.log.with_suffix(".old"))
    with spec.log.open("ab") as file:
        yield file


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
