"""Dirt in every column, in each schema: looked at, compared, taken over, given back, taken again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from assignment_workers.adoption.plan import plan
from assignment_workers.adoption.rollback import rollback
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.engine import connect
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected
from tests.adoption.dirt import spoil
from tests.adoption.test_inspect import inspected
from tests.adoption.test_migrate import moved, rows

TABLES = (
    "agents",
    "user_call_scores",
    UNSIGNED,
    OUTSTANDING,
    "callbacks",
    "missed_calls",
    "conversions",
)


UNLIKE = {"hybrid by table": {OUTSTANDING: "target"}}
"""Tables of a hybrid that are of the draft."""


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("deployed", 1),
        ("target", 2),
        ("widened", 3),
        ("hybrid by table", 4),
    ],
)
def test_a_dialer_full_of_dirt_is_taken_over_and_given_back(
    empty_database_url: str, name: str, seed: int
) -> None:
    url = empty_database_url
    schema = "target" if name == "target" else "deployed"
    with connected(url) as connection:
        dialers.STATES[name](connection)
        spoil(
            connection,
            {table: schema for table in TABLES if table in dialers.tables_of(schema)}
            | UNLIKE.get(name, {}),
            seed,
        )
    counts = f"SELECT (SELECT count(*) FROM {UNSIGNED}), (SELECT count(*) FROM {OUTSTANDING})"
    before = rows(url, counts)
    assert min(before[0]) > 2
    assert rows(url, "SELECT count(*) > 0 FROM agents WHERE NOT isfinite(created_at)") == [(True,)]
    assert inspected(url).obstacles == ()
    engine = connect(url, name="test", statement_timeout=timedelta(seconds=60))
    with engine.connect() as connection:
        assert "-- 3. switch" in plan(connection, url)
    moved(url, batch=15)
    assert inspected(url).is_ours
    with engine.connect() as connection:
        migrations.check(connection)
        connection.rollback()
        damaged = [each.check for each in examine(connection) if not each.ok and each.guarantee]
    engine.dispose()
    assert damaged == []
    for table in (UNSIGNED, OUTSTANDING):
        assert rows(url, f"SELECT count(*) FROM {table}_before_adoption") == [
            (before[0][table == OUTSTANDING],)
        ]
        rows(url, f"SELECT * FROM {table} WHERE status = 'pending'")
    rollback(url)
    left = rows(url, counts)
    assert all(now >= was for now, was in zip(left[0], before[0], strict=True))
    moved(url, batch=15)
    assert inspected(url).is_ours
