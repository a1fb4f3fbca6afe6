"""The command in a process of its own, forked from one that has imported it all.

Each has its own environment, folder and output, as if it had been typed; but the second and a half
that Python takes to import everything is spent once. That the command is installed, and starts by
itself, is a test of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["assignment_workers.cli.main", "assignment_workers.tasks.process"])
SECONDS = 60.0


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
        return CompletedProcess(list(words), code, output.read_text(), complaint.read_text())


def _run(
    words: list[str], environment: dict[str, str], folder: Path, output: Path, complaint: Path
) -> None:
    for place, number in ((output, 1), (complaint, 2)):
        made = os.open(place, os.O_WRONLY | os.O_CREAT)
        os.dup2(made, number)
        os.close(made)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["assignment-workers", *words]
    from assignment_workers.cli import main

    with chdir(folder):
        main()
