"""Callbacks: a promised call is made at its time, by whoever promised it or by anyone, and once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import event

from assignment_workers.assignment.answers import Assigned, Empty, Finished, Paused
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.generations.pause import pause
from assignment_workers.assignment.suppressions import do_not_contact
from assignment_workers.phones import Reader
from assignment_workers.policy.calling import CallingRules
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.policy.rules import Numbers
from tests.integration.assignment.callbacks.promises import (
    MINUTE,
    callback,
    given,
    promise,
    unbroken,
    with_three_agents,
)
from tests.support.world import HOUR, OUTSTANDING, SECOND, UNSIGNED, User, World, outstanding


@pytest.fixture
def world(world: World) -> World:
    return with_three_agents(world)


def test_a_due_callback_comes_before_the_queue_and_never_early(world: World) -> None:
    user, at = promise(world)
    world.regenerate(UNSIGNED)
    world.now = at - timedelta(milliseconds=1)
    early = world.held(1)
    assert (early.user_id, early.source) == (2, "queue")
    world.release(early)
    world.now = at
    hold = world.held(1)
    assert (hold.user_id, hold.source, hold.reason, hold.queue) == (
        user,
        "callback",
        "callback",
        UNSIGNED,
    )
    unbroken(world)


def test_hazard_c9_a_promised_user_does_not_come_early_through_the_queue(world: World) -> None:
    user, at = promise(world, after=20 * MINUTE)
    # Somebody else clears the delay: the promise itself keeps them out of the dialer queue.
    world.execute("UPDATE user_call_scores SET next_call_after = NULL")
    world.regenerate(UNSIGNED)
    assert user not in world.states()
    # One that is made while they stand in what is published takes them out at the claim.
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " VALUES (2, timezone('UTC', CAST(:at AS timestamptz)), gen_random_uuid())",
        at=at,
    )
    assert given(world, 1) == (3, "queue")
    (taken,) = world.events("taken_out")
    assert (taken["user_id"], taken["details"]) == (2, {"reason": "promised"})


def test_hazard_c1_the_agent_who_promised_is_first_for_ten_minutes_then_anyone(
    world: World,
) -> None:
    user, at = promise(world, agent=1)
    world.now = at + 10 * MINUTE - SECOND
    second = world.held(2)
    assert second.source == "queue"
    world.release(second)
    world.now = at + 10 * MINUTE
    assert given(world, 2) == (user, "callback")
    unbroken(world)


def test_an_agent_who_promised_and_is_gone_keeps_nobody_waiting(world: World) -> None:
    user, at = promise(world, agent=1)
    world.execute("UPDATE agents SET is_active = false WHERE id = 1")
    world.now = at
    assert given(world, 2) == (user, "callback")


def test_one_turn_gives_each_agent_a_promise_of_their_own_the_oldest_first(world: World) -> None:
    promised = [promise(world, after=HOUR + each * SECOND, agent=each)[0] for each in (1, 2)]
    anyones = promise(world, after=HOUR - 20 * MINUTE, agent=3)[0]
    world.now += HOUR + MINUTE
    answers = world.answer(*(world.request(agent) for agent in (2, 1, 3)))
    holds = [each.assignment for each in answers if isinstance(each, Assigned)]
    assert [(hold.agent_id, hold.user_id, hold.source) for hold in holds] == [
        (2, anyones, "callback"),
        (1, promised[0], "callback"),
        (3, 4, "queue"),
    ]
    unbroken(world)


def test_a_call_that_was_answered_keeps_the_promise(world: World) -> None:
    user, world.now = promise(world)
    hold = world.held(1)
    assert isinstance(world.complete(hold, "might_complete"), Finished)
    kept = callback(world, user)
    assert kept["status"] == "completed"
    assert kept["completed_call_session_id"] == hold.id
    (told,) = world.events("callback_kept")
    assert told["details"] == {"callback_id": str(kept["id"]), "reason": "might_complete"}
    unbroken(world)


def test_hazard_c3_an_unanswered_call_is_tried_again_once_then_goes_back_to_the_queue(
    world: World,
) -> None:
    user, at = promise(world)
    world.now = at + MINUTE
    world.complete(world.held(1), "no_answer")
    first = callback(world, user)
    assert (first["status"], first["retry_count"]) == ("pending", 1)
    assert first["scheduled_for"] == at.replace(tzinfo=None)
    world.now += 15 * MINUTE - SECOND
    assert given(world, 2)[1] == "queue"
    world.now += SECOND
    again = world.held(3)
    assert (again.user_id, again.source) == (user, "callback")
    world.complete(again, "no_answer")
    assert callback(world, user)["status"] == "cancelled"
    assert [each["details"]["reason"] for each in world.events("callback_cancelled")] == [
        "no_answer"
    ]
    # Back in the dialer queue after the outcome's delay, with three attempts behind them.
    world.now += 4 * HOUR
    world.regenerate(UNSIGNED)
    assert world.states()[user] == "ready"
    assert world.value("SELECT total_attempts FROM user_call_scores WHERE user_id = 1") == 3
    unbroken(world)


@pytest.mark.parametrize("way", ["release", "expire"])
def test_hazard_c2_a_hold_that_ends_without_a_call_gives_the_promise_back(
    world: World, way: str
) -> None:
    user, world.now = promise(world)
    hold = world.held(1)
    if way == "release":
        world.release(hold)
    else:
        world.now = hold.lease_expires_at
    assert given(world, 1) == (user, "callback")
    unbroken(world)


def test_hazard_c4_a_skipped_promise_waits_and_is_not_given_to_who_skipped_it(
    world: World,
) -> None:
    user, world.now = promise(world)
    world.skip(world.held(1))
    world.now += 15 * MINUTE - SECOND
    assert given(world, 2)[1] == "queue"
    world.now += SECOND
    assert given(world, 1)[1] == "queue"
    assert given(world, 3) == (user, "callback")
    unbroken(world)


def test_a_new_promise_takes_the_place_of_the_one_before(world: World) -> None:
    _, world.now = promise(world)
    later = world.now + 3 * HOUR
    world.complete(world.held(1), "call_back", callback_at=later)
    assert world.rows(
        "SELECT status, scheduled_for AT TIME ZONE 'UTC' FROM callbacks ORDER BY created_at"
    ) == [("completed", world.now), ("pending", later)]
    unbroken(world)


@pytest.mark.parametrize("outcome", ["do_not_contact", "no_claim"])
def test_hazard_c13_whoever_is_never_offered_again_is_owed_no_callback(
    world: World, outcome: str
) -> None:
    user, world.now = promise(world)
    world.complete(world.held(1), outcome, notes="said so")
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " VALUES (:user, timezone('UTC', now() - interval '1 minute'), gen_random_uuid())",
        user=user,
    )
    assert given(world, 1)[1] == "queue"
    assert callback(world, user)["status"] == "cancelled"
    assert world.events("callback_cancelled")[-1]["details"]["reason"] == "opted_out"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE crm.users SET is_enabled = false WHERE id = 1", "disabled"),
        ("UPDATE crm.claims SET status = 'Cancelled' WHERE user_id = 1", "all_claims_cancelled"),
        ("UPDATE user_call_scores SET is_active = false WHERE user_id = 1", "inactive"),
        ("DELETE FROM crm.users WHERE id = 1", "not_in_crm"),
    ],
)
def test_hazard_c13_a_callback_is_validated_like_any_user_and_waits(
    world: World, change: str, reason: str
) -> None:
    user, at = promise(world)
    world.now = at
    world.execute(change)
    assert given(world, 1) == (2, "queue")
    assert callback(world, user)["status"] == "pending"
    (told,) = world.events("callback_postponed")
    assert told["details"]["reason"] == reason
    # It is not looked at again before its time, and for no longer than a day.
    world.now += 15 * MINUTE - SECOND
    world.held(2)
    assert len(world.events("callback_postponed")) == 1
    world.now = at + 24 * HOUR
    world.held(3)
    assert callback(world, user)["status"] == "cancelled"


def test_a_user_whose_facts_are_mended_is_called_as_promised(world: World) -> None:
    user, world.now = promise(world)
    world.execute("UPDATE crm.users SET is_enabled = false WHERE id = 1")
    assert given(world, 1)[1] == "queue"
    world.execute("UPDATE crm.users SET is_enabled = true WHERE id = 1")
    world.now += 15 * MINUTE
    assert given(world, 2) == (user, "callback")


def test_a_user_who_signed_and_has_nothing_more_to_give_is_owed_no_call(world: World) -> None:
    user, world.now = promise(world)
    world.execute("UPDATE crm.users SET current_signature_file_id = 'file' WHERE id = 1")
    assert given(world, 1)[1] == "queue"
    assert callback(world, user)["status"] == "cancelled"
    assert world.events("callback_cancelled")[0]["details"]["reason"] == "signed"


def test_hazard_c8_a_callback_is_offered_where_its_user_belongs_whatever_queue_it_names(
    world: World,
) -> None:
    world.add_users([outstanding(50)])
    for queue, user in (("manual_call", 1), (UNSIGNED, 50)):
        world.execute(
            "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id, queue_type)"
            " VALUES (:user, timezone('UTC', now() - interval '1 hour'), gen_random_uuid(), :queue)",
            user=user,
            queue=queue,
        )
    assert given(world, 1, UNSIGNED) == (1, "callback")
    hold = world.held(2, OUTSTANDING)
    assert (hold.user_id, hold.source, hold.queue) == (50, "callback", OUTSTANDING)


def test_an_agent_is_given_no_callback_of_a_dialer_queue_that_they_may_not_take_from(
    world: World,
) -> None:
    world.add_agents(9, allowed_queues=[OUTSTANDING])
    user, at = promise(world)
    world.now = at + HOUR
    world.regenerate(OUTSTANDING)
    assert isinstance(world.ask(9, None), Empty)
    assert given(world, 2, None) == (user, "callback")


def test_a_paused_dialer_queue_hands_out_no_callback(world: World) -> None:
    user, world.now = promise(world)
    world.run(pause, UNSIGNED)
    assert isinstance(world.ask(1), Paused)
    assert callback(world, user)["status"] == "pending"


def test_hazard_b13_a_callback_and_the_queue_never_hand_out_one_user_twice(world: World) -> None:
    held = world.held(1)
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " VALUES (:user, timezone('UTC', now() - interval '1 minute'), gen_random_uuid())",
        user=held.user_id,
    )
    assert given(world, 2) == (2, "queue")
    world.release(held)
    assert given(world, 3) == (held.user_id, "callback")
    unbroken(world)


def test_a_callback_is_handed_out_where_no_generation_was_ever_published(world: World) -> None:
    world.add_users([outstanding(50)])
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " VALUES (50, timezone('UTC', now() - interval '1 hour'), gen_random_uuid())"
    )
    assert given(world, 1, OUTSTANDING) == (50, "callback")


def test_many_more_callbacks_than_one_read_takes_are_all_handed_out_oldest_first(
    world: World,
) -> None:
    users = range(1_001, 1_201)
    world.add_users([User(each) for each in users])
    world.add_agents(*range(101, 301))
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " SELECT n, timezone('UTC', now() - n * interval '1 second'), gen_random_uuid()"
        " FROM generate_series(1001, 1200) n"
    )
    world.execute("UPDATE crm.users SET is_enabled = false WHERE id % 2 = 0 AND id > 1000")
    answers = world.answer(*(world.request(agent) for agent in range(101, 202)))
    holds = [each.assignment for each in answers if isinstance(each, Assigned)]
    odd = [user for user in reversed(users) if user % 2]
    assert [hold.user_id for hold in holds] == [*odd, 1]
    assert {hold.source for hold in holds[:-1]} == {"callback"}
    assert len(world.events("callback_postponed")) == 100
    unbroken(world)


def test_an_overdue_callback_is_seen_in_the_status_and_by_the_doctor(world: World) -> None:
    overdue = "no callback is overdue by more than an hour"

    def due() -> tuple[int, int]:
        found = world.status().due
        assert (found.oldest_overdue is not None) == (found.callbacks_overdue > 0)
        return found.callbacks_pending, found.callbacks_overdue

    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id) VALUES"
        " (1, timezone('UTC', now() - interval '9 minutes'), gen_random_uuid())"
    )
    assert (due(), world.unhealthy()) == ((1, 0), [])
    world.execute("UPDATE callbacks SET scheduled_for = scheduled_for - interval '2 minutes'")
    assert (due(), world.unhealthy()) == ((1, 1), [])
    world.execute("UPDATE callbacks SET scheduled_for = scheduled_for - interval '1 hour'")
    assert (due(), world.unhealthy()) == ((1, 1), [overdue])
    world.complete(world.held(1), "might_complete")
    assert (due(), world.unhealthy()) == ((0, 0), [])


@pytest.mark.parametrize(
    ("why", "sql", "found"),
    [
        (
            "number_unclear",
            "UPDATE crm.users SET phone_number = '0207?946 0000' WHERE id = 1",
            ["no callback waits for an operator to see to its user"],
        ),
        ("disabled", "UPDATE crm.users SET is_enabled = false WHERE id = 1", []),
    ],
)
def test_a_callback_whose_user_may_not_be_called_is_told_apart_from_one_that_is_overdue(
    world: World, why: str, sql: str, found: list[str]
) -> None:
    world.run(do_not_contact, phone="020 7946 0000", reason="asked", by="ann", reader=Reader())
    world.execute(sql)
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id) VALUES"
        " (1, timezone('UTC', now() - interval '2 hours'), gen_random_uuid())"
    )
    assert world.unhealthy() == ["no callback is overdue by more than an hour"]
    world.ask(1)
    (told,) = world.events("callback_postponed")
    assert told["details"]["reason"] == why
    assert world.unhealthy() == found
    due = world.status().due
    assert (due.callbacks_pending, due.callbacks_overdue) == (1, 0)
    # Nobody asks for longer than an hour after it was tried again.
    world.execute("UPDATE callbacks SET available_from = available_from - interval '2 hours'")
    assert world.unhealthy() == ["no callback is overdue by more than an hour"]


def test_a_claim_costs_no_statement_more_where_no_callback_is_due(world: World) -> None:
    promise(world, after=MINUTE)
    sent: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda *said: sent.append(said[2]))
    with world.transaction() as transaction:
        sent.clear()
        claim(transaction, [world.request(2)], policies=loaded().policies, settings=world.settings)
        usual = len(sent)
    assert not any("is_there" in each for each in sent)
    world.now += MINUTE
    with world.transaction() as transaction:
        sent.clear()
        claim(transaction, [world.request(1)], policies=loaded().policies, settings=world.settings)
    assert sum("is_there" in each for each in sent) == 1
    assert len(sent) <= usual + 1


def test_calling_rules_and_suppressions_hold_for_callbacks_too_and_only_put_them_off(
    world: World,
) -> None:
    user, at = promise(world)
    world.now = at
    world.execute(
        "UPDATE assignment.assignments SET ended_at = CAST(:at AS timestamptz)"
        " WHERE state = 'completed'",
        at=at - MINUTE,
    )
    calling = CallingRules(calls_per_day={UNSIGNED: 1, OUTSTANDING: 1})
    with world.transaction() as transaction:
        answers = claim(
            transaction,
            [world.request(1)],
            policies=loaded().under(calling, Numbers()),
            settings=world.settings,
        )
    assert isinstance(answers[0], Assigned)
    assert answers[0].assignment.source == "queue"
    assert world.events("callback_postponed")[0]["details"]["reason"] == "called_enough_today"
    assert callback(world, user)["status"] == "pending"


def test_hazard_c6_a_call_for_something_else_leaves_a_promise_that_is_to_come(
    world: World,
) -> None:
    hold = world.held(1)
    at = world.now + HOUR
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, queue_type, original_call_session_id)"
        " VALUES (:user, timezone('UTC', CAST(:at AS timestamptz)), :queue, gen_random_uuid())",
        user=hold.user_id,
        at=at,
        queue=UNSIGNED,
    )
    world.complete(hold, "hung_up")
    assert callback(world, hold.user_number)["status"] == "pending"
    assert callback(world, hold.user_number)["scheduled_for"] == at.replace(tzinfo=None)
    world.now = at
    assert given(world, 2) == (hold.user_id, "callback")
    unbroken(world)
