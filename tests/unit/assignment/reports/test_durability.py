"""What commits wait for is said rightly for every setting that PostgreSQL may have."""

from __future__ import annotations

import itertools

import pytest

from assignment_workers.assignment.reports.durability import _MEANINGS, Commits, _commits

STANDBYS = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0), (2, 1, 0)]
"""Connected, of them confirming commits, and others that the role may not see."""


CASES = [
    *itertools.product(
        ["on", "remote_apply", "remote_write", "local", "off"], [True, False], STANDBYS
    )
]


@pytest.mark.parametrize(("commit", "named", "standbys"), CASES)
def test_an_answer_is_never_called_safer_than_it_is(
    commit: str, named: bool, standbys: tuple[int, int, int]
) -> None:
    connected, confirming, hidden = standbys
    found = _commits(
        commit=commit, named=named, connected=connected, confirming=confirming, hidden=hidden
    )
    assert found in _MEANINGS
    waits = named and commit not in {"local", "off"}
    assert (found == Commits.SYNCHRONOUS) == (waits and confirming > 0)
    assert (found == Commits.WAITING) == (waits and not confirming and not hidden)
    assert (found == Commits.UNSAFE) == (commit == "off")
    if found == Commits.ALONE:
        assert standbys == (0, 0, 0)
