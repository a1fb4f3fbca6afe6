"""The command in a process of its own, forked from one that has imported it all.

Each has its own environment, folder and output, as if it had been typed; but the second and a half
that Python takes to import everything is spent once. That the command is installed, and starts by
itself, is a test of its own; the tests of `up` start every process by itself as well.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

from assignment_workers.cli.stack import PRELOADED
from assignment_workers.dialer.loading import NAME, VARIABLE

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(list(PRELOADED))
SECONDS = 60.0


class Forked:
    """A command that goes on by itself, to be had as a `subprocess.Popen` is.

    It leads a session of its own, and what it writes goes to one file.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        output: Path,
        before: str | None = None,
    ) -> None:
        """`before`: `module:function`, called in the process before the command."""
        given = (list(words), dict(environment), Path.cwd(), output, None, before)
        output.touch()
        self._process = FORKS.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of a process that has been waited for."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutExpired(self._process.name, timeout or 0)
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def type_in(
    words: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> CompletedProcess[str]:
    """What the command says with this environment, in this folder, and the code that it ends with."""
    with tempfile.TemporaryDirectory() as names:
        output, complaint = (Path(names) / name for name in ("output", "complaint"))
        process = FORKS.Process(
            target=_run,
            args=(list(words), dict(environment), folder or Path.cwd(), output, complaint),
        )
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        code = process.exitcode
        assert code is not None
        assert code >= 0, f"{words} took more than {SECONDS} s, or was killed"
        told, complained = output.read_text(), complaint.read_text()
        assert not re.search(r"\bNone\b", told + complained), "a missing value is shown as None"
        return CompletedProcess(list(words), code, told, complained)


def dialer_of_the_run(folder: Path) -> dict[str, str]:
    """The variable that names the dialer of this test run, unless the folder has a file of its own.

    Empty if the run is by the packaged dialer.
    """
    if (folder / NAME).exists() or VARIABLE not in os.environ:
        return {}
    return {VARIABLE: os.environ[VARIABLE]}


def _run(  # noqa: PLR0917 - what a process is given
    words: list[str],
    environment: dict[str, str],
    folder: Path,
    output: Path,
    complaint: Path | None,
    before: str | None = None,
) -> None:
    """`complaint` None: it goes where the output goes, in a session of its own."""
    gc.freeze()  # what was imported before stays: no collection needs to look at it
    if complaint is None and os.getsid(0) != os.getpid():
        os.setsid()
    for place, number in ((output, 1), (complaint, 2)):
        if place is not None:
            made = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(made, number)
            os.close(made)
        else:
            os.dup2(1, number)
    given = dialer_of_the_run(folder) | environment
    os.environ.clear()
    os.environ.update(given)
    sys.argv = ["assignment-workers", *words]
    from assignment_workers.cli import main

    if before is not None:
        module, _, function = before.partition(":")
        vars(import_module(module))[function]()
    with chdir(folder):
        main()
