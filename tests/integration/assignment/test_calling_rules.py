"""Calling rules at the claim, with a clock that is set by hand: off unless they are configured."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from assignment_workers.assignment.answers import Assigned, Empty
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.generations.eligibility_status import meanings
from assignment_workers.assignment.reports.explain import funnel
from assignment_workers.assignment.reports.status import status
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import HOUR, OUTSTANDING, SECOND, UNSIGNED, User, World, outstanding

ORIGINAL = "mon-thu 10:00-19:00, fri 10:00-18:00"
MONDAY_NOON = datetime(2027, 3, 22, 12, tzinfo=UTC)
"""In London. The clocks go forward on the Sunday that follows."""
HALF_PAST_NINE = MONDAY_NOON - 2.5 * HOUR


def why(world: World, user: int, queue: str = UNSIGNED) -> tuple[str, datetime | None]:
    verdict = world.explained(user, queue)
    return verdict.why, verdict.free_at


@pytest.fixture
def noon(world: World) -> World:
    """Agents, and users 1 to 3 published in `unsigned_users`, on a Monday at noon."""
    world.now = MONDAY_NOON
    world.add_agents(1, 2, 3, 4)
    world.add_users([User(each, each) for each in (1, 2, 3)])
    world.regenerate()
    return world


def phone(world: World, user: int, number: str) -> None:
    world.execute("UPDATE crm.users SET phone_number = :n WHERE id = :user", n=number, user=user)


def test_without_calling_rules_users_are_handed_out_at_any_hour(noon: World) -> None:
    noon.now = MONDAY_NOON + 14 * HOUR
    assert noon.held(1).user_id == 1
    with noon.engine.connect() as connection:
        told = status(
            connection, loaded(), noon.external_crm, application="test", settings=noon.settings
        )
    assert "at any hour" in told.calling_hours
    assert "none are configured" in told.calling_rules


def test_outside_calling_hours_nobody_is_handed_out_and_nobody_loses_their_place(
    noon: World,
) -> None:
    noon.set(calling_hours=ORIGINAL, offer_without_number=True)
    noon.now = HALF_PAST_NINE
    closed = noon.ask(1)
    assert closed == Empty(
        queue=UNSIGNED, retry_after=30.0, why={UNSIGNED: "outside_calling_hours"}
    )
    assert why(noon, 1) == ("outside_calling_hours", HALF_PAST_NINE + HOUR / 2)
    with noon.engine.connect() as connection:
        found = funnel(connection, noon.policies[UNSIGNED], settings=noon.settings, now=noon.now)
    assert [(each.why, each.users) for each in found.steps] == [("outside_calling_hours", 3)]
    assert noon.events("put_off", "taken_out") == []
    noon.regenerate()
    noon.now = HALF_PAST_NINE + HOUR / 2 - 7 * SECOND
    soon = noon.ask(1)
    assert isinstance(soon, Empty)
    assert soon.retry_after == 7.0
    noon.now += 7 * SECOND
    assert [noon.held(agent).user_id for agent in (1, 2, 3)] == [1, 2, 3]


def test_a_holiday_and_the_hour_of_summer_time_count(noon: World) -> None:
    noon.set(calling_hours=ORIGINAL, calling_holidays="GB-ENG", offer_without_number=True)
    noon.now = datetime(2027, 3, 26, 12, tzinfo=UTC)  # Good Friday; then Easter Monday
    assert why(noon, 1) == (
        "outside_calling_hours",
        datetime(2027, 3, 30, 9, tzinfo=UTC),
    )


def test_each_user_has_the_hours_of_where_they_are(noon: World) -> None:
    noon.set(calling_hours=ORIGINAL, calling_zones="Europe/London, +1212=America/New_York")
    phone(noon, 1, "+1 (212) 555-0100")
    phone(noon, 2, "0044 20 7946 0000")
    phone(noon, 3, "001 212 555 0101")
    opens = datetime(2027, 3, 22, 14, tzinfo=UTC)  # New York has summer time already
    assert why(noon, 1) == ("outside_calling_hours", opens)
    assert why(noon, 3)[0] == "outside_calling_hours"
    assert noon.held(1).user_id == 2
    assert noon.states() == {1: "waiting", 2: "held", 3: "waiting"}
    empty = noon.ask(2)
    assert isinstance(empty, Empty)
    assert empty.why == {UNSIGNED: "outside_calling_hours"}
    noon.now = opens
    assert [noon.held(agent).user_id for agent in (2, 3, 4)] == [1, 2, 3]
    noon.now = datetime(2027, 3, 22, 19, tzinfo=UTC)  # London is closed; the holds have lapsed
    noon.regenerate()
    assert [noon.held(agent).user_id for agent in (2, 3)] == [1, 3]
    assert isinstance(noon.ask(4), Empty)
    assert noon.unhealthy() == []


LIMIT = 10
NEW_YORK, LONDON = "+1 212 555 01{:02}", "+44 20 7946 00{:02}"


@pytest.fixture
def crowded(world: World) -> World:
    """Twenty users in London, then five in New York, in a dialer queue of ten."""
    world.now = datetime(2027, 3, 22, 21, tzinfo=UTC)  # London is closed, New York is open
    world.add_agents(*range(1, 8))
    world.add_users([User(each, each, phone=LONDON.format(each)) for each in range(1, 21)])
    world.add_users([User(each, each, phone=NEW_YORK.format(each)) for each in range(21, 26)])
    world.set(calling_hours=ORIGINAL, queue_limit=LIMIT)
    return world


def test_users_who_sleep_do_not_fill_a_limited_generation(crowded: World) -> None:
    crowded.regenerate(UNSIGNED)
    assert list(crowded.states()) == [1, 2, 3, 4, 5, 21, 22, 23, 24, 25]
    assert [crowded.held(agent).user_id for agent in range(1, 6)] == [21, 22, 23, 24, 25]
    asleep = crowded.ask(6)
    assert isinstance(asleep, Empty)
    assert asleep.why == {UNSIGNED: "outside_calling_hours"}


def test_who_can_be_called_before_the_next_build_counts_as_awake(crowded: World) -> None:
    crowded.now = datetime(2027, 3, 23, 9, 30, tzinfo=UTC)  # London opens at ten
    crowded.regenerate(UNSIGNED)
    assert list(crowded.states()) == list(range(1, LIMIT + 1))
    crowded.now -= HOUR  # nobody is awake before the next build
    crowded.regenerate(UNSIGNED)
    assert list(crowded.states()) == list(range(1, LIMIT + 1))
    crowded.now = datetime(2027, 3, 23, 14, 30, tzinfo=UTC)  # both are open
    crowded.regenerate(UNSIGNED)
    assert list(crowded.states()) == list(range(1, LIMIT + 1))


def test_who_is_put_off_for_hours_does_not_fill_a_limited_generation(crowded: World) -> None:
    crowded.set(skip_everyone=1.5 * HOUR)
    crowded.regenerate(UNSIGNED)
    for agent in range(1, 4):
        crowded.skip(crowded.held(agent))
    crowded.set(queue_limit=2)
    crowded.regenerate(UNSIGNED)
    assert crowded.states() == {24: "ready", 25: "ready"}
    crowded.now += 0.75 * HOUR  # 21, 22 and 23 are back before the next build
    crowded.regenerate(UNSIGNED)
    assert crowded.states() == {21: "waiting", 22: "waiting"}


def test_the_explanation_promises_no_place_in_a_limited_generation(crowded: World) -> None:
    def means(user: int) -> str:
        verdict = crowded.explained(user)
        assert verdict.why == "not_in_generation"
        return verdict.means

    crowded.now = datetime(2027, 3, 23, 14, 30, tzinfo=UTC)  # both are open
    crowded.regenerate(UNSIGNED)
    assert f"takes {LIMIT} users at most" in means(25)
    limited = meanings(crowded.policies[UNSIGNED])
    assert [each for each in limited.values() if "next build" in each] == []
    crowded.set(queue_limit=None)
    assert means(25).endswith("the next build has them")


def test_a_user_is_called_so_often_in_a_day_and_no_more(noon: World) -> None:
    noon.set(calls_per_day=f"{UNSIGNED}=2")
    for _ in range(2):
        hold = noon.held(1)
        assert hold.user_id == 1
        noon.complete(hold)
        noon.now += 5 * HOUR
        noon.regenerate(UNSIGNED)
        noon.execute("UPDATE user_call_scores SET current_score = 0 WHERE user_id = 1")
        noon.regenerate(UNSIGNED)
    assert why(noon, 1) == ("called_enough_today", MONDAY_NOON + 24 * HOUR)
    assert noon.held(1).user_id != 1
    noon.now = MONDAY_NOON + 24 * HOUR
    assert why(noon, 1)[0] in {"claimable", "not_in_generation"}
    noon.regenerate(UNSIGNED)
    assert noon.held(2).user_id == 1


def test_a_user_rests_from_call_to_call_as_their_dialer_queue_says(noon: World) -> None:
    noon.add_users([outstanding(20)])
    noon.set(call_cooldown=f"{UNSIGNED}=14400, {OUTSTANDING}=21600")
    called = (MONDAY_NOON - HOUR).replace(tzinfo=None)
    noon.execute(
        "UPDATE user_call_scores SET last_call_at = :at WHERE user_id IN (1, 20)", at=called
    )
    assert why(noon, 1) == ("called_lately", MONDAY_NOON + 3 * HOUR)
    assert why(noon, 20, OUTSTANDING) == ("called_lately", MONDAY_NOON + 5 * HOUR)
    assert noon.held(1).user_id == 2
    assert noon.states()[1] == "waiting"
    noon.now = MONDAY_NOON + 3 * HOUR
    assert noon.held(2).user_id == 1


def test_a_user_has_so_many_attempts(noon: World) -> None:
    noon.set(attempts_maximum=3)
    noon.execute("UPDATE user_call_scores SET total_attempts = user_id + 1")
    assert why(noon, 1)[0] == "claimable"
    assert why(noon, 2) == ("attempts_used_up", None)
    assert noon.held(1).user_id == 1
    assert isinstance(noon.ask(2), Empty)
    assert {each["details"]["reason"] for each in noon.events("taken_out")} == {"attempts_used_up"}


def test_a_user_is_not_offered_again_too_soon_whatever_came_of_the_offer(noon: World) -> None:
    noon.set(offer_gap=timedelta(minutes=10))
    noon.release(noon.held(1))
    assert noon.held(1).user_id == 2
    assert why(noon, 1) == ("offered_lately", MONDAY_NOON + timedelta(minutes=10))
    noon.now = MONDAY_NOON + timedelta(minutes=10)
    assert noon.held(2).user_id == 1


def test_many_who_come_back_at_once_do_so_turn_by_turn_and_in_their_order(
    noon: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PROMOTED_AT_MOST", 1)
    monkeypatch.setattr(entries, "_PROMOTE", entries.promotion(1))
    noon.execute(
        "UPDATE assignment.entries SET state = 'waiting', available_from = :at",
        at=MONDAY_NOON + HOUR,
    )
    noon.now = MONDAY_NOON + HOUR
    request = noon.request(1)
    given = noon.answer(request, noon.request(2))
    assert [each.assignment.user_id for each in given if isinstance(each, Assigned)] == [1, 2]
