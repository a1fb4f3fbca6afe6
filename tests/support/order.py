"""The order of the tests where several processes share them (pytest-xdist, `--dist=worksteal`).

Each process begins with an equal block of the collected tests, and takes over the last ones of
another when it has done its own. So a block holds whole files, whose tests share servers, as even
in time as can be. Tests that mostly wait fill the first blocks and tests that compute the last
ones, so that both kinds run at any time. The short tests come last, because the end of a block is
what moves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

SECONDS_A_TEST = {
    "first_run": 20.0,
    "faults": 6.0,
    "races": 4.5,
    "devstack": 1.5,
    "model": 4.0,
    "e2e": 3.5,
    "adoption": 1.2,
    "gateway": 0.6,
    "integration": 0.5,
    "client": 0.2,
}
"""By folder: seconds that a test takes, with its fixtures; the folders that wait most come first.

Those of other folders take no time.
"""


def ordered(items: Sequence[pytest.Item], processes: int) -> list[pytest.Item]:
    """The same tests, those of each process after one another."""
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.nodeid.partition("::")[0]].append(item)
    folders = list(SECONDS_A_TEST)
    longer = [each for each in files if _folder(each) in SECONDS_A_TEST]
    longer.sort(key=lambda each: folders.index(_folder(each)))
    mean = sum(_seconds(files[each]) for each in longer) / processes
    blocks: list[list[pytest.Item]] = [[] for _ in range(processes)]
    begun = 0.0
    for file in longer:
        took = _seconds(files[file])
        blocks[min(int((begun + took / 2) / mean), processes - 1)] += files.pop(file)
        begun += took
    short = [item for each in files.values() for item in each]
    sizes = [(len(items) + place) // processes for place in range(processes)]
    for block, size in zip(blocks, sizes, strict=True):
        short += block[size:]
        del block[size:]
    for block, size in zip(blocks, sizes, strict=True):
        room = size - len(block)
        block.extend(short[:room])
        del short[:room]
    return [item for block in blocks for item in block]


def _seconds(items: Sequence[pytest.Item]) -> float:
    return sum(SECONDS_A_TEST[_folder(item.nodeid)] for item in items)


def _folder(name: str) -> str:
    parts = Path(name.partition("::")[0]).parts
    return parts[1] if len(parts) > 2 else ""
