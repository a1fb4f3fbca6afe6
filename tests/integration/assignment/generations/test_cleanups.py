"""Cleanups: each takes out what it is for, once, and nothing that is held or not known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import Done
from assignment_workers.assignment.generations import levels
from assignment_workers.assignment.jobs import Counts, Job, Ran, Work
from assignment_workers.assignment.pools import age, convert
from assignment_workers.assignment.pools.age import age_scores
from assignment_workers.policy.process_dialer import loaded
from tests.support.processes import wait_until
from tests.support.sessions import WAITING
from tests.support.world import (
    BOTH,
    DAY,
    HOUR,
    OUTSTANDING,
    SECOND,
    UNSIGNED,
    Claim,
    Requirement,
    User,
    World,
    outstanding,
)

SIGN = "UPDATE crm.users SET current_signature_file_id = 'file' WHERE id = ANY(:users)"


def converted(world: World, queue: str, *, after: int = 0) -> list[int]:
    with world.engine.connect() as connection:
        return convert.converted(connection, loaded().policies[queue], after=after, now=world.now)


def remove(world: World, queue: str, *users: int) -> int:
    """How many of these users were taken out."""
    done = world.run(
        convert.remove_converted, loaded().policies[queue], users, policies=loaded().policies
    )
    assert isinstance(done, Done)
    return done.counts["converted"]


def test_hazard_d12_who_signed_leaves_with_one_conversion_and_moves_where_they_belong(
    world: World,
) -> None:
    wanting = (Claim("open", (Requirement(),)),)
    called_at = world.now - DAY
    world.add_agents(1)
    world.add_users([User(1, 7, claims=wanting), User(2, 8), User(3, 9)])
    world.execute(
        "UPDATE user_call_scores SET total_attempts = 4, last_call_at = :at WHERE user_id = 1",
        at=called_at.replace(tzinfo=None),
    )
    world.regenerate()
    world.execute(SIGN, users=[1, 2])
    assert converted(world, UNSIGNED) == [1, 2]
    assert converted(world, OUTSTANDING) == []
    assert remove(world, UNSIGNED, 1, 2, 3, 99) == 2
    assert remove(world, UNSIGNED, 1, 2, 3, 99) == 0
    assert converted(world, UNSIGNED) == []
    assert world.rows(
        "SELECT user_id, previous_queue_type, conversion_type, final_score, total_call_attempts,"
        " last_call_at AT TIME ZONE 'UTC', converted_at AT TIME ZONE 'UTC', signature_obtained"
        " FROM conversions ORDER BY user_id"
    ) == [
        (1, UNSIGNED, "signature_obtained", 7, 4, called_at, world.now, True),
        (2, UNSIGNED, "signature_obtained", 8, 0, None, world.now, True),
    ]
    assert world.rows(
        "SELECT user_id, current_score, current_queue_type FROM user_call_scores ORDER BY 1"
    ) == [(1, 0, OUTSTANDING), (2, 0, None), (3, 9, UNSIGNED)]
    assert world.states() == {1: "out", 2: "out", 3: "ready"}
    told = world.events("converted")
    assert [(each["user_id"], each["details"]["moved_to"]) for each in told] == [
        (1, OUTSTANDING),
        (2, None),
    ]
    world.now += 2 * HOUR
    world.regenerate(OUTSTANDING)
    assert world.states(OUTSTANDING) == {1: "ready"}
    assert world.unhealthy() == []


def test_whose_requirements_are_complete_leaves(world: World) -> None:
    world.add_users([outstanding(each, each) for each in (1, 2, 3, 4)])
    world.regenerate()
    world.execute("UPDATE crm.claim_requirements SET status = 'COMPLETED' WHERE claim_id = 10")
    world.execute("UPDATE crm.claims SET status = 'cancelled' WHERE user_id = 2")
    world.execute("DELETE FROM crm.users WHERE id = 3")
    assert converted(world, OUTSTANDING) == [1, 2]
    assert remove(world, OUTSTANDING, 1, 3, 4) == 1
    assert world.rows("SELECT user_id, conversion_type, signature_obtained FROM conversions") == [
        (1, "requirements_completed", False)
    ]
    assert world.states(OUTSTANDING) == {1: "out", 2: "ready", 3: "ready", 4: "ready"}


def test_hazard_d10_held_users_and_those_whose_facts_changed_back_are_left_alone(
    world: World,
) -> None:
    world.add_agents(1)
    world.add_users([User(each, each) for each in (1, 2, 3)])
    world.regenerate()
    hold = world.held(1)
    world.execute(SIGN, users=[1, 2, 3])
    assert converted(world, UNSIGNED) == [2, 3]
    world.execute("UPDATE crm.users SET current_signature_file_id = '' WHERE id = 2")
    before = world.rows("SELECT s::text FROM user_call_scores s WHERE user_id < 3 ORDER BY 1")
    assert remove(world, UNSIGNED, 1, 2, 3) == 1
    after = world.rows("SELECT s::text FROM user_call_scores s WHERE user_id < 3 ORDER BY 1")
    assert after == before
    assert world.states() == {1: "held", 2: "ready", 3: "out"}
    world.release(hold)
    assert converted(world, UNSIGNED) == [1]


def test_converted_users_are_found_some_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "AT_A_TIME", 2)
    world.add_users([User(each, signature="file") for each in range(1, 6)])
    found: list[list[int]] = []
    while page := converted(world, UNSIGNED, after=found[-1][-1] if found else 0):
        found.append(page)
    assert found == [[1, 2], [3, 4], [5]]


def test_a_slot_of_ageing_ages_once_and_only_whom_section_4_says(world: World) -> None:
    thursday = datetime(2025, 7, 31, tzinfo=UTC)
    week_ago = thursday - 7 * DAY
    users = {
        1: User(1, 0, created_at=week_ago),
        2: User(2, 10, created_at=week_ago + DAY - timedelta(milliseconds=1)),
        3: User(3, 199, created_at=week_ago - 21 * DAY),
        4: User(4, 200, created_at=week_ago),
        5: User(5, 10, created_at=week_ago + DAY),
        6: User(6, 10, created_at=week_ago - timedelta(milliseconds=1)),
        7: User(7, 10, created_at=thursday + HOUR),
        8: User(8, 10, created_at=week_ago, is_active=False),
        9: User(9, 10, created_at=week_ago, queue=OUTSTANDING),
    }
    world.add_users(users.values())
    assert [aged(world, thursday) for _ in range(2)] == [
        Ran({"aged": 3, "through": 3}),
        Ran(skipped="slot done"),
    ]
    expected = {number: user.score + 5 * (number <= 3) for number, user in users.items()}
    assert dict(world.rows("SELECT user_id, current_score FROM user_call_scores")) == expected


def aged(world: World, day: datetime) -> Ran:
    job = Job("scores.age", "beat", slot=day)
    return jobs.run(
        world.engine, job, lambda given: age_scores(given, day, loaded().policies.values())
    )


def test_ageing_that_failed_half_way_is_gone_on_with_and_ages_nobody_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    thursday = datetime(2025, 7, 31, tzinfo=UTC)
    world.add_users([User(each, created_at=thursday - 7 * DAY) for each in range(1, 8)])
    monkeypatch.setattr(age, "AT_A_TIME", 2)
    tries = 0
    real = Work.store_counts

    def fail(work: Work, counts: Counts) -> None:
        """Two batches are kept; then, once, something breaks with a third written."""
        nonlocal tries
        tries += 1
        if tries == 3:
            raise ZeroDivisionError
        real(work, counts)

    monkeypatch.setattr(Work, "store_counts", fail)
    with pytest.raises(ZeroDivisionError):
        aged(world, thursday)
    scores = "SELECT current_score FROM user_call_scores ORDER BY user_id"
    assert world.column(scores) == [5, 5, 5, 5, 0, 0, 0]
    assert aged(world, thursday) == Ran({"aged": 3, "through": 7})
    assert world.column(scores) == [5] * 7
    assert world.rows("SELECT status, counts FROM assignment.job_runs ORDER BY id") == [
        ("failed", {"aged": 4, "through": 4}),
        ("succeeded", {"aged": 3, "through": 7}),
    ]


def waits_holding(world: World, work: Callable[[], object], blocked: int, free: int) -> None:
    """`work` waits for the score row of `blocked`, and `free`'s it has not locked yet."""
    lock = text("SELECT 1 FROM user_call_scores WHERE user_id = :user FOR UPDATE NOWAIT")
    thread = threading.Thread(target=work)
    with world.engine.connect() as holder, world.engine.connect() as other:
        holder.execute(lock, {"user": blocked})
        thread.start()
        wait_until(lambda: world.column(WAITING), "the work to wait")
        other.execute(lock, {"user": free})
    thread.join(10)
    assert not thread.is_alive()


