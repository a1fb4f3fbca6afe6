"""Generations: built beside what is published, published at once, and no hold is disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import Assigned, Code, Done, Finished, Refused
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.generations.purge import purge_generations
from assignment_workers.assignment.generations.regenerate import regenerate
from assignment_workers.assignment.jobs import Counts, Job, Ran, Work
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete, Skip
from assignment_workers.policy.process_dialer import loaded
from tests.support.sessions import END
from tests.support.world import (
    HOUR,
    OUTSTANDING,
    SECOND,
    UNSIGNED,
    Place,
    User,
    World,
    outstanding,
    owner,
)

READY = {1: "ready", 2: "ready", 3: "ready"}


@pytest.fixture
def ranked(world: World) -> World:
    """Agents 1 to 4, and users 1 to 3 at these ranks of `unsigned_users`, published."""
    world.add_agents(1, 2, 3, 4)
    world.add_users([User(each, each) for each in (1, 2, 3)])
    world.regenerate(UNSIGNED)
    return world


@contextmanager
def interrupted(world: World, statement: str, by: Callable[[], object]) -> Iterator[None]:
    """Do `by` just before the first statement with these words, whoever executes it."""
    waiting = [by]

    def execute(_: object, __: object, sql: str, *___: object) -> None:
        if waiting and statement in sql:
            waiting.pop()()

    event.listen(world.engine, "before_cursor_execute", execute)
    try:
        yield
    finally:
        event.remove(world.engine, "before_cursor_execute", execute)
    assert not waiting, f"no statement had {statement}"


def cut_off(world: World) -> None:
    """End every other connection to this database, as when its process is killed."""
    world.column(END)


def generations(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT id, queue, state FROM assignment.generations ORDER BY id")


def test_a_rebuild_leaves_a_hold_as_it_was_and_keeps_its_users_place(ranked: World) -> None:
    hold = ranked.held(1)
    before = ranked.rows("SELECT a::text FROM assignment.assignments a")
    ranked.execute("UPDATE user_call_scores SET current_score = 9 WHERE user_id = 1")
    for _ in range(3):
        ranked.regenerate()
        assert ranked.states() == {2: "ready", 3: "ready", 1: "held"}
        assert ranked.rows("SELECT a::text FROM assignment.assignments a") == before
        assert ranked.ask(1) == Assigned(assignment=hold, replayed=True)
    assert [ranked.held(agent).user_id for agent in (2, 3)] == [2, 3]
    assert ranked.release(hold) == Finished(
        outcome="released", assignment=hold.model_copy(update={"state": "released", "version": 2})
    )
    assert ranked.held(4).rank == 3
    assert ranked.unhealthy() == []


def test_a_hold_that_breaks_the_policy_now_still_ends_well(ranked: World) -> None:
    hold = ranked.held(1)
    ranked.execute("UPDATE crm.users SET is_enabled = false WHERE id = 1")
    ranked.regenerate(UNSIGNED)
    assert ranked.states() == {2: "ready", 3: "ready"}
    assert isinstance(ranked.complete(hold), Finished)
    assert ranked.unhealthy() == []


STATES_AFTER = {
    "no_answer": ("out", "completed", None),
    "skip": ("waiting", None, "skip_everyone"),
    "release": ("ready", None, None),
    "expire": ("ready", None, None),
}


def end(world: World, hold: Any, way: str) -> None:
    """End this hold in a turn of its own."""
    match way:
        case "skip":
            world.skip(hold)
        case "release":
            world.release(hold)
        case "expire":
            world.now = hold.lease_expires_at
            assert world.expire() == 1
        case outcome:
            world.complete(hold, outcome)


@pytest.mark.parametrize("way", STATES_AFTER)
@pytest.mark.parametrize("when", ["between fill and publication", "while it was filled"])
def test_what_ends_after_a_build_has_begun_is_brought_in_by_the_publication(
    ranked: World, way: str, when: str
) -> None:
    hold = ranked.held(1)
    if when == "while it was filled":
        # The snapshot is taken and the fill has not begun: both orders of sight are covered.
        with interrupted(ranked, "INSERT INTO assignment.entries_", lambda: end(ranked, hold, way)):
            number = ranked.build()
    else:
        number = ranked.build()
        end(ranked, hold, way)
    ended = ranked.now
    ranked.publish(number)
    state, reason, wait = STATES_AFTER[way]
    until = ended + getattr(ranked.settings, wait) if wait else None
    places = ranked.places(number)
    if way == "no_answer" and when == "while it was filled":
        assert places == [Place(2, 1, "ready"), Place(3, 2, "ready")]
    else:
        assert places == [
            Place(1, 1, state, until, reason),
            Place(2, 2, "ready"),
            Place(3, 3, "ready"),
        ]
    assert ranked.unhealthy() == []


@pytest.mark.parametrize("way", ["complete", "skip"])
def test_an_end_that_commits_during_the_build_is_brought_in_although_it_came_before(
    ranked: World, way: str
) -> None:
    hold = ranked.held(1)
    ranked.now += SECOND
    with ranked.transaction() as transaction:
        if way == "complete":
            finish(transaction, [Complete(owner(hold), "no_answer")])
        else:
            finish(transaction, [Skip(owner(hold), ranked.settings.skip_everyone)])
        ranked.now += SECOND
        number = ranked.build()
    ranked.publish(number)
    states = {place.user_id: place.state for place in ranked.places(number)}
    assert states == READY | {1: {"complete": "out", "skip": "waiting"}[way]}
    assert ranked.unhealthy() == []


def test_hazard_c5_what_ended_before_a_build_follows_the_facts(ranked: World) -> None:
    begun = ranked.now
    ranked.complete(ranked.held(1), "no_answer")
    ranked.skip(ranked.held(2))
    ranked.release(ranked.held(3))
    ranked.now = begun + SECOND
    until = begun + ranked.settings.skip_everyone
    number = ranked.build()
    assert ranked.places(number) == [Place(2, 1, "waiting", until), Place(3, 2, "ready")]
    ranked.now = until
    number = ranked.build()
    assert ranked.places(number) == [Place(2, 1, "ready"), Place(3, 2, "ready")]
    ranked.now = begun + 4 * HOUR
    number = ranked.build()
    assert ranked.places(number) == [
        Place(2, 1, "ready"),
        Place(1, 2, "ready"),
        Place(3, 3, "ready"),
    ]


def test_a_user_skipped_in_a_build_and_rested_at_its_publication_is_claimable(
    ranked: World,
) -> None:
    ranked.skip(ranked.held(1))
    number = ranked.build()
    ranked.now += ranked.settings.skip_everyone
    ranked.publish(number)
    assert ranked.held(1).user_id == 2
    assert ranked.held(2).user_id == 1


def test_readers_see_the_old_generation_until_the_new_one_is_there(ranked: World) -> None:
    before = ranked.states()
    ranked.execute("UPDATE crm.users SET is_enabled = false WHERE id = 3")
    number = ranked.build()
    assert ranked.states() == before
    with ranked.transaction() as transaction:
        publish(transaction, number)
        assert ranked.states() == before
    assert generations(ranked) == [
        (number - 1, UNSIGNED, "retired"),
        (number, UNSIGNED, "published"),
    ]
    assert ranked.states() == {1: "ready", 2: "ready"}
    kinds = [event["kind"] for event in ranked.events()]
    assert kinds == ["generation_published", "generation_retired", "generation_published"]


def test_publishing_again_changes_nothing_and_a_newer_build_wins(ranked: World) -> None:
    older, newer = ranked.build(), ranked.build()
    assert ranked.publish(newer) == Done(
        counts={"held": 0, "completed_since": 0, "skipped_since": 0}
    )
    hold = ranked.held(1)
    assert ranked.publish(newer) == Done(replayed=True)
    assert ranked.publish(older) == Done(replayed=True)
    assert ranked.publish(older - 1) == Done(replayed=True)
    assert generations(ranked) == [
        (older - 1, UNSIGNED, "retired"),
        (older, UNSIGNED, "failed"),
        (newer, UNSIGNED, "published"),
    ]
    assert ranked.states() == READY | {hold.user_id: "held"}
    for number in (older, 99):
        answer = ranked.publish(number)
        assert isinstance(answer, Refused)
        assert answer.code == Code.UNKNOWN_GENERATION


def test_the_database_refuses_a_second_published_generation(ranked: World) -> None:
    number = ranked.build()
    with pytest.raises(IntegrityError, match="uq_generations_published"):
        ranked.execute(
            "UPDATE assignment.generations SET state = 'published', published_at = now()"
            " WHERE id = :number",
            number=number,
        )


def test_a_failing_build_is_marked_and_what_is_published_stays(ranked: World) -> None:
    published = ranked.states()
    with interrupted(ranked, "ANALYZE", lambda: ranked.execute("SELECT 1 / 0")):
        with pytest.raises(DBAPIError, match="division by zero"):
            ranked.build()
    (_, failed) = generations(ranked)
    assert failed[1:] == (UNSIGNED, "failed")
    (told,) = ranked.events("generation_failed")
    assert told["generation_id"] == failed[0]
    assert "division by zero" in told["details"]["error"]
    assert ranked.states() == published
    (run,) = ranked.rows("SELECT error FROM assignment.job_runs WHERE status = 'failed'")
    assert "division by zero" in run[0]
    assert isinstance(ranked.publish(failed[0]), Refused)
    ranked.regenerate(UNSIGNED)
    assert ranked.unhealthy() == []


def test_a_build_without_the_tables_of_the_crm_fails_for_that_reason(ranked: World) -> None:
    ranked.execute("ALTER TABLE crm.users RENAME TO people")
    with pytest.raises(DBAPIError, match=r'relation "crm.users" does not exist'):
        ranked.build()
    errors = ranked.rows("SELECT error FROM assignment.job_runs WHERE status = 'failed'")
    errors += ranked.rows("SELECT error FROM assignment.generations WHERE state = 'failed'")
    assert ["crm.users" in each[0] for each in errors] == [True, True]


@pytest.mark.parametrize("at", ["INSERT INTO assignment.entries_", "ATTACH PARTITION"])
def test_a_build_whose_process_is_killed_is_marked_by_the_next_and_purged(
    ranked: World, at: str
) -> None:
    published = ranked.states()
    with interrupted(ranked, at, lambda: cut_off(ranked)), pytest.raises(DBAPIError):
        ranked.build()
    (_, dead) = generations(ranked)
    assert dead[1:] == (UNSIGNED, "building")
    assert ranked.states() == published
    assert isinstance(ranked.publish(dead[0]), Refused)
    ranked.regenerate(OUTSTANDING)
    assert generations(ranked)[1] == dead
    ranked.regenerate(UNSIGNED)
    assert [state for *_, state in generations(ranked)] == [
        "retired",
        "failed",
        "published",
        "published",
    ]
    assert [told["generation_id"] for told in ranked.events("generation_failed")] == [dead[0]]
    assert ranked.column("SELECT status FROM assignment.job_runs ORDER BY id") == [
        "succeeded",
        "failed",
        "succeeded",
        "succeeded",
    ]
    with ranked.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        assert purge_generations(connection, settings=ranked.settings) == {"generations": 1}
    assert ranked.value("SELECT to_regclass(:name) IS NULL", name=f"assignment.entries_{dead[0]}")
    assert ranked.unhealthy() == []


def test_a_second_build_of_a_dialer_queue_says_that_it_is_locked(ranked: World) -> None:
    second: list[Ran] = []

    def try_again() -> None:
        def work(_: Work) -> Counts:
            raise AssertionError("two builds at once")

        second.append(jobs.run(ranked.engine, Job("queue.regenerate", "hand", UNSIGNED), work))
        ranked.build(OUTSTANDING)

    with interrupted(ranked, "ANALYZE", try_again):
        number = ranked.build(UNSIGNED)
    assert second == [Ran(skipped="locked")]
    assert isinstance(ranked.publish(number), Done)
    assert ranked.column("SELECT status FROM assignment.job_runs ORDER BY id") == [
        "succeeded",
        "succeeded",
        "skipped",
        "succeeded",
    ]


def test_a_limit_keeps_the_best_ranked(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(each, 10 - each) for each in range(1, 10)])
    world.add_users([outstanding(20)])
    world.set(queue_limit=3)
    number = world.build()
    assert [place.user_id for place in world.places(number)] == [9, 8, 7]
    assert world.value("SELECT size FROM assignment.generations WHERE id = :id", id=number) == 3
    world.set(queue_limit=None)
    assert len(world.places(world.build())) == 9


def test_a_build_says_what_it_did(ranked: World) -> None:
    built: list[tuple[int, int]] = []

    def work(given: Work) -> Counts:
        built.append(
            regenerate(
                replace(given, now=ranked.now),
                loaded(),
                None,
                loaded().policies[UNSIGNED],
                trigger="level",
            )
        )
        return {}

    jobs.run(ranked.engine, Job("queue.regenerate", "level", UNSIGNED), work)
    ((number, size),) = built
    assert size == 3
    assert ranked.rows(
        "SELECT queue, state, trigger, started_at, size, built_at IS NOT NULL,"
        " published_at, error FROM assignment.generations WHERE id = :id",
        id=number,
    ) == [(UNSIGNED, "building", "level", ranked.now, 3, True, None, None)]
