"""Stacks of small programs for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devstack.support import Runs, runs_in


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Starts stacks on one home; what still runs after the test is ended."""
    with runs_in(tmp_path) as started:
        yield started
