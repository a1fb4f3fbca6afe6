"""Skip, defer and close are different words: not me, later, and never in this dialer queue."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from assignment_workers.assignment.answers import Code, Done, Finished, Held, Refused
from assignment_workers.assignment.lifecycle.moves import Accept, Close, Defer, Owner
from assignment_workers.assignment.reports import details
from assignment_workers.assignment.suppressions import lift, suppressions
from assignment_workers.phones import Reader
from assignment_workers.schema.tables import SuppressionKind
from tests.integration.assignment.lifecycle.test_offers import breaches
from tests.support.world import (
    DAY,
    HOUR,
    OUTSTANDING,
    SECOND,
    UNSIGNED,
    User,
    World,
    outstanding,
    owner,
)


@pytest.fixture
def desk(world: World) -> World:
    """Agents 1 to 4; users 1 to 5 of `unsigned_users` in their order, 21 of the other."""
    world.add_agents(1, 2, 3, 4)
    world.add_users([*(User(each, each) for each in range(1, 6)), outstanding(21)])
    world.regenerate()
    return world


def defer(world: World, hold: Any, **said: Any) -> Any:
    return world.move(Defer(owner(hold), world.settings.defer_maximum, **said))


def passed_on(world: World, agent: int) -> Held:
    """User 1 is kept back, and the agent is given the next."""
    hold = world.held(agent)
    assert hold.user_id == 2
    return hold


def why(world: World, user: int, queue: str = UNSIGNED) -> str:
    return world.explained(user, queue).why


def missed(world: World, user: int) -> None:
    world.execute(
        "INSERT INTO missed_calls (phone_number, user_id, missed_at, reason)"
        " VALUES ('+442079460000', :user, timezone('UTC', :at), 'agents_busy')",
        user=user,
        at=world.now,
    )


def promised(world: World, user: int) -> None:
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id, queue_type)"
        " VALUES (:user, timezone('UTC', :at), gen_random_uuid(), 'unsigned_users')",
        user=user,
        at=world.now,
    )


@pytest.mark.parametrize("by", ["until", "rest"])
def test_a_deferred_user_is_offered_to_nobody_before_then_and_to_everybody_after(
    desk: World, by: str
) -> None:
    hold = desk.held(1)
    said = {"until": desk.now + 2 * HOUR} if by == "until" else {"rest": 2 * HOUR}
    answer = defer(desk, hold, **said, why="at work")
    ended = hold.model_copy(update={"state": "skipped", "version": 2})
    assert answer == Finished(outcome="deferred", assignment=ended)
    assert defer(desk, hold, **said) == Finished(
        outcome="deferred", assignment=ended, replayed=True
    )
    (told,) = desk.events("deferred")
    assert (told["user_id"], told["details"]["why"]) == (1, "at work")
    desk.release(passed_on(desk, 2))
    begun = desk.now
    desk.now = begun + HOUR
    desk.regenerate(UNSIGNED)
    assert desk.states()[1] == "waiting"
    assert why(desk, 1) == "waiting"
    desk.release(passed_on(desk, 3))
    desk.now = begun + 2 * HOUR
    assert desk.held(1).user_id == 1  # the agent who deferred too
    assert desk.unhealthy() == []
    assert breaches(desk) == []


def test_a_deferral_that_ends_after_a_build_has_begun_is_brought_in(desk: World) -> None:
    hold = desk.held(1)
    number = desk.build()
    defer(desk, hold, rest=HOUR)
    desk.publish(number)
    assert desk.states()[1] == "waiting"
    assert breaches(desk) == []


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"rest": HOUR, "until": None, "both": True},
        {"until": timedelta(0)},
        {"until": timedelta(days=30, seconds=1)},
        {"rest": timedelta(days=31)},
    ],
    ids=["neither", "both", "passed", "too late", "too long"],
)
def test_a_deferral_without_bounds_is_refused_and_changes_nothing(
    desk: World, said: dict[str, Any]
) -> None:
    hold = desk.held(1)
    if said.pop("both", False):
        said["until"] = HOUR
    if said.get("until") is not None:
        said["until"] = desk.now + said["until"]
    answer = defer(desk, hold, **said)
    assert isinstance(answer, Refused)
    assert answer.code == Code.MALFORMED
    assert desk.states()[1] == "held"
    assert desk.events("deferred") == []


def test_a_closed_user_is_out_of_that_dialer_queue_until_an_operator_lifts_it(desk: World) -> None:
    hold = desk.held(1)
    promised(desk, 1)
    answer = desk.move(Close(owner(hold), "moved abroad"))
    ended = hold.model_copy(update={"state": "skipped", "version": 2})
    assert answer == Finished(outcome="closed", assignment=ended)
    again = desk.move(Close(owner(hold), "moved abroad"))
    assert again == Finished(outcome="closed", assignment=ended, replayed=True)
    (told,) = desk.events("closed")
    assert (told["user_id"], told["queue"], told["details"]) == (
        1,
        UNSIGNED,
        {"why": "moved abroad"},
    )
    assert [each["user_id"] for each in desk.events("callback_cancelled")] == [1]
    assert why(desk, 1) == "closed"
    assert desk.held(2).user_id == 2
    desk.regenerate(UNSIGNED)
    assert 1 not in desk.states()
    with desk.engine.connect() as connection:
        (suppression,) = suppressions(connection, SuppressionKind.CLOSED)
    assert (suppression.user_id, suppression.queue, suppression.reason, suppression.by) == (
        1,
        UNSIGNED,
        "moved abroad",
        "agent 1",
    )
    given: dict[str, Any] = {"user": 1, "by": "ann", "why": "back"}
    for queue in (None, OUTSTANDING):
        refused = desk.run(lift, SuppressionKind.CLOSED, reader=Reader(), queue=queue, **given)
        assert isinstance(refused, Refused)
    assert (
        desk.run(lift, SuppressionKind.CLOSED, reader=Reader(), queue=UNSIGNED, **given) == Done()
    )
    desk.regenerate(UNSIGNED)
    assert desk.held(3).user_id == 1
    assert desk.unhealthy() == []
    assert breaches(desk) == []


def test_a_user_closed_in_one_dialer_queue_is_offered_in_the_other(desk: World) -> None:
    desk.move(Close(owner(desk.held(1)), "not for us"))
    desk.execute("UPDATE crm.users SET current_signature_file_id = 'file' WHERE id = 1")
    desk.execute("INSERT INTO crm.claim_requirements VALUES ('x', 10, 'payslip', 'PENDING', 'x')")
    desk.execute(
        "UPDATE user_call_scores SET current_queue_type = 'outstanding_requests',"
        " current_score = 0 WHERE user_id = 1"
    )
    desk.regenerate()
    assert why(desk, 1, OUTSTANDING) == "claimable"
    assert desk.unhealthy() == []


def test_a_build_that_began_before_the_close_does_not_bring_the_user_back(desk: World) -> None:
    hold = desk.held(1)
    number = desk.build()
    desk.move(Close(owner(hold), "moved abroad"))
    desk.publish(number)
    assert desk.held(2).user_id == 2
    assert desk.states()[1] == "out"
    assert breaches(desk) == []


def test_a_user_who_calls_in_though_closed_is_for_an_operator(desk: World) -> None:
    missed(desk, 1)
    hold = desk.held(1)
    assert hold.source == "missed_call"
    desk.move(Close(owner(hold), "moved abroad"))
    assert desk.column("SELECT status FROM missed_calls") == ["followed_up"]
    missed(desk, 1)
    assert desk.held(2).user_id == 2
    assert "for_operator" in desk.column("SELECT status FROM missed_calls")


@pytest.mark.parametrize("verb", ["defer", "close", "accept"])
def test_a_verb_of_somebody_else_or_with_another_version_is_refused(desk: World, verb: str) -> None:
    hold = desk.held(1)

    def say(who: Owner) -> Any:
        if verb == "defer":
            return desk.move(Defer(who, desk.settings.defer_maximum, rest=HOUR))
        if verb == "close":
            return desk.move(Close(who, "moved abroad"))
        return desk.move(Accept(who, desk.settings.lease))

    assert say(owner(hold, agent=2)).code == Code.NOT_OWNER
    assert say(owner(hold, version=2)).code == Code.STALE_VERSION
    desk.skip(hold)
    assert say(owner(hold)).code == Code.NOT_ACTIVE
    assert [each["details"]["kind"] for each in desk.events("ASSIGNMENT_RACE_CONDITION")] == [
        "not_owner",
        "stale_version",
        "not_active",
    ]


def test_a_deferred_user_is_kept_from_every_source_until_then(desk: World) -> None:
    defer(desk, desk.held(1), rest=2 * HOUR)
    missed(desk, 1)
    promised(desk, 1)
    desk.release(passed_on(desk, 2))
    desk.now += 2 * HOUR + desk.settings.callback_retry
    assert desk.held(3).user_id == 1
    assert breaches(desk) == []


@pytest.mark.parametrize("source", [missed, promised])
@pytest.mark.parametrize("rule", ["offer_gap", "call_cooldown"])
def test_the_gap_between_two_calls_of_one_person_holds_for_callbacks_and_missed_calls(
    desk: World, source: Any, rule: str
) -> None:
    desk.set(**{rule: HOUR if rule == "offer_gap" else "unsigned_users=3600"})
    desk.regenerate(UNSIGNED)
    hold = desk.held(1)
    if rule == "offer_gap":
        desk.release(hold)
    else:
        desk.complete(hold)
    desk.now += SECOND
    source(desk, 1)
    assert desk.held(2).user_id == 2
    desk.now += HOUR
    given = desk.held(3)
    assert (given.user_id, given.source) == (1, "callback" if source is promised else "missed_call")


def test_moving_a_user_in_rank_never_falsifies_since_when_they_have_waited(desk: World) -> None:
    def waited() -> list[int]:
        with desk.engine.connect() as connection:
            return [row["user_id"] for row in details.longest(connection, UNSIGNED, limit=10)]

    for user in range(1, 6):
        desk.execute(
            "UPDATE user_call_scores SET created_at = timezone('UTC', :at) WHERE user_id = :user",
            at=desk.now - DAY - user * HOUR,
            user=user,
        )
    before = waited()
    assert before == [5, 4, 3, 2, 1]
    desk.skip(desk.held(1))
    defer(desk, desk.held(2), rest=HOUR)
    hold = desk.held(3)
    desk.now = hold.lease_expires_at
    desk.expire()
    desk.now += HOUR
    desk.execute("UPDATE user_call_scores SET current_score = 40 - current_score")
    desk.regenerate(UNSIGNED)
    assert list(desk.states()) == [21, *before][1:]
    assert desk.held(4).user_id == 5
    desk.expire()
    assert waited() == [each for each in before if each != 5]
