"""What tests of the command share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell in a folder of its own."""
    return Shell(tmp_path)
