"""What a soak measures, and when it says that something drifted."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from assignment_workers.call_centre.book import Book, Fault, Wait
from assignment_workers.call_centre.page import page
from assignment_workers.call_centre.plan import Plan
from assignment_workers.call_centre.soak import LIMITS, ROWS, Meter, Soaked
from assignment_workers.call_centre.verdict import judge
from assignment_workers.runtime.stack import Stack
from tests.world import HOUR, UNSIGNED, User, World

PLAN = Plan(
    agents=1, users=1, seconds=300, speed=1, seed=1, chaos=True, retention=timedelta(minutes=10)
)


@pytest.fixture
def meter(world: World, database_url: str, redis_url: str) -> Meter:
    stack = Stack(
        database_url=database_url,
        redis_url=redis_url,
        broker_url=redis_url,
        pid=os.getpid(),
        started_at=datetime.now(UTC),
    )
    kept = {"history_retention": HOUR, "generation_retention": timedelta(minutes=10)}
    return Meter(stack, world.engine, PLAN, world.settings.model_copy(update=kept))


def went(meter: Meter, *thirds: float) -> Meter:
    """A figure that had these values in the thirds of the run."""
    meter.points["memory", "gateway"] = [
        (third * 100.0 + each, value) for third, value in enumerate(thirds) for each in range(90)
    ]
    return meter


@pytest.mark.parametrize(
    ("thirds", "drifted"),
    [
        ((50, 100, 100), False),
        ((50, 100, 130), True),
        ((50, 100, 110), False),
        ((1, 2, 4), False),
        ((200, 100, 60), False),
    ],
)
def test_a_figure_drifts_by_how_much_higher_the_last_third_is_than_the_middle_one(
    meter: Meter, thirds: tuple[float, ...], *, drifted: bool
) -> None:
    found = went(meter, *thirds).judged("memory", "gateway")
    assert (found.middle, found.last) == thirds[1:]
    assert found.drifted is drifted


def test_every_table_valkey_and_every_process_are_measured(world: World, meter: Meter) -> None:
    world.add_agents(1)
    world.add_users([User(11)])
    world.regenerate(UNSIGNED)
    world.held(1)
    world.execute("ANALYZE")
    meter.sample(1.0)
    tables = set(
        world.column("SELECT tablename FROM pg_tables WHERE schemaname = 'assignment'")
    ) - set(world.column("SELECT inhrelid::regclass::text FROM pg_inherits"))
    named = {name for kind, name in meter.points if kind in {"size", "row"}}
    empty = {name for name, query in ROWS.items() if not world.value(query)}
    partitions = {name for name in tables if name.startswith("entries_")}
    assert tables - partitions - {"alembic_version"} <= named | empty
    assert {kind for kind, _ in meter.points} | {"time to assign"} == LIMITS.keys()
    assert meter.points["memory", "up"][0][1] > 1
    assert meter.points["row", "requests"][0][1] > 0


def test_dead_rows_that_nobody_takes_away_are_named(meter: Meter) -> None:
    meter._dead["entries"] = [(at, 5.0) for at in range(300)]
    meter._dead["events"] = [(at, 5.0 if at % 2 else 0.5) for at in range(300)]
    (said,) = meter.never_vacuumed()
    assert said.startswith("dead rows of entries: never less than 5.0 times")


def test_what_outlives_its_retention_is_named(world: World, meter: Meter) -> None:
    world.add_users([User(11)])
    world.regenerate(UNSIGNED)
    world.execute("UPDATE assignment.events SET at = now() - interval '2 hours'")
    assert meter.outlived() == []
    assert world.value("SELECT count(*) FROM assignment.events") == 0, "deleted by now"
    world.regenerate(UNSIGNED)
    world.execute(
        "UPDATE assignment.generations SET retired_at = now() - interval '13 minutes'"
        " WHERE state = 'retired'"
    )
    assert meter.outlived() == ["retention of entries: 1 stand longer than theirs"]


def test_waits_that_a_fault_touched_are_not_the_systems(meter: Meter) -> None:
    book = Book(faults=[Fault(100.0, "killed")])
    book.waits = [Wait(90, 0.01, "assigned"), Wait(101, 0.9, "assigned"), Wait(150, 0.02, "empty")]
    meter.latency(book)
    assert [each for _, each in meter.points["time to assign", "median"]] == [10.0, 20.0]


def test_the_page_of_a_soak_says_what_drifted(world: World, meter: Meter) -> None:
    book = Book()
    verdict = judge(world.engine, PLAN, book, signed_at={}, settings=world.settings)
    series = [went(meter, 50, 100, 130).judged("memory", "gateway")]
    said = "memory of gateway: 100 MB <then> 130"
    soaked = Soaked(verdict=verdict, drifted=[said], series=series, samples=3, not_taken=0)
    assert not soaked.is_good
    shown = page(book, verdict, soaked)
    assert "100 MB &lt;then&gt; 130" in shown
    assert "MB drifted" in shown
