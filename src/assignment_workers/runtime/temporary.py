"""An embedded PostgreSQL for as long as a block lasts, in a folder that goes with it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assignment_workers.runtime import postgres, server
from assignment_workers.runtime.guardian import Guardian
from assignment_workers.runtime.home import hold
from assignment_workers.runtime.log import Log


@contextmanager
def database() -> Iterator[str]:
    """The address of an empty PostgreSQL that writes as a real one does. Raises `StackFailed`."""
    with (
        tempfile.TemporaryDirectory(prefix="assignment-workers-") as folder,
        hold(Path(folder) / "home") as home,
        Guardian(keeps=[home.descriptor]) as guardian,
    ):
        made = postgres.prepare(home.path / "postgres")
        child = server.start(made, Log(sys.stderr, colour=False), guardian)
        try:
            yield made.url
        finally:
            child.stop()
