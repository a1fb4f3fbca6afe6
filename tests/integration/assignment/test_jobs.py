"""Jobs: every run leaves its row, two runs never overlap, a slot is done once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment import jobs
from assignment_workers.assignment.jobs import Counts, Job, Ran, Work
from assignment_workers.errors import Overtaken
from tests.support.world import OUTSTANDING, UNSIGNED, User, World

JOB = Job("scores.age", "beat", task_id="task")
SLOT = datetime(2025, 7, 31, tzinfo=UTC)


def touch(given: Work) -> Counts:
    """Work that can be seen, on the connection that commits with the run."""
    given.connection.execute(text("UPDATE user_call_scores SET current_score = current_score + 1"))
    return {"touched": 1}


def runs(world: World) -> list[tuple[Any, ...]]:
    return world.rows(
        "SELECT job, queue, status, counts, error FROM assignment.job_runs ORDER BY id"
    )


def score(world: World) -> int:
    return int(world.value("SELECT current_score FROM user_call_scores"))


@pytest.fixture
def one(world: World) -> World:
    """A world with one user, of score 0."""
    world.add_users([User(1)])
    return world


def test_a_run_leaves_when_it_ran_what_asked_for_it_and_what_it_did(one: World) -> None:
    seen: list[Any] = []

    def work(given: Work) -> Counts:
        seen.extend(one.rows("SELECT status, ended_at, task_id FROM assignment.job_runs"))
        return touch(given)

    assert jobs.run(one.engine, JOB, work) == Ran({"touched": 1})
    assert seen == [("running", None, "task")]
    assert runs(one) == [("scores.age", None, "succeeded", {"touched": 1}, None)]
    assert one.rows("SELECT trigger, slot, ended_at > started_at FROM assignment.job_runs") == [
        ("beat", None, True)
    ]
    assert score(one) == 1


def test_a_failed_run_changes_nothing_and_leaves_its_error(one: World) -> None:
    def work(given: Work) -> Counts:
        touch(given)
        given.connection.execute(text("SELECT 1 / 0"))
        return {}

    with pytest.raises(DBAPIError):
        jobs.run(one.engine, JOB, work)
    ((*_, status, counts, error),) = runs(one)
    assert (status, counts) == ("failed", {})
    assert "division by zero" in error
    assert "\n" not in error
    assert score(one) == 0
    assert jobs.run(one.engine, JOB, touch) == Ran({"touched": 1})


def test_a_run_beside_another_is_skipped_unless_it_is_for_another_dialer_queue(one: World) -> None:
    told: list[Ran] = []

    def work(given: Work) -> Counts:
        for queue in (UNSIGNED, OUTSTANDING):
            other = Job("queue.regenerate", "hand", queue)
            told.append(jobs.run(one.engine, other, lambda _: {"ran": 1}))
        return {}

    jobs.run(one.engine, Job("queue.regenerate", "hourly", UNSIGNED), work)
    assert told == [Ran(skipped="locked"), Ran({"ran": 1})]
    assert runs(one) == [
        ("queue.regenerate", UNSIGNED, "succeeded", {}, None),
        ("queue.regenerate", UNSIGNED, "skipped", {}, "locked"),
        ("queue.regenerate", OUTSTANDING, "succeeded", {"ran": 1}, None),
    ]


def test_a_slot_is_done_once_and_again_only_after_a_failure(one: World) -> None:
    job = Job("scores.age", "beat", slot=SLOT)

    def fail(given: Work) -> Counts:
        touch(given)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        jobs.run(one.engine, job, fail)
    with one.engine.connect() as connection:
        assert jobs.last_slot(connection, "scores.age") is None
    assert jobs.run(one.engine, job, touch).skipped is None
    assert jobs.run(one.engine, job, touch) == Ran(skipped="slot done")
    tomorrow = Job("scores.age", "beat", slot=SLOT + timedelta(days=1))
    assert jobs.run(one.engine, tomorrow, touch).skipped is None
    assert [status for _, _, status, *_ in runs(one)] == [
        "failed",
        "succeeded",
        "skipped",
        "succeeded",
    ]
    assert score(one) == 2
    with one.engine.connect() as connection:
        assert jobs.last_slot(connection, "scores.age") == tomorrow.slot


def test_a_run_whose_process_died_is_marked_failed_by_the_next_of_its_kind(one: World) -> None:
    one.execute(
        "INSERT INTO assignment.job_runs (job, queue, trigger, slot, started_at) VALUES"
        " ('queue.regenerate', :queue, 'hourly', :slot, now()),"
        " ('queue.regenerate', :other, 'hourly', :slot, now())",
        queue=UNSIGNED,
        other=OUTSTANDING,
        slot=SLOT,
    )
    job = Job("queue.regenerate", "hourly", UNSIGNED, SLOT)
    assert jobs.run(one.engine, job, touch) == Ran({"touched": 1})
    died = "its process ended before it did"
    assert runs(one) == [
        ("queue.regenerate", UNSIGNED, "failed", {}, died),
        ("queue.regenerate", OUTSTANDING, "running", {}, None),
        ("queue.regenerate", UNSIGNED, "succeeded", {"touched": 1}, None),
    ]


def test_a_run_that_was_taken_for_dead_keeps_nothing_more(one: World) -> None:
    """It lost the connection with the lock, so the next run has begun."""
    job = Job("scores.age", "beat", slot=SLOT)

    def work(given: Work) -> Counts:
        given.store_counts({"through": 1})
        given.connection.rollback()
        jobs.run(one.engine, job, lambda again: {"reached": again.reached("through")})
        given.side_connection.execute(text("UPDATE user_call_scores SET total_attempts = 7"))
        given.store_counts({"through": 2})
        return {}

    with pytest.raises(Overtaken):
        jobs.run(one.engine, job, work)
    assert one.value("SELECT total_attempts FROM user_call_scores") == 0
    first, second = runs(one)
    assert first[2:4] == ("failed", {"through": 1})
    assert "taken for dead" in first[4]
    assert second == ("scores.age", None, "succeeded", {"reached": 1}, None)


def test_what_the_ledger_commits_stays_when_the_work_fails(one: World) -> None:
    def work(given: Work) -> Counts:
        given.side_connection.execute(text("UPDATE user_call_scores SET total_attempts = 7"))
        given.side_connection.commit()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(one.engine, JOB, work)
    assert one.value("SELECT total_attempts FROM user_call_scores") == 7
    assert [status for _, _, status, *_ in runs(one)] == ["failed"]
