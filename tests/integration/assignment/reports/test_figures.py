"""What operators watch is what the tables say, and costs the same however much there is."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from assignment_workers.assignment import audit
from assignment_workers.assignment.answers import Code, Refused
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Release
from assignment_workers.assignment.reports import doctor
from assignment_workers.assignment.reports.figures import Figures, figures
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.term import APPLICATION
from assignment_workers.telemetry import RACES
from tests.support.world import OUTSTANDING, UNSIGNED, User, World, owner

RACE = "ASSIGNMENT_RACE_CONDITION"


def read(world: World) -> Figures:
    with world.engine.connect() as connection:
        return figures(connection, loaded(), None, application=APPLICATION)


@pytest.fixture
def busy(world: World) -> World:
    """Twenty users; eight agents have asked, of whom two hold, one completed, one skipped, one lapsed."""
    world.add_agents(*range(1, 9))
    world.add_users([User(user) for user in range(1, 21)])
    world.regenerate()
    holds = {agent: world.held(agent) for agent in range(1, 6)}
    world.complete(holds[1])
    world.skip(holds[2])
    world.release(holds[3])
    assert isinstance(world.move(Release(owner(holds[3], agent=4))), Refused)
    world.execute(
        "UPDATE assignment.assignments SET claimed_at = now() - interval '10 min',"
        " lease_expires_at = now() - interval '1 s' WHERE agent_id = 5"
    )
    world.execute(
        "INSERT INTO assignment.suppressions (kind, user_id, reason, since, by) SELECT 'quarantine', n,"
        " 'unclear', now(), 'the claim' FROM generate_series(19, 20) n"
    )
    return world


def test_every_figure_is_what_the_tables_say(busy: World) -> None:
    found = read(busy)
    (unsigned,) = [each for each in found.queues if each.queue == UNSIGNED]
    (outstanding,) = [each for each in found.queues if each.queue == OUTSTANDING]
    states = dict(
        busy.rows(
            "SELECT e.state, count(*) FROM assignment.entries e JOIN assignment.generations g"
            " ON g.id = e.generation_id WHERE g.state = 'published' AND g.queue = :q GROUP BY 1",
            q=UNSIGNED,
        )
    )
    assert states == {"ready": 16, "held": 2, "waiting": 1, "out": 1}
    assert unsigned.claimable == states["ready"]
    assert unsigned.waiting == states["waiting"]
    assert unsigned.held == busy.value(
        "SELECT count(*) FROM assignment.assignments WHERE state = 'active'"
    )
    assert unsigned.claimed_last_hour == 5
    assert unsigned.runway_minutes == 16 * 60 / 5
    assert (unsigned.skipped_last_hour, outstanding.skipped_last_hour) == (1, 0)
    assert (unsigned.quarantined, outstanding.quarantined) == (2, 0)
    assert (outstanding.claimable, outstanding.runway_minutes) == (0, None)
    assert (found.holds, found.holds_lapsing, found.holds_lapsed) == (2, 0, 1)
    assert found.answers_last_hour == dict(
        busy.rows("SELECT outcome, count(*) FROM assignment.requests GROUP BY 1")
    )
    assert found.ended_last_hour == {"completed": 1, "skipped": 1, "released": 1}
    assert found.races_last_hour == {"not_owner": 1}
    assert found.dead_letters == 0
    assert found.crm_up
    assert found.sequencer.leader is None
    assert found.time_to_assign.measured == 0
    assert found.time_to_assign.p99 is None
    assert found.examined_at is None


def test_what_is_older_than_an_hour_is_not_counted(busy: World) -> None:
    busy.tamper("UPDATE assignment.events SET at = now() - interval '2 h'")
    busy.execute("UPDATE assignment.requests SET answered_at = now() - interval '2 h'")
    busy.execute(
        "UPDATE assignment.assignments SET ended_at = now() - interval '2 h',"
        " claimed_at = now() - interval '3 h' WHERE state <> 'active'"
    )
    found = read(busy)
    assert found.answers_last_hour == found.ended_last_hour == found.races_last_hour == {}
    assert {each.claimed_last_hour for each in found.queues} == {0}


def test_the_time_to_assign_is_that_of_the_last_five_minutes(busy: World) -> None:
    busy.execute(
        "UPDATE assignment.requests SET received_at = answered_at - agent_id * interval '10 ms'"
    )
    busy.execute(
        "UPDATE assignment.requests SET answered_at = now() - interval '6 min',"
        " received_at = now() - interval '16 min' WHERE agent_id = 5"
    )
    times = read(busy).time_to_assign
    assert times.measured == 4
    assert times.average == pytest.approx(0.025)
    assert times.p50 == pytest.approx(0.025)
    assert times.p99 == pytest.approx(0.0397)


def test_a_crm_that_is_gone_is_told_and_the_rest_is_known(busy: World) -> None:
    busy.execute("ALTER SCHEMA crm RENAME TO elsewhere")
    found = read(busy)
    assert not found.crm_up
    assert found.holds == 2


def test_jobs_tell_of_failed_missed_and_overlapping_runs(world: World) -> None:
    for slot, status, error in (
        (5, "succeeded", None),
        (4, "failed", "it broke"),
        (2, "succeeded", None),
        (1, "skipped", "locked"),
        (0, "succeeded", None),
    ):
        ran(world, "queue.regenerate", slot, status, error, period="1 h")
    (job,) = read(world).jobs
    assert (job.job, job.queue, job.status, job.seconds) == (
        "queue.regenerate",
        UNSIGNED,
        "succeeded",
        2.0,
    )
    assert (job.failed_last_day, job.overlapping_last_day, job.missed_last_day) == (1, 1, 3)


@pytest.mark.parametrize(
    ("job", "runs", "missed"),
    [
        ("queue.regenerate", {0: "succeeded"}, 0),
        ("queue.regenerate", {3: "succeeded"}, 2),
        ("queue.regenerate", {3: "failed"}, 3),
        ("queue.regenerate", {30: "succeeded"}, 24),
        ("queue.regenerate", {30: "succeeded", 0: "running"}, 24),
        ("scores.age", {0: "failed"}, 0),
        ("scores.age", {1: "succeeded"}, 0),
        ("scores.age", {1: "failed", 0: "succeeded"}, 1),
        ("scores.age", {5: "succeeded"}, 1),
    ],
)
def test_a_period_without_a_success_is_missed_also_after_the_last_success(
    world: World, job: str, runs: dict[int, str], missed: int
) -> None:
    for slot, status in runs.items():
        error = "it broke" if status == "failed" else None
        ran(world, job, slot, status, error, period="1 h" if job == "queue.regenerate" else "1 day")
    assert [each.missed_last_day for each in read(world).jobs] == [missed]


def ran(world: World, job: str, slot: int, status: str, error: str | None, *, period: str) -> None:
    """A run of the period (an hour or a day) that was current so many periods ago."""
    world.execute(
        "INSERT INTO assignment.job_runs (job, queue, trigger, slot, status, started_at,"
        " ended_at, error) SELECT :job, :queue, 'hourly',"
        " date_bin(CAST(:period AS interval), now(), timestamptz 'epoch')"
        " - :slot * CAST(:period AS interval), :status, at,"
        " CASE :status WHEN 'running' THEN null ELSE at + interval '2 s' END, :error"
        " FROM (SELECT now() - :slot * CAST(:period AS interval) AS at) AS times",
        job=job,
        queue=UNSIGNED,
        slot=slot,
        status=status,
        error=error,
        period=period,
    )


def test_the_findings_of_the_doctor_are_kept_and_replaced(busy: World) -> None:
    def run() -> None:
        with busy.engine.connect() as connection:
            findings = doctor.examine(connection, loaded())
        with busy.engine.begin() as connection:
            doctor.store(connection, findings)

    run()
    found = read(busy)
    assert found.examined_at is not None
    assert [each.ok for each in found.findings] == [True] * len(doctor.CHECKS)
    busy.execute(
        "UPDATE assignment.entries SET state = 'held' WHERE state = 'ready' AND user_id > 15"
    )
    run()
    first = read(busy).findings[0]
    assert (first.ok, first.guarantee, first.repairable) == (False, 2, True)
    assert first.count == busy.value(
        "SELECT count(*) FROM assignment.entries e WHERE state = 'held' AND NOT EXISTS (SELECT 1 FROM"
        " assignment.assignments a WHERE a.user_id = e.user_id AND a.state = 'active')"
    )
    assert busy.value("SELECT count(*) FROM assignment.findings") == len(doctor.CHECKS)


def test_no_figure_reads_a_table_whole(busy: World) -> None:
    """Of sixty thousand old events, answers and assignments each, by scan or by index."""
    busy.execute(
        "INSERT INTO assignment.events (at, kind, term, details) SELECT now() - n * interval '1 min',"
        " 'assigned', 1, '{}' FROM generate_series(100, 60000) n"
    )
    busy.execute(
        "INSERT INTO assignment.requests (request_id, agent_id, outcome, answer, term, answered_at)"
        " SELECT 'old' || n, 1, 'empty', '{}', 1, now() - n * interval '1 min'"
        " FROM generate_series(100, 60000) n"
    )
    busy.execute(
        "INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, rank, score,"
        " reason, term, state, claimed_at, lease_expires_at, ended_at, ended_xid) SELECT"
        " gen_random_uuid(), 'old' || n, n, 1, 'unsigned_users', 1, 0, 'new', 1, 'released',"
        " now() - n * interval '1 min', now(), now() - n * interval '1 min', 1"
        " FROM generate_series(100, 60000) n"
    )
    busy.execute(
        "INSERT INTO assignment.suppressions (kind, user_id, reason, since, by)"
        " SELECT 'do_not_contact', n, 'asked', now(), 'them' FROM generate_series(100, 60000) n"
    )
    busy.execute("ANALYZE")
    with busy.engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        before = _scanned(connection)
        figures(connection, loaded(), None, application=APPLICATION)
        connection.rollback()
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        connection.rollback()
        after = _scanned(connection)
    read_now = {table: rows - before[table] for table, rows in after.items()}
    assert 0 < sum(read_now.values()) < 500, read_now


def _scanned(connection: object) -> dict[str, int]:
    rows = connection.execute(  # type: ignore[attr-defined]
        text(
            "SELECT relname, seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE schemaname = 'assignment'"
            " AND relname IN ('events', 'requests', 'assignments', 'suppressions')"
        )
    )
    found = {str(name): int(count) for name, count in rows}
    assert len(found) == 4
    return found


def test_a_race_is_told_in_the_log_with_everything_once_it_is_committed(busy: World) -> None:
    hold = busy.held(6)
    before = RACES.labels("not_owner")._value.get()
    with capture_logs() as lines:
        answer = busy.move(Release(owner(hold, agent=7)))
    assert isinstance(answer, Refused)
    assert answer.code == Code.NOT_OWNER
    (line,) = [each for each in lines if each["event"] == RACE]
    generation = busy.value(
        "SELECT id FROM assignment.generations WHERE queue = :q AND state = 'published'", q=UNSIGNED
    )
    expected = {
        "agent_id": 7,
        "user_id": hold.user_id,
        "queue_entry_id": f"{generation}/{hold.user_id}",
        "error_code": "not_owner",
        "kind": "not_owner",
        "done": "refused",
        "holder": 6,
        "term": 1,
        "assignment_id": str(hold.id),
    }
    assert expected.items() <= line.items()
    assert RACES.labels("not_owner")._value.get() == before + 1


def test_a_race_of_a_turn_that_is_rolled_back_is_not_told(busy: World) -> None:
    hold = busy.held(6)

    def fail(transaction: FencedTransaction) -> None:
        finish(transaction, [Release(owner(hold, agent=7))])
        raise ZeroDivisionError

    with capture_logs() as lines, pytest.raises(ZeroDivisionError):
        busy.run(fail)
    assert [each for each in lines if each["event"] == RACE] == []


def test_the_lag_of_the_hash_chains_is_the_age_of_the_oldest_event_beyond_them(
    world: World,
) -> None:
    with world.engine.connect() as connection:
        audit.extend(connection)
    assert read(world).audit_lag_seconds == 0
    world.execute(
        "INSERT INTO assignment.events (at, kind) SELECT now() - n * interval '1 min', 'discovered'"
        " FROM generate_series(7, 3, -1) n"
    )
    assert 420 <= read(world).audit_lag_seconds < 480
    with world.engine.connect() as connection:
        audit.extend(connection)
    assert read(world).audit_lag_seconds == 0
