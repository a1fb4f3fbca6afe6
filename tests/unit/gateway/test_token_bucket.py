"""A caller's pace: so many calls a second, twice as many at once, on a clock that a test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.gateway import limits
from assignment_workers.gateway.limits import TokenBucket
from tests.support.steady_clock import SteadyClock


def test_twice_as_many_at_once_and_then_one_for_each_share_of_a_second() -> None:
    clock = SteadyClock()
    pace = TokenBucket(4.0, clock)
    assert [pace.wait(26) for _ in range(8)] == [0.0] * 8
    assert pace.wait(26) == pytest.approx(0.25)
    clock.now += 0.25
    assert pace.wait(26) == 0.0
    assert pace.wait(26) > 0.0


def test_one_caller_s_pace_is_not_another_s() -> None:
    pace = TokenBucket(1.0, SteadyClock())
    while pace.wait(26) == 0.0:
        pass
    assert pace.wait(27) == 0.0


def test_asking_what_is_left_counts_nothing() -> None:
    pace = TokenBucket(1.0, SteadyClock())
    assert pace.left(26) == 0.0
    pace.wait(26)
    pace.wait(26)
    assert pace.left(26) == pace.left(26) == pytest.approx(1.0)


def test_the_one_not_seen_for_the_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED", 2)
    pace = TokenBucket(0.5, SteadyClock())
    for agent in (1, 2, 1, 3):
        pace.wait(agent)
    assert set(pace._seen) == {1, 3}


@given(st.floats(0.1, 50.0), st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60))
def test_no_more_go_on_than_the_pace_allows(per_second: float, pauses: list[float]) -> None:
    clock = SteadyClock()
    pace = TokenBucket(per_second, clock)
    went = 0
    for pause in pauses:
        clock.now += pause
        went += pace.wait("key") == 0.0
    assert went <= max(per_second * 2, 1.0) + sum(pauses) * per_second + 1e-6
