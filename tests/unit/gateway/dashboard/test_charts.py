"""A chart shows every number once, within its frame."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.assignment.reports.breakdown import Part, UnansweredPart
from assignment_workers.gateway.dashboard.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    WIDTH,
    Axis,
    counts_chart,
    times_chart,
)

SINCE = datetime(2026, 11, 28, 9, tzinfo=UTC)
HOUR = Axis(SINCE, SINCE + timedelta(hours=1), 60)
COUNTS = st.dictionaries(st.integers(0, 59), st.integers(1, 1_000_000), max_size=60)


def parts(counts: dict[int, int], seconds: float | None = None) -> list[Part]:
    return [
        Part(at=SINCE + timedelta(minutes=n), assignments=c, p50=seconds, p95=seconds, p99=seconds)
        for n, c in counts.items()
    ]


@given(COUNTS, COUNTS)
def test_each_bar_is_within_the_frame_and_all_numbers_are_shown(
    done: dict[int, int], lost: dict[int, int]
) -> None:
    unanswered = [UnansweredPart(at=SINCE + timedelta(minutes=n), count=c) for n, c in lost.items()]
    chart = counts_chart(HOUR, parts(done), unanswered)
    shown = [int(bar.label.split(": ")[1].split()[0].replace(",", "")) for bar in chart.bars]
    assert sum(shown) == sum(done.values()) + sum(lost.values())
    assert chart.is_empty == (not done and not lost)
    for bar in chart.bars:
        assert LEFT <= bar.x <= bar.x + bar.width <= WIDTH
        assert 0 <= bar.y <= bar.y + bar.height <= HEIGHT - BOTTOM + 0.1
    places = {(bar.x, bar.kind) for bar in chart.bars}
    assert len(places) == len(chart.bars)


@given(COUNTS)
def test_a_line_breaks_where_nothing_is_known(done: dict[int, int]) -> None:
    chart = times_chart(HOUR, parts(done, 0.02))
    known = sorted(done)
    gaps = sum(1 for a, b in pairwise(known) if b > a + 1)
    for line in chart.lines:
        assert len(line.pieces) == (gaps + 1 if known else 0)
    assert len(chart.times) >= 6