def test_a_lock_of_several_score_rows_takes_them_by_user(world: World) -> None:
    """Two who lock in different orders wait in a ring, and the database fails one of them."""
    thursday = datetime(2025, 7, 31, tzinfo=UTC)
    # The tables have user 2 first, and no index brings user 1 to the front.
    world.add_users([User(each, created_at=thursday - 7 * DAY) for each in (2, 1)])
    world.regenerate()
    for way in ("indexscan", "mergejoin", "nestloop"):
        world.execute(
            "DO $$ BEGIN EXECUTE"
            f" format('ALTER DATABASE %I SET enable_{way} TO off', current_database()); END $$"
        )
    world.engine.dispose()
    waits_holding(world, lambda: aged(world, thursday), blocked=1, free=2)
    world.execute(SIGN, users=[1, 2])
    waits_holding(world, lambda: remove(world, UNSIGNED, 2, 1), blocked=1, free=2)
    assert world.column("SELECT current_score FROM user_call_scores") == [0, 0]


def low(world: World) -> list[str]:
    with world.engine.connect() as connection:
        return levels.low(connection, BOTH, settings=world.settings)


def test_levels_are_low_when_few_are_claimable_and_the_last_build_is_not_recent(
    world: World,
) -> None:
    assert low(world) == [UNSIGNED, OUTSTANDING], "never built"
    world.add_agents(1, 2)
    world.add_users([User(each, each) for each in (1, 2, 3)])
    world.set(level_minimum=3)
    world.regenerate()
    assert low(world) == [], "built lately"
    world.execute("UPDATE assignment.generations SET built_at = built_at - interval '1 hour'")
    assert low(world) == [OUTSTANDING]
    world.held(1)
    assert low(world) == [UNSIGNED, OUTSTANDING], "a held user is not claimable"
    world.build(UNSIGNED)
    assert low(world) == [OUTSTANDING], "built, not published yet"


