"""Stacks of small programs, started as real processes and looked at from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
from pydantic import ValidationError

from assignment_workers.runtime.home import is_running
from assignment_workers.runtime.stack import Stack

PROGRAM = Path(__file__).with_name("small_stack.py")
NO_SERVERS = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "REDIS_URL": "redis://127.0.0.1:1/0",
}
"""Addresses that are set, so that no embedded server is started; nothing connects to them."""

RUN = "import time; print('works'); time.sleep(600)"
"""A child that runs until it is stopped."""

Found = TypeVar("Found")


def wait_until(condition: Callable[[], Found], what: str, *, seconds: float = 20.0) -> Found:
    """What the condition gives once it is true; fails, saying what was waited for."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, f"waited {seconds} s for {what}"
        time.sleep(0.01)
    return found


@dataclass
class Run:
    """One run of the small stack."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, *, times: int = 1, seconds: float = 20.0) -> str:
        """Wait until it has said these words so often; all that it said."""

        def found() -> str:
            said = self.said()
            return said if said.count(words) >= times else ""

        try:
            return wait_until(found, repr(words), seconds=seconds)
        except AssertionError:
            raise AssertionError(f"never said {words!r}:\n{self.said()}") from None

    def ready(self) -> Stack:
        """Wait until it announces itself."""

        def announced() -> Stack | None:
            for line in self.said().splitlines():
                if line.startswith("READY "):
                    with contextlib.suppress(ValidationError):
                        return Stack.model_validate_json(line.removeprefix("READY "))
            assert self.popen.poll() is None, self.said()
            return None

        found = wait_until(announced, "the stack to be ready")
        assert found is not None
        return found

    def code(self, *, seconds: float = 30.0) -> int:
        """Wait for its end: the exit code."""
        return self.popen.wait(seconds)

    def family(self) -> list[psutil.Process]:
        """Itself and every process below it now."""
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]

    def pid_of(self, name: str) -> int:
        """Of the child, by what the log said of its last start."""
        said = self.wait_for(f"{name} started (pid ")
        return int(said.rpartition(f"{name} started (pid ")[2].partition(")")[0])


class Runs:
    """Starts stacks for one test and leaves nothing of them behind."""

    def __init__(self, folder: Path, keep: contextlib.ExitStack) -> None:
        self.folder = folder
        self.home = folder / "home"
        self._keep = keep
        self._count = 0

    def start(
        self,
        *children: dict[str, object],
        env: dict[str, str] | None = None,
        stdout: int | None = None,
        user: str | None = None,
        **plan: object,
    ) -> Run:
        """Start one in a process group of its own."""
        self._count += 1
        log = self.folder / f"{self._count}.log"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ASSIGNMENT_WORKERS_", "DATABASE_", "REDIS_", "NO_COLOR"))
        }
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, str(PROGRAM), json.dumps({"children": children, **plan})],
                env={**inherited, "ASSIGNMENT_WORKERS_HOME": str(self.home), **(env or {})},
                stdout=output if stdout is None else stdout,
                stderr=output,
                process_group=0,
                user=user,
                extra_groups=[] if user else None,
            )
        run = Run(popen, log)
        self._keep.callback(_end, run)
        return run


def child(name: str, code: str = RUN, **options: object) -> dict[str, object]:
    return {"name": name, "code": code, **options}


@contextlib.contextmanager
def runs_in(folder: Path) -> Iterator[Runs]:
    with contextlib.ExitStack() as keep:
        yield Runs(folder, keep)


def none_runs(pids: Sequence[int]) -> bool:
    return not any(is_running(pid) for pid in pids)


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """Kill these at once, without a chance to tidy up, and wait until none runs."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: none_runs([process.pid for process in processes]), "every process to end")


def ours(home: Path) -> list[int]:
    """The processes whose command line or environment names this home."""
    return [
        process.pid
        for process in psutil.process_iter()
        if process.pid != os.getpid() and str(home) in _words(process)
    ]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except psutil.Error:
        return ""


def _end(run: Run) -> None:
    if run.popen.poll() is None:
        run.popen.send_signal(signal.SIGTERM)
        try:
            run.popen.wait(40)
        except subprocess.TimeoutExpired:
            run.popen.kill()
    run.popen.wait()
