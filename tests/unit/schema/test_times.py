"""A time of PostgreSQL's is loaded as it is, or as the nearest one that Python can reckon with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.schema.times import EARLIEST, LATEST, Timestamp, Timestamptz

NAIVE_END = LATEST.replace(tzinfo=None)


@given(
    st.datetimes(EARLIEST.replace(tzinfo=None), NAIVE_END - timedelta(days=2)),
    st.integers(-15 * 4, 15 * 4),
)
def test_a_time_that_python_can_reckon_with_is_loaded_as_it_is(at: datetime, quarters: int) -> None:
    text = f"{at:%H:%M:%S.%f}"
    date = f"{at.year:04}-{at.month:02}-{at.day:02}"
    assert Timestamp(0).load(f"{date} {text}".encode()) == at
    offset = timedelta(minutes=15 * quarters)
    local = at.replace(tzinfo=timezone(offset))
    if EARLIEST <= local < LATEST:
        sign = "-" if quarters < 0 else "+"
        hours, minutes = divmod(abs(quarters) * 15, 60)
        found = Timestamptz(0).load(f"{date} {text}{sign}{hours:02}:{minutes:02}".encode())
        assert found == local
        assert found.tzinfo is not None


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("-infinity", EARLIEST),
        ("4713-01-01 00:00:00+00 BC", EARLIEST),
        ("0001-01-01 00:00:00+00", EARLIEST),
        ("0099-12-31 23:59:59.999999+00", EARLIEST),
        ("9900-01-01 00:00:00+00", LATEST),
        ("9999-12-31 23:59:59.999999+00", LATEST),
        ("10000-01-01 00:00:00+00", LATEST),
        ("294276-12-31 23:59:59.999999+00", LATEST),
        ("infinity", LATEST),
    ],
)
def test_a_time_outside_is_loaded_as_the_nearest(text: str, nearest: datetime) -> None:
    assert nearest.tzinfo is UTC
    assert Timestamptz(0).load(text.encode()) == nearest
    assert Timestamp(0).load(text.replace("+00", "").encode()) == nearest.replace(tzinfo=None)
