"""Tasks of the maintenance queue on a real database, and a database that fails under them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from assignment_workers.assignment.answers import Unavailable
from assignment_workers.assignment.generations import levels
from assignment_workers.errors import TaskFailed
from assignment_workers.sequencer.refusals import Refusals
from assignment_workers.sequencer.suspects import Suspects
from assignment_workers.settings import Settings
from assignment_workers.tasks import maintenance
from assignment_workers.tasks.app import create_app
from tests.support.world import World


@pytest.fixture
def check_levels(world: World) -> Callable[[], Any]:
    """The task `queue.check_levels`; there is no user, so both dialer queues are low."""
    app = create_app(Settings.from_environment({"REDIS_URL": "redis://redis.example:6379/0"}))
    app.engine = world.engine
    app.refusals = Refusals(app.engine, app.backend, largest=1_000_000)
    app.suspects = Suspects(app.engine, app.results)
    return app.tasks["queue.check_levels"]


def failing(monkeypatch: pytest.MonkeyPatch, statement: str, times: int) -> list[str]:
    """The job's work meets this failing statement so many times; what it then finds is nothing."""
    met: list[str] = []

    def low(connection: Any, *_: Any, **__: Any) -> list[str]:
        if len(met) < times:
            met.append(statement)
            connection.execute(text(statement))
        return []

    monkeypatch.setattr(levels, "low", low)
    return met


LOST = "SELECT pg_terminate_backend(pg_backend_pid())"
RUNS = "SELECT status FROM assignment.job_runs ORDER BY id"
LETTERS = "SELECT task, error FROM assignment.dead_letters"


def test_a_job_whose_connection_is_lost_is_done_again_in_place(
    world: World, check_levels: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    met = failing(monkeypatch, LOST, times=2)
    assert check_levels() == {"low": 0, "built": {}}
    assert met == [LOST, LOST]
    assert world.column(RUNS) == ["failed", "failed", "succeeded"]
    assert world.rows(LETTERS) == []


def test_a_job_that_the_database_fails_too_long_is_unavailable_and_no_dead_letter(
    world: World, check_levels: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "PATIENCE", timedelta(seconds=0.2))
    failing(monkeypatch, "DO $$ BEGIN RAISE deadlock_detected; END $$", times=1_000)
    answer = check_levels()
    assert isinstance(answer, Unavailable)
    assert answer.reason == "the database cannot answer"
    assert set(world.column(RUNS)) == {"failed"}
    assert world.rows(LETTERS) == []


def test_a_job_that_fails_for_another_reason_is_a_dead_letter_at_once(
    world: World, check_levels: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "SELECT 1 / 0", times=1_000)
    with pytest.raises(TaskFailed, match="DataError"):
        check_levels()
    assert world.column(RUNS) == ["failed"]
    ((task, error),) = world.rows(LETTERS)
    assert task == "queue.check_levels"
    assert "division by zero" in error
