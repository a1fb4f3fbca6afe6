"""Steps of the database's clock, by readings between two instants of a steady one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.sequencer.timekeeping import STEP, Reading

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
SECONDS = st.floats(0, 100)


def reading(true: float, *, early: float = 0.0, late: float = 0.0, by: float = 0.0) -> Reading:
    """What is read `true` seconds after noon, asked earlier and heard later, of a clock off by so much."""
    return Reading(NOON + timedelta(seconds=true + by), true - early, true + late)


@given(early=SECONDS, late=SECONDS, apart=SECONDS, later=SECONDS)
def test_however_long_a_reading_takes_a_clock_that_goes_right_has_no_step(
    early: float, late: float, apart: float, later: float
) -> None:
    first = reading(0.0, early=early, late=late)
    assert reading(apart, early=later, late=early).step_since(first) is None


@given(by=st.one_of(st.floats(1.1, 1e6), st.floats(-1e6, -1.1)))
def test_a_step_is_found_by_the_next_quick_reading(by: float) -> None:
    found = reading(2.0, by=by).step_since(reading(0.0))
    assert found is not None
    assert abs(found - timedelta(seconds=by)) < timedelta(milliseconds=1)


def test_a_step_within_a_slow_reading_may_be_none() -> None:
    assert reading(2.0, early=5.0, late=5.0, by=4.0).step_since(reading(0.0)) is None
    assert reading(2.0).step_since(None) is None
    assert reading(2.0, by=STEP.total_seconds() / 2).step_since(reading(0.0)) is None
