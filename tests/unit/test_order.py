"""The order of the tests: each process has whole files, and short tests to end with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.order import SECONDS_A_TEST, ordered


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_each_process_has_whole_files_of_as_many_seconds_and_nothing_is_lost(
    processes: int,
) -> None:
    counts = {"faults": 10, "gateway": 16, "integration": 40, "first_run": 1, "unit": 400}
    items: Any = [
        SimpleNamespace(nodeid=f"tests/{folder}/test_{file}.py::test_{number}")
        for folder, count in counts.items()
        for file in range(8)
        for number in range(count)
    ]
    found: Any = ordered(items, processes)
    assert sorted(each.nodeid for each in found) == sorted(each.nodeid for each in items)
    size = len(items) // processes
    blocks = [found[size * place : size * (place + 1)] for place in range(processes)]
    files = [{each.nodeid.partition("::")[0] for each in block} for block in blocks]
    for one, block in enumerate(files):
        for other in files[one + 1 :]:
            assert all("/unit/" in file for file in block & other)
    took = [
        sum(SECONDS_A_TEST.get(each.nodeid.split("/")[1], 0.0) for each in block)
        for block in blocks
    ]
    assert max(took) - min(took) < 80, "no more than a file or two"
    for block in blocks:
        assert "/unit/" in block[-1].nodeid
        assert "/unit/" not in block[0].nodeid
