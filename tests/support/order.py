"""The order of the tests where several processes share them (pytest-xdist, `--dist=worksteal`).

Each process begins with an equal block of the collected tests, and takes over the last ones of
another when it has done its own. So a block holds whole folders, whose tests share servers, as even
in time as can be; the short tests come last, because the end of a block is what moves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

SECONDS_A_TEST = {
    "first_run": 18.0,
    "faults": 4.0,
    "model": 5.0,
    "races": 5.0,
    "e2e": 2.5,
    "devstack": 1.3,
    "adoption": 1.3,
    "gateway": 1.0,
    "integration": 0.5,
    "client": 0.4,
}
"""By folder: seconds that a test takes, with its fixtures. Those of other folders take no time."""


def ordered(items: Sequence[pytest.Item], processes: int) -> list[pytest.Item]:
    """The same tests, those of each process after one another."""
    folders: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        folders[_folder(item)].append(item)
    blocks: list[list[pytest.Item]] = [[] for _ in range(processes)]
    loads = [0.0] * processes
    for folder in sorted(SECONDS_A_TEST, key=lambda each: -_load(each, folders)):
        least = loads.index(min(loads))
        loads[least] += _load(folder, folders)
        blocks[least] += folders.pop(folder, [])
    short = [item for each in folders.values() for item in each]
    sizes = [(len(items) + place) // processes for place in range(processes)]
    for block, size in zip(blocks, sizes, strict=True):
        block.sort(key=lambda item: -SECONDS_A_TEST[_folder(item)])
        short += block[size:]
        del block[size:]
    for block, size in zip(blocks, sizes, strict=True):
        room = size - len(block)
        block.extend(short[:room])
        del short[:room]
    return [item for block in blocks for item in block]


def _load(folder: str, folders: dict[str, list[pytest.Item]]) -> float:
    return SECONDS_A_TEST[folder] * len(folders.get(folder, ()))


def _folder(item: pytest.Item) -> str:
    parts = Path(item.nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 2 else ""
