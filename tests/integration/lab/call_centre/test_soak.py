"""What a soak measures, and when it says that something drifted."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from sqlalchemy import text

from assignment_workers.lab.call_centre import processes
from assignment_workers.lab.call_centre.page import page
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Fault, Recorder, Wait
from assignment_workers.lab.call_centre.soak import LIMITS, WITH_THE_WORK, Meter
from assignment_workers.lab.call_centre.tables import bloated, weighed
from assignment_workers.lab.call_centre.verdict import judge
from assignment_workers.runtime.stack import Stack
from tests.support.world import HOUR, UNSIGNED, User, World

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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("process beat", "beat"),
        ("process sequencer", "sequencers"),
        ("process sequencer --lane outstanding", "sequencers of outstanding"),
        ("up --demo", None),
    ],
)
@pytest.mark.parametrize("titled", [True, False], ids=["a fork", "a program"])
def test_the_role_of_a_process_is_known_by_its_title_and_by_its_arguments(
    words: str, wanted: str | None, titled: bool
) -> None:
    title = f"from setproctitle import setproctitle; setproctitle('assignment-workers {words}')"
    program = f"{title if titled else ''}\nprint('ready', flush=True)\ninput()"
    begun = subprocess.Popen(
        [sys.executable, "-c", program, *([] if titled else words.split())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert begun.stdout
        assert begun.stdout.readline() == b"ready\n"
        assert processes.role(psutil.Process(begun.pid)) == wanted
    finally:
        begun.communicate(b"\n")


def grew(meter: Meter, by: float) -> Meter:
    """A process that has two lives, in each of which it grows so much each second."""
    for number in range(2):
        life = number, 0.0
        meter.points["memory", "gateway"][life] = [
            (number * 200.0 + age, 100 + by * age) for age in range(0, 200, 5)
        ]
    return meter


def test_every_table_valkey_and_every_process_are_measured(world: World, meter: Meter) -> None:
    world.add_agents(1)
    world.add_users([User(11)])
    world.regenerate(UNSIGNED)
    world.held(1)
    world.execute("ANALYZE")
    world.execute("CREATE TABLE assignment.entries_99 (LIKE assignment.entries)")  # not attached
    meter.sample(1.0)
    tables = set(
        world.column("SELECT tablename FROM pg_tables WHERE schemaname = 'assignment'")
    ) - set(world.column("SELECT inhrelid::regclass::text FROM pg_inherits"))
    named = {name for kind, name in meter.points if kind == "size"} - {"Valkey's data"}
    partitions = {name for name in tables if name.startswith("entries_")}
    ours = tables - partitions - {"schema_revision"}
    assert named | WITH_THE_WORK == ours | {"user_call_scores", "callbacks", "conversions"}
    assert named & WITH_THE_WORK == set()
    assert meter.dead.keys() == named | WITH_THE_WORK
    assert {kind for kind, _ in meter.points} | {"time to assign"} == LIMITS.keys()
    (life,) = meter.points["memory", "up"].values()
    assert life[0][1] > 1


def test_a_table_whose_rows_were_rewritten_takes_more_than_a_copy_of_it(
    world: World, meter: Meter
) -> None:
    world.add_users([User(each) for each in range(11, 2011)])
    world.regenerate(UNSIGNED)
    with world.engine.begin() as connection:
        connection.execute(text("ALTER TABLE user_call_scores SET (autovacuum_enabled = false)"))
    for _ in range(5):
        with world.engine.begin() as connection:
            connection.execute(text("UPDATE user_call_scores SET current_score = base_score + 1"))
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with world.engine.begin() as connection:
        weights = {each.name: each for each in weighed(connection)}
    assert weights["user_call_scores"].rows == 2000
    assert weights["user_call_scores"].times > 3
    assert weights["entries"].rows == 2000
    assert weights["entries"].times == pytest.approx(1.0, abs=0.2)
    assert [each.split(":")[0] for each in bloated(list(weights.values()))] == [
        "bloat of user_call_scores"
    ]
    meter.sample(1.0)
    assert meter.dead["user_call_scores"][0][1] > 2


def test_what_outlives_its_retention_is_named(world: World, meter: Meter) -> None:
    world.add_users([User(11)])
    world.regenerate(UNSIGNED)
    world.tamper("UPDATE assignment.events SET at = now() - interval '2 hours'")
    assert meter.outlived() == []
    assert world.value("SELECT count(*) FROM assignment.events") == 0, "deleted by now"
    world.regenerate(UNSIGNED)
    world.execute(
        "UPDATE assignment.generations SET retired_at = now() - interval '13 minutes'"
        " WHERE state = 'retired'"
    )
    assert meter.outlived() == ["retention of entries: 1 stand longer than theirs"]


def test_waits_that_a_fault_touched_are_not_the_systems(meter: Meter) -> None:
    recorder = Recorder(faults=[Fault(100.0, "killed", 100.0)])
    recorder.waits = [
        Wait(90, 0.01, "assigned"),
        Wait(101, 0.9, "assigned"),
        Wait(150, 0.02, "empty"),
    ]
    meter.latency(recorder)
    (points,) = meter.points["time to assign", "median"].values()
    assert [each for _, each in points] == [10.0, 20.0]


def test_the_page_of_a_soak_says_what_drifted_and_what_it_was_too_short_for(
    world: World, meter: Meter
) -> None:
    recorder = Recorder()
    verdict = judge(world.engine, PLAN, recorder, signed_at={}, settings=world.settings)
    grew(meter, 0.5).points["memory", "<beat>"][1, 0.0] = [(at, 50.0) for at in range(0, 60, 5)]
    soaked = meter.soaked(verdict)
    assert soaked.drifted == ["memory of gateway: 181.2 MB, 67.5 more within 135 s"]
    assert soaked.unjudged == [
        "memory of <beat>: too few samples",
        "size of entries: no generation was purged",
    ]
    assert soaked.exit_code == 1
    assert soaked.model_copy(update={"drifted": []}).exit_code == 2
    shown = page(recorder, verdict, soaked)
    assert "memory of gateway: 181.2 MB, 67.5 more within 135 s" in shown
    assert "memory of &lt;beat&gt;: too few samples" in shown
    assert "<td>MB grows</td>" in shown


def test_a_healthy_run_that_was_long_enough_is_good(world: World, meter: Meter) -> None:
    world.add_users([User(11)])
    world.regenerate(UNSIGNED)
    world.regenerate(UNSIGNED)
    world.execute("UPDATE assignment.generations SET purged_at = now() WHERE state = 'retired'")
    verdict = judge(world.engine, PLAN, Recorder(), signed_at={}, settings=world.settings)
    soaked = grew(meter, 0.0).soaked(verdict)
    assert (soaked.drifted, soaked.unjudged, soaked.purged) == ([], [], 1)
    assert verdict.broken == []
    assert soaked.exit_code == 0
