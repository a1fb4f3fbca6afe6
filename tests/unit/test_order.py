"""The order of the tests: each process has whole folders, and short tests to end with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.order import ordered


@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_has_whole_folders_the_longest_first_and_nothing_is_lost(
    processes: int,
) -> None:
    counts = {"faults": 30, "gateway": 80, "integration": 200, "first_run": 2, "unit": 400}
    items: Any = [
        SimpleNamespace(nodeid=f"tests/{folder}/test_{folder}.py::test_{number}")
        for folder, count in counts.items()
        for number in range(count)
    ]
    found: Any = ordered(items, processes)
    assert sorted(each.nodeid for each in found) == sorted(each.nodeid for each in items)
    size = len(items) // processes
    blocks = [found[size * place : size * (place + 1)] for place in range(processes)]
    for folder in ("faults", "gateway", "first_run"):
        having = [block for block in blocks if any(f"/{folder}/" in each.nodeid for each in block)]
        assert len(having) == 1, folder
    for block in blocks:
        assert "/unit/" in block[-1].nodeid
        assert "/unit/" not in block[0].nodeid
