"""Our own processes as forks of one process that has imported their common modules.

Imports take two seconds of processor time for each process, a fork takes a hundredth of a second.
Six processes therefore start in the time of one, and a process that ended is replaced at once. The
forks share the memory of the imported modules.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, wait
from typing import IO, cast

from setproctitle import setproctitle

from assignment_workers.devstack import session_leader

COMMAND = "assignment-workers"
PYTHON = (sys.executable, "-m", "assignment_workers")
"""The beginning of a command line that runs a command of this package in a new interpreter. The
command, such as `up` or `process`, is appended.
"""
_CONTEXT = get_context("forkserver")
_prepared = threading.Event()
_STARTING_OR_ENDING = threading.Lock()
"""A lock that is held while a fork is started or its exit status is read.

At each start, `multiprocessing` also reads the exit status of all forks that have ended. Each
status can be read only once. Without the lock, two threads could try to read the same status. The
second thread would then find nothing to read, and `multiprocessing` would give it the status 255.
"""


def prepare(modules: Sequence[str]) -> None:
    """Start the process from which other processes are forked later, and let it import `modules`.

    Returns at once. The started process needs a socket in the folder for temporary files. If the
    process cannot be started, because the folder is full or its path is too long, `can_fork` stays
    False.
    """
    # Celery would rename the processes in its own way, with our arguments in the middle.
    os.environ["NOSETPS"] = "1"
    _CONTEXT.set_forkserver_preload([session_leader.__name__, *modules])
    with contextlib.suppress(OSError):
        forkserver.ensure_running()
        _prepared.set()


def can_fork() -> bool:
    """Return True if `prepare` was called and succeeded."""
    return _prepared.is_set()


class Fork:
    """A forked process that runs a command of ours, with the interface of `subprocess.Popen`.

    The process leads a session of its own. Its output can be read from `stdout`.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str]) -> None:
        """Run a command of this package with the arguments `words` in the environment `env`.

        Raises OSError if the process cannot be started.
        """
        reader, writer = _CONTEXT.Pipe(duplex=False)
        with reader, writer, _STARTING_OR_ENDING:
            self._process = _CONTEXT.Process(target=_be, args=(list(words), dict(env), writer))
            self._process.start()
            self.stdout: IO[bytes] = os.fdopen(os.dup(reader.fileno()), "rb")
        self.pid = cast("int", self._process.pid)
        self.returncode: int | None = None

    def wait(self) -> int:
        """Wait until the process ends; return its exit status, negative if a signal ended it."""
        wait([self._process.sentinel])
        with _STARTING_OR_ENDING:
            self._process.join()
        code = self._process.exitcode
        self.returncode = os.EX_SOFTWARE if code is None else code
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)


def _be(words: list[str], env: dict[str, str], output: Connection) -> None:
    os.setsid()
    setproctitle(" ".join([COMMAND, *words]))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    os.environ.clear()
    os.environ.update(env)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [COMMAND, *words]
    try:
        runpy.run_module(PYTHON[-1], run_name="__main__")
    finally:  # a fork of multiprocessing ends without running the exit functions
        atexit._run_exitfuncs()  # noqa: SLF001 - there is no public name
