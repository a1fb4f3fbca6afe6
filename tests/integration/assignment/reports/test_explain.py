"""Explanations agree with what the claim does, and count every user of a pool once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from assignment_workers.assignment.answers import Empty
from assignment_workers.assignment.generations.pause import pause, resume
from assignment_workers.assignment.lifecycle.moves import Close
from assignment_workers.assignment.reports.explain import explain, funnel
from assignment_workers.assignment.reports.explanation import Funnel
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import (
    HOUR,
    OUTSTANDING,
    SECOND,
    UNSIGNED,
    Claim,
    User,
    World,
    outstanding,
    owner,
)


def why(world: World, user: int, queue: str = UNSIGNED) -> str:
    return world.explained(user, queue).why


def counted(world: World, queue: str = UNSIGNED) -> Funnel:
    with world.engine.connect() as connection:
        return funnel(connection, loaded().policies[queue], settings=world.settings, now=world.now)


def steps(found: Funnel) -> dict[str, int]:
    return {each.why: each.users for each in found.steps}


@pytest.fixture
def pool(world: World) -> World:
    """A pool in which each reason to be held back has a user, and two are claimable."""
    world.add_agents(1, 2, 3)
    world.add_users(
        [
            User(1),
            User(2, 1),
            User(3, 2),
            User(4, 3),
            User(5, 4),
            User(6, in_crm=False),
            User(7, is_enabled=False),
            User(8, last_outcome="no_claim"),
            User(9, claims=(Claim("cancelled"),)),
            User(10, signature="file"),
            User(11, is_active=False),
            User(12, next_call_after=world.now + HOUR),
            User(13, next_call_after=world.now + 3 * HOUR),
            User(14, 7, created_at=world.now - HOUR),
            outstanding(20),
        ]
    )
    world.regenerate()
    world.held(1)
    world.skip(world.held(2))
    world.add_users([User(15)])
    return world


def test_a_funnel_counts_every_user_of_the_pool_once_and_leaves_the_claimable(pool: World) -> None:
    found = counted(pool)
    assert (found.pool, found.complete, found.paused, found.claimable) == (15, True, False, 3)
    assert steps(found) == {
        "not_in_crm": 1,
        "disabled": 1,
        "opted_out": 1,
        "all_claims_cancelled": 1,
        "signed": 1,
        "inactive": 1,
        "cooling_down": 2,
        "too_new": 1,
        "held": 1,
        "waiting": 1,
        "not_in_generation": 1,
    }
    assert [each.left for each in found.steps] == [14, 13, 12, 11, 10, 9, 7, 6, 5, 4, 3]
    free = {each.why: each.next_free_at for each in found.steps if each.next_free_at}
    assert free == {
        "cooling_down": pool.now + HOUR,
        "too_new": pool.now + HOUR,
        "held": pool.now + pool.settings.offer,
        "waiting": pool.now + pool.settings.skip_everyone,
    }
    assert steps(counted(pool, OUTSTANDING)) == {}
    assert counted(pool, OUTSTANDING).claimable == 1


def test_the_funnel_and_the_explanation_of_each_user_agree(pool: World) -> None:
    users = pool.column(
        "SELECT user_id FROM user_call_scores WHERE current_queue_type = :q", q=UNSIGNED
    )
    each = [why(pool, user) for user in users]
    found = counted(pool)
    assert {word: each.count(word) for word in set(each)} == steps(found) | {
        "claimable": found.claimable
    }


def test_who_is_claimable_is_who_the_claim_hands_out(pool: World) -> None:
    users = range(1, 16)
    claimable = {user for user in users if why(pool, user) == "claimable"}
    given = {pool.held(agent).user_number for agent in (2, 3)}
    assert given < claimable
    assert all(why(pool, user) == "held" for user in given)


def test_a_user_is_explained_rule_by_rule(pool: World) -> None:
    found = pool.explanation(12)
    assert not found.offered
    unsigned, other = found.queues
    assert (unsigned.why, unsigned.free_at) == ("cooling_down", pool.now + HOUR)
    broken = [each for each in unsigned.rules if not each.holds]
    assert [(each.rule, each.kind, each.until) for each in broken] == [
        ("cooling_down", "resting", pool.now + HOUR)
    ]
    assert all(each.means != each.rule for each in unsigned.rules + other.rules)
    assert (other.why, other.free_at) == ("unsigned", None)
    assert [each.rule for each in other.rules if not each.holds] == [
        "unsigned",
        "requirements_completed",
        "in_other_queue",
        "cooling_down",
    ]
    assert pool.explanation(3).offered


def test_a_hold_a_skip_a_place_and_the_latest_events_are_told(pool: World) -> None:
    held = pool.explanation(1)
    assert held.hold is not None
    assert (held.hold.agent_id, held.queues[0].why) == (1, "held")
    skipped = pool.explanation(2)
    assert [(each.agent_id, each.until) for each in skipped.not_for] == [
        (2, pool.now + pool.settings.skip_agent)
    ]
    assert (skipped.queues[0].why, skipped.queues[0].free_at) == (
        "waiting",
        pool.now + pool.settings.skip_everyone,
    )
    assert [each.kind for each in skipped.events] == ["skipped", "assigned"]
    last = pool.explanation(5)
    assert last.queues[0].place is not None
    assert (last.queues[0].place.rank, last.queues[0].place.ahead) == (5, 2)
    assert last.facts is not None
    assert last.facts.score == 4


def test_the_dialer_queue_itself_may_be_what_holds_a_user_back(world: World) -> None:
    world.add_users([User(1)])
    assert why(world, 1) == "never_built"
    world.regenerate(UNSIGNED)
    assert why(world, 1) == "claimable"
    world.run(pause, UNSIGNED)
    assert why(world, 1) == "paused"
    assert counted(world).paused
    assert not world.explanation(1).offered


def test_what_a_user_is_due_is_explained_and_they_are_offered_for_it(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    at = world.now + HOUR
    world.complete(world.held(1), "call_back", callback_at=at)
    world.execute(
        "INSERT INTO missed_calls (user_id, phone_number, missed_at, reason)"
        " VALUES (1, '07700900123', timezone('UTC', CAST(:at AS timestamptz)), 'agents_busy')",
        at=world.now - SECOND,
    )

    def due() -> list[tuple[str, str, Any, int | None]]:
        return [
            (each.source, each.why, each.free_at, each.kept_for)
            for each in world.explanation(1).due
        ]

    missed = ("missed_call", "due", None, None)
    assert due() == [("callback", "not_due", at, 1), missed]
    assert world.explanation(1).offered
    world.now = at
    world.run(pause, UNSIGNED)
    assert due() == [("callback", "paused", None, 1), ("missed_call", "paused", None, None)]
    assert not world.explanation(1).offered
    world.run(resume, UNSIGNED)
    assert due() == [("callback", "due", None, 1), missed]
    hold = world.held(1)
    assert hold.source == "callback"
    assert {why for _, why, _, _ in due()} == {"held"}
    world.complete(hold, "no_answer")
    again = world.now + world.settings.callback_retry
    assert due() == [("callback", "postponed", again, 1), missed]
    world.skip(world.held(2))
    assert due()[1][1] == "postponed"
    world.now = again
    world.execute("UPDATE crm.users SET is_enabled = false WHERE id = 1")
    assert {why for _, why, _, _ in due()} == {"disabled"}
    assert not world.explanation(1).offered


def test_nobody_is_explained_who_is_not_known(world: World) -> None:
    with world.engine.connect() as connection:
        given = explain(
            connection,
            loaded(),
            world.external_crm,
            1,
            policies=loaded().policies,
            settings=world.settings,
            now=world.now,
        )
    assert given is None
    world.add_users([User(1, has_score_row=False)])
    assert world.explanation(1).facts is None
    assert why(world, 1) == "in_other_queue"


def test_a_large_pool_is_counted_by_its_best_and_the_funnel_says_so(pool: World) -> None:
    with pool.engine.connect() as connection:
        policy = loaded().policies[UNSIGNED]
        found = funnel(connection, policy, settings=pool.settings, now=pool.now, at_most=4)
        whole = funnel(connection, policy, settings=pool.settings, now=pool.now, at_most=None)
    assert (found.pool, found.complete) == (4, False)
    assert found.pool == found.claimable + sum(steps(found).values())
    assert whole.complete
    assert whole == counted(pool)


HELD_BACK: dict[str, tuple[dict[str, Any], str, float]] = {
    "blocked": ({"is_enabled": False}, "none_eligible", 30.0),
    "resting": ({"next_call_after": 20 * SECOND}, "cooling_down", 20.0),
    "new": ({"score": 3, "created_at": -HOUR}, "too_new", 30.0),
}


@pytest.mark.parametrize("case", HELD_BACK)
def test_an_empty_answer_says_what_holds_the_pool_back(world: World, case: str) -> None:
    facts, said, seconds = HELD_BACK[case]
    world.add_agents(1)
    moved: dict[str, Any] = {
        name: world.now + each if isinstance(each, timedelta) else each
        for name, each in facts.items()
    }
    world.add_users([User(1, **moved)])
    world.regenerate(UNSIGNED)
    assert world.ask(1) == Empty(queue=UNSIGNED, retry_after=seconds, why={UNSIGNED: said})


def test_an_empty_answer_tells_a_stale_build_from_an_empty_pool(world: World) -> None:
    world.add_agents(1)
    world.regenerate(UNSIGNED)
    world.add_users([User(1)])
    assert world.ask(1) == Empty(queue=UNSIGNED, retry_after=30.0, why={UNSIGNED: "rebuild_stale"})
    world.regenerate(UNSIGNED)
    assert world.held(1).user_id == 1


def test_requests_of_a_turn_that_took_the_last_are_told_that_all_are_held(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    _, empty = world.answer(world.request(1), world.request(2))
    assert isinstance(empty, Empty)
    assert empty.why == {UNSIGNED: "all_held"}


def test_a_user_whom_an_agent_closed_is_explained_with_the_reason(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate()
    world.move(Close(owner(world.held(1)), "moved abroad"))
    (closed,) = world.explanation(1).suppressions
    assert (closed.kind, closed.queue, closed.reason) == ("closed", UNSIGNED, "moved abroad")
    assert closed.by == "agent 1"
