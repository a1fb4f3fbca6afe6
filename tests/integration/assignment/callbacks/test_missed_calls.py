"""Missed calls: each inbound call has one follow-up, to its caller and to nobody at a guess."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import Finished
from assignment_workers.assignment.callbacks.missed_calls import match
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.jobs import Job
from assignment_workers.assignment.suppressions import do_not_contact
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from tests.support.phone_forms import UNPARSABLE, forms
from tests.support.world import HOUR, OUTSTANDING, SECOND, UNSIGNED, User, World, outstanding

MINUTE = timedelta(minutes=1)
AS_LONG = 20
"""Characters of a caller's number that the dialer's table takes."""


@pytest.fixture
def world(world: World) -> World:
    """Agents 1 to 3; users 1 to 6 in the order of their scores, published."""
    world.add_agents(1, 2, 3)
    world.add_users([User(each, score=10 * each) for each in range(1, 7)])
    world.regenerate(UNSIGNED)
    return world


def missed(
    world: World,
    user: int | None,
    *,
    ago: timedelta = MINUTE,
    phone: str = "07700900123",
    sid: str | None = None,
) -> UUID:
    """Somebody called and nobody answered."""
    at: datetime = world.now - ago
    found: UUID = world.value(
        "INSERT INTO missed_calls (user_id, phone_number, missed_at, reason, twilio_call_sid)"
        " VALUES (:user, :phone, timezone('UTC', CAST(:at AS timestamptz)), 'agents_busy', :sid)"
        " RETURNING id",
        user=user,
        phone=phone,
        at=at,
        sid=sid,
    )
    return found


def status(world: World, call: UUID) -> str:
    found: str = world.value("SELECT status FROM missed_calls WHERE id = :call", call=call)
    return found


def given(world: World, agent: int, queue: str | None = UNSIGNED) -> tuple[int, str]:
    hold = world.held(agent, queue)
    return hold.user_number, hold.source


def run_match(world: World) -> dict[str, Any]:
    ran = jobs.run(
        world.engine,
        Job("missed_calls.match", "hand"),
        lambda work: match(work, loaded(), world.external_crm, world.settings),
    )
    return dict(ran.counts)


def unbroken(world: World) -> None:
    with world.engine.connect() as connection:
        assert check(connection, dialer=loaded(), settings=world.settings, bound=HOUR) == []
    assert world.unhealthy() == []


def test_missed_calls_come_before_the_queue_the_oldest_first_and_after_callbacks(
    world: World,
) -> None:
    missed(world, 5, ago=MINUTE)
    missed(world, 6, ago=HOUR)
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " VALUES (4, timezone('UTC', CAST(:at AS timestamptz)), gen_random_uuid())",
        at=world.now - SECOND,
    )
    holds = [given(world, agent) for agent in (1, 2, 3)]
    assert holds == [(4, "callback"), (6, "missed_call"), (5, "missed_call")]
    unbroken(world)


@pytest.mark.parametrize("outcome", ["might_complete", "no_answer"])
def test_a_missed_call_has_one_follow_up_whatever_comes_of_it(world: World, outcome: str) -> None:
    call = missed(world, 5)
    assert isinstance(world.complete(world.held(1), outcome), Finished)
    assert status(world, call) == "followed_up"
    (told,) = world.events("missed_call_followed_up")
    assert (told["user_id"], told["details"]["missed_call_id"]) == (5, str(call))
    assert given(world, 1)[1] == "queue"
    unbroken(world)


@pytest.mark.parametrize("way", ["release", "expire"])
def test_hazard_c12_one_that_is_not_dialled_is_free_again_within_ten_minutes(
    world: World, way: str
) -> None:
    missed(world, 5)
    hold = world.held(1)
    if way == "release":
        world.release(hold)
    else:
        assert hold.lease_expires_at <= world.now + 10 * MINUTE
        world.now = hold.lease_expires_at
    assert given(world, 2) == (5, "missed_call")
    unbroken(world)


def test_a_caller_is_found_by_every_form_of_their_number_and_nobody_else_is(world: World) -> None:
    number = "+442079460123"
    world.execute("UPDATE crm.users SET phone_number = '(020) 7946 0123 ext. 9' WHERE id = 5")
    world.execute("UPDATE crm.users SET phone_number = '+44 20 7946 0124' WHERE id = 6")
    written = [form for form in forms(number, "GB") if len(form.text) <= AS_LONG]
    calls = {missed(world, None, phone=form.text): form for form in written}
    run_match(world)
    found = dict(world.rows("SELECT id, user_id FROM missed_calls"))
    counts = Counter((form.kind, found[call]) for call, form in calls.items())
    for (kind, user), count in sorted(counts.items(), key=str):
        print(f"{kind}: {count} {'matched' if user == 5 else 'for an operator'}")
    for call, form in calls.items():
        sure = form.kind not in UNPARSABLE and not form.several
        assert found[call] == (5 if sure else None), form
    world.run(do_not_contact, phone=number, reason="asked", by="ann", reader=Reader())
    assert given(world, 1) == (1, "queue")
    assert world.column("SELECT DISTINCT status FROM missed_calls WHERE user_id = 5") == [
        "cancelled"
    ]


def test_a_skipped_missed_call_waits_and_goes_to_another_agent(world: World) -> None:
    missed(world, 5)
    world.skip(world.held(1))
    assert given(world, 2)[1] == "queue"
    world.now += 15 * MINUTE
    assert given(world, 1)[1] == "queue"
    assert given(world, 3) == (5, "missed_call")
    unbroken(world)


def test_hazard_c11_a_user_who_was_spoken_to_is_not_called_again_for_what_they_missed(
    world: World,
) -> None:
    calls = [missed(world, 1, ago=each * MINUTE) for each in (1, 2)]
    later = missed(world, 1, ago=-MINUTE)
    world.execute("UPDATE missed_calls SET available_from = now() + interval '1 hour'")
    hold = world.held(1)
    assert (hold.user_id, hold.source) == (1, "queue")
    world.complete(hold, "might_complete")
    assert [status(world, each) for each in calls] == ["followed_up", "followed_up"]
    assert status(world, later) == "pending"
    unbroken(world)


def test_a_call_through_the_queue_that_nobody_answered_leaves_the_missed_call(
    world: World,
) -> None:
    hold = world.held(1)
    call = missed(world, hold.user_number)
    world.complete(hold, "no_answer")
    assert status(world, call) == "pending"


def test_hazard_c11_a_webhook_that_comes_again_makes_no_second_follow_up(world: World) -> None:
    first, retried = missed(world, 5, sid="CA1"), missed(world, 5, sid="CA1")
    assert (status(world, first), status(world, retried)) == ("pending", "cancelled")
    world.complete(world.held(1), "no_answer")
    again = missed(world, 5, sid="CA1")
    assert given(world, 1)[1] == "queue"
    assert (status(world, first), status(world, again)) == ("followed_up", "cancelled")
    (told,) = world.events("missed_call_cancelled")
    assert told["details"]["reason"] == "followed_up"


def test_hazard_c13_a_missed_call_is_validated_like_any_user(world: World) -> None:
    disabled, opted_out = missed(world, 4), missed(world, 5)
    world.execute("UPDATE crm.users SET is_enabled = false WHERE id = 4")
    world.execute("UPDATE user_call_scores SET last_outcome = 'do_not_contact' WHERE user_id = 5")
    assert given(world, 1)[1] == "queue"
    assert status(world, disabled) == "for_operator"
    assert status(world, opted_out) == "cancelled"
    unbroken(world)


def test_hazard_b13_a_held_user_is_not_handed_out_again_for_a_missed_call(world: World) -> None:
    held = world.held(1)
    call = missed(world, held.user_number)
    assert given(world, 2)[1] == "queue"
    assert status(world, call) == "pending"


def test_a_missed_call_is_offered_where_its_user_belongs(world: World) -> None:
    world.add_users([outstanding(50)])
    world.regenerate(OUTSTANDING)
    missed(world, 50)
    assert given(world, 1, UNSIGNED)[1] == "queue"
    assert given(world, 2, OUTSTANDING) == (50, "missed_call")


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("07700 900123", "+447700900123"),
        ("+44 (0)7700 900-123", "+447700900123"),
        ("00447700900123", "+447700900123"),
        ("+1 415 555 2671", "+14155552671"),
        ("anonymous", None),
        ("", None),
        ("12", None),
        (None, None),
    ],
)
def test_a_number_is_read_however_it_is_written(written: str | None, number: str | None) -> None:
    assert Reader("GB").read(written).e164 == ([number] if number else [])


def test_a_caller_is_found_by_the_whole_number(world: World) -> None:
    world.execute("UPDATE crm.users SET phone_number = '+44 7700 900 123' WHERE id = 5")
    world.execute("UPDATE crm.users SET phone_number = '+33 700 900 123' WHERE id = 6")
    call = missed(world, None, phone="07700900123")
    assert run_match(world) == {"matched": 1, "for_operator": 0}
    assert world.value("SELECT user_id FROM missed_calls WHERE id = :call", call=call) == 5
    assert given(world, 1) == (5, "missed_call")


def test_hazard_c10_an_unknown_caller_is_kept_for_an_operator_never_dialled_at_a_guess(
    world: World,
) -> None:
    world.execute("UPDATE crm.users SET phone_number = '07700900123' WHERE id IN (5, 6)")
    calls = [
        missed(world, None, phone=phone) for phone in ("07700900123", "07700900999", "anonymous")
    ]
    assert given(world, 1)[1] == "queue"
    assert run_match(world) == {"matched": 0, "for_operator": 3}
    assert {status(world, each) for each in calls} == {"for_operator"}
    assert world.column("SELECT user_id FROM missed_calls") == [None, None, None]
    assert len(world.events("missed_call_for_operator")) == 3
    assert run_match(world) == {"matched": 0, "for_operator": 0}
    world.now += SECOND
    assert given(world, 2)[1] == "queue"
    unbroken(world)
