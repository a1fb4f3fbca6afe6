"""docs/architecture.md is what tools/architecture.py draws from the import contracts."""

from __future__ import annotations

import subprocess
import sys

from tests.support.root import ROOT


def test_the_picture_is_current() -> None:
    drawn = subprocess.run(
        [sys.executable, ROOT / "tools" / "architecture.py", "--print"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert drawn.count("```mermaid") >= 2
    assert (ROOT / "docs" / "architecture.md").read_text() == drawn, "run `make architecture`"
