"""What has outlived its retention is deleted, and nothing else."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from assignment_workers.assignment import audit
from assignment_workers.assignment.answers import Empty
from assignment_workers.assignment.generations.purge import prune_history, purge_generations
from assignment_workers.assignment.jobs import Counts
from tests.support.world import (
    DAY,
    HOUR,
    SECOND,
    UNSIGNED,
    User,
    World,
)


def purge(world: World) -> int:
    with world.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        return purge_generations(connection, settings=world.settings)["generations"]


def kept(world: World) -> list[str]:
    """The tables of entries that are there, attached or not."""
    return world.column(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^entries_[0-9]+$'"
        " ORDER BY 1"
    )


def test_purge_drops_old_retired_generations_and_keeps_the_others(world: World) -> None:
    world.add_users([User(1)])
    for _ in range(3):
        world.regenerate(UNSIGNED)
    world.build(UNSIGNED)
    world.execute(
        "UPDATE assignment.generations SET retired_at = now() - interval '61 minutes' WHERE id = 1"
    )
    world.execute(
        "UPDATE assignment.generations SET retired_at = now() - interval '59 minutes' WHERE id = 2"
    )
    assert kept(world) == ["entries_1", "entries_2", "entries_3", "entries_4"]
    assert purge(world) == 1
    assert kept(world) == ["entries_2", "entries_3", "entries_4"]
    assert purge(world) == 0
    assert world.states() == {1: "ready"}
    assert world.column("SELECT id FROM assignment.generations WHERE purged_at IS NOT NULL") == [1]


def test_purge_finishes_what_a_killed_one_began(world: World) -> None:
    for _ in range(2):
        world.regenerate(UNSIGNED)
    world.execute(
        "UPDATE assignment.generations SET retired_at = now() - interval '1 day' WHERE id = 1"
    )
    autocommit = world.engine.execution_options(isolation_level="AUTOCOMMIT")
    with world.engine.connect() as reader:
        # A reader of the partition holds the detachment up until that gives up half-way.
        reader.execute(text("SELECT * FROM assignment.entries"))
        with autocommit.connect() as killed, pytest.raises(OperationalError):
            _detach(killed)
    pending = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = :name ::regclass"
    assert world.value(pending, name="assignment.entries_1") is True
    assert purge(world) == 1
    assert kept(world) == ["entries_2"]


def _detach(connection: Connection) -> None:
    connection.execute(text("SET lock_timeout TO '50ms'"))
    connection.detach()
    connection.execute(
        text("ALTER TABLE assignment.entries DETACH PARTITION assignment.entries_1 CONCURRENTLY")
    )


def lead(world: World, *, since: timedelta, seen: timedelta) -> None:
    """A sequencer has led for so long, and began its last turn so long ago."""
    world.execute(
        "UPDATE assignment.sequencer SET since = clock_timestamp() - :since,"
        " seen_at = clock_timestamp() - :seen",
        since=since,
        seen=seen,
    )


def prune(world: World) -> Counts:
    with world.engine.connect() as connection:
        audit.extend(connection)
    with world.engine.begin() as connection:
        return prune_history(connection, settings=world.settings)


def test_an_answer_is_kept_while_its_message_may_come_again(world: World) -> None:
    world.add_agents(1)
    world.regenerate(UNSIGNED)
    week = world.settings.request_retention
    empty = world.ask(1, request_id="empty")
    world.ask(1, request_id="has time yet", deadline=world.now + DAY)
    world.ask(1, request_id="late", deadline=world.now)
    world.ask(1, request_id="of this week")
    world.execute(
        "UPDATE assignment.requests SET answered_at = answered_at - :week,"
        " deadline = deadline - CASE WHEN request_id = 'late' THEN :week ELSE '0' END"
        " WHERE request_id <> 'of this week'",
        week=week,
    )
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    # Nobody leads, and what a killed sequencer had taken waits in Redis for the next one.
    lead(world, since=week, seen=HOUR)
    assert prune(world)["requests"] == 0
    # The next one has begun, and is at what was taken.
    lead(world, since=SECOND, seen=SECOND)
    assert prune(world)["requests"] == 0
    assert world.ask(1, request_id="empty") == empty
    lead(world, since=HOUR, seen=SECOND)
    assert prune(world)["requests"] == 2
    kept = world.column("SELECT request_id FROM assignment.requests ORDER BY 1")
    assert kept == ["has time yet", "of this week"]


def test_hazard_d2_d3_daily_cleaning_keeps_what_is_within_its_retention_and_all_assignments(
    world: World,
) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1), User(2)])
    world.regenerate(UNSIGNED)
    for agent in (1, 2):
        world.complete(world.held(agent))
    old = "interval '1 second'"
    purged = world.tamper(
        f"UPDATE assignment.events SET at = now() - interval '90 days' - {old}"
        " WHERE id <= (SELECT max(id) FROM assignment.events WHERE user_id = 1)"
    )
    world.execute(
        f"UPDATE assignment.requests SET answered_at = now() - interval '7 days' - {old}"
        " WHERE agent_id = 1"
    )
    world.execute(
        "INSERT INTO assignment.job_runs (job, trigger, status, started_at, ended_at, error)"
        " SELECT job, 'hand', status, now() - age, CASE WHEN status <> 'running' THEN now() END,"
        " CASE WHEN status = 'failed' THEN 'why' END FROM (VALUES"
        " ('old', 'failed', interval '91 days'), ('running', 'running', interval '91 days'),"
        " ('young', 'failed', interval '89 days')) AS runs (job, status, age)"
    )
    world.execute(
        "INSERT INTO assignment.dead_letters (at, body, error)"
        " VALUES (now() - interval '89 days', 'kept', 'why'),"
        " (now() - interval '91 days', 'never looked at', 'why')"
    )
    world.execute(
        "INSERT INTO assignment.dashboard_sessions (hash, stack, created_at, expires_at)"
        " SELECT sha256(age::text::bytea), 'a stack', now() - age, now() - age"
        " FROM unnest(ARRAY[interval '25 hours', interval '23 hours']) age"
    )
    world.execute(
        "INSERT INTO assignment.suspect_messages (digest, celery_queue, ends, at)"
        " SELECT age::text, 'assignment', 1, now() - age FROM unnest(ARRAY[interval '91 days', '89 days']) age"
    )
    world.execute(
        "INSERT INTO assignment.access_log (at, what)"
        " SELECT now() - age, 'forbidden' FROM unnest(ARRAY[interval '91 days', '89 days']) age"
    )
    scores = world.rows("SELECT s::text FROM user_call_scores s ORDER BY 1")
    lead(world, since=HOUR, seen=SECOND)
    events = len(world.events())
    assert prune(world) == {
        "requests": 1,
        "commands": 0,
        "job_runs": 1,
        "events": purged,
        "answer_counts": 0,
        "dead_letters": 1,
        "suspect_messages": 1,
        "access_log": 1,
        "dashboard_sessions": 1,
        "event_texts": 0,
        "notes": 0,
        "phones": 0,
        "reasons": 0,
    }
    assert len(world.events()) == events - purged
    assert world.column("SELECT agent_id FROM assignment.requests") == [2]
    assert world.column("SELECT job FROM assignment.job_runs ORDER BY 1") == [
        "queue.regenerate",
        "running",
        "young",
    ]
    assert world.column("SELECT body FROM assignment.dead_letters") == ["kept"]
    assert world.column("SELECT count(*) FROM assignment.assignments") == [2]
    assert world.rows("SELECT s::text FROM user_call_scores s ORDER BY 1") == scores
    assert isinstance(world.ask(1), Empty)
