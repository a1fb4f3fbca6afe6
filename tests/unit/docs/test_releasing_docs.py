"""docs/releasing.md says what a soak judges by."""

from __future__ import annotations

import pytest

from assignment_workers.lab.call_centre import soak, tables, trend
from tests.support.root import ROOT

PAGE = (ROOT / "docs" / "releasing.md").read_text()
SHARES = {0.1: "a tenth", 0.3: "three tenths", 0.5: "half"}
TIMES = {2.0: "twice"}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("memory", "memory"),
        ("memory", "open files"),
        ("`entries`", "size"),
        ("Valkey's keys", "keys"),
        ("time to assign", "time to assign"),
    ],
)
def test_it_has_the_limits_of_what_may_grow(row: str, kind: str) -> None:
    (said,) = (line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    limit = soak.LIMITS[kind]
    assert SHARES[limit.share] in said
    assert f"{limit.beyond} {limit.unit}".strip() in said


def test_connections_have_the_share_of_the_row_above() -> None:
    assert soak.LIMITS["connections"].share == soak.LIMITS["memory"].share
    assert f"by more than {soak.LIMITS['connections'].beyond} |" in PAGE


def test_it_has_the_limits_of_tables_and_of_samples() -> None:
    said = " ".join(PAGE.split())
    assert (
        f"more than {TIMES[tables.BLOATED]} what a copy takes, and {tables.BLOAT_MB:g} MB" in said
    )
    assert f"more than {TIMES[tables.DEAD_TIMES]} autovacuum's threshold for longer than" in said
    assert f"{tables.DEAD_SECONDS / 60:g} minutes on end" in said
    assert f"by more than {soak.GRACE.total_seconds() / 60:g} minutes" in said
    assert f"Less than {trend.LEAST} samples" in said
    assert (trend.WARM_UP, soak.NEAREST) == (60, 5), "a minute, five seconds"