def test_a_level_that_cannot_be_read_is_not_low(world: World) -> None:
    world.regenerate()
    with world.engine.connect() as holder, world.engine.connect() as reader:
        holder.execute(text("LOCK TABLE assignment.entries IN ACCESS EXCLUSIVE MODE"))
        reader.execute(text("SET LOCAL lock_timeout TO '50ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            levels.low(reader, BOTH, settings=world.settings)


def test_expire_ends_lapsed_holds_and_no_others(world: World) -> None:
    world.add_agents(1, 2, 3)
    world.add_users([User(each, each) for each in (1, 2, 3)])
    world.regenerate(UNSIGNED)
    first, begun = world.held(1), world.now
    world.now += SECOND
    second, third = world.held(2), world.held(3)
    world.complete(third)
    world.now = first.lease_expires_at - timedelta(milliseconds=1)
    assert world.expire() == 0
    world.now = first.lease_expires_at
    assert world.expire() == 1
    assert world.expire() == 0
    assert world.rows(
        "SELECT agent_id, state, version, ended_at FROM assignment.assignments ORDER BY agent_id"
    ) == [
        (1, "expired", 2, world.now),
        (2, "active", 1, None),
        (3, "completed", 2, begun + SECOND),
    ]
    assert world.states() == {1: "ready", 2: "held", 3: "out"}
    (told,) = world.events("offer_lapsed")
    assert (told["assignment_id"], told["agent_id"], told["user_id"]) == (first.id, 1, 1)
    world.now = second.lease_expires_at
    assert world.expire() == 1
    assert world.unhealthy() == []


def test_a_conversion_is_credited_to_who_spoke_to_the_user_the_latest_first(world: World) -> None:
    world.add_agents(1, 2, 3, 4, 5)
    world.add_users([User(1, created_at=world.now - 90 * DAY)])

    def call(agent: int, outcome: str, seconds: int, *, ago: timedelta) -> None:
        world.now -= ago
        world.execute("UPDATE user_call_scores SET next_call_after = NULL")
        world.regenerate(UNSIGNED)
        hold = world.held(agent)
        world.now += seconds * SECOND
        world.complete(hold, outcome)
        world.now += ago - seconds * SECOND

    call(5, "might_complete", 60, ago=31 * DAY)
    call(1, "might_complete", 60, ago=9 * DAY)
    call(2, "might_complete", 31, ago=7 * DAY)
    call(1, "might_complete", 29, ago=5 * DAY)
    call(3, "no_answer", 60, ago=3 * DAY)
    call(4, "hung_up", 30, ago=DAY)
    world.execute(SIGN, users=[1])
    assert remove(world, UNSIGNED, 1) == 1
    assert world.rows("SELECT primary_agent_id, contributing_agents, episode FROM conversions") == [
        (2, [2, 1], 1)
    ]


def test_hazard_d13_each_stay_in_a_dialer_queue_has_one_conversion_by_constraint(
    world: World,
) -> None:
    world.add_users([User(1)])
    for episode in (1, 2):
        world.execute(SIGN, users=[1])
        assert remove(world, UNSIGNED, 1) == 1
        assert remove(world, UNSIGNED, 1) == 0
        # At once back in the dialer queue: a genuine second conversion is not lost.
        world.execute("UPDATE crm.users SET current_signature_file_id = NULL")
        world.execute("UPDATE user_call_scores SET current_queue_type = :queue", queue=UNSIGNED)
        assert world.column("SELECT max(episode) FROM conversions") == [episode]
    with pytest.raises(IntegrityError, match="uq_conversions_episode"):
        world.execute(
            "INSERT INTO conversions (user_id, previous_queue_type, conversion_type, converted_at,"
            " episode) VALUES (1, :queue, 'signature_obtained', now(), 2)",
            queue=UNSIGNED,
        )


def test_a_completed_form_is_a_conversion_at_once_where_the_facts_show_it(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1), User(2)])
    world.regenerate(UNSIGNED)
    holds = [world.held(agent) for agent in (1, 2)]
    world.execute(SIGN, users=[holds[0].user_id])
    world.now += 31 * SECOND
    for hold in holds:
        world.complete(hold, "completed_form")
    assert world.rows("SELECT user_id, primary_agent_id FROM conversions") == [
        (holds[0].user_id, 1)
    ]
    assert world.unhealthy() == []
