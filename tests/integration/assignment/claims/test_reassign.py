"""An operator takes a hold back, or gives its user to another agent: once, recorded, and only if it may be."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from assignment_workers.assignment.answers import Assigned, Code, Finished, Held, Refused
from assignment_workers.assignment.claims.reassign import reassign, take_back
from assignment_workers.assignment.generations.pause import pause
from assignment_workers.assignment.history.history import check
from assignment_workers.identity import new_id
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import SECOND, UNSIGNED, User, World

SAID = {"by": "token 1f", "why": "the agent went home"}


@pytest.fixture
def desk(world: World) -> World:
    """Ten users; agents 1 to 4, of whom 4 may call nobody of this queue."""
    world.add_agents(1, 2, 3)
    world.add_agents(4, allowed_queues=["outstanding_requests"])
    world.add_agents(5, is_active=False)
    world.add_users([User(user) for user in range(1, 11)])
    world.regenerate()
    return world


def give(world: World, hold: Held, agent: int) -> Any:
    return world.run(
        reassign, hold.id, agent, **SAID, policies=loaded().policies, settings=world.settings
    )


def assert_sound(world: World) -> None:
    assert world.unhealthy() == []
    with world.engine.connect() as connection:
        assert (
            check(connection, dialer=loaded(), settings=world.settings, bound=timedelta(minutes=2))
            == []
        )


def test_a_hold_that_is_taken_back_is_claimable_at_once(desk: World) -> None:
    hold = desk.held(1)
    done = desk.run(take_back, hold.id, **SAID)
    assert isinstance(done, Finished)
    assert (done.outcome, done.assignment.state) == ("released", "released")
    (event,) = desk.events("released")
    assert event["details"] == SAID
    assert event["agent_id"] == 1
    again = desk.run(take_back, hold.id, **SAID)
    assert isinstance(again, Finished)
    assert again.replayed
    assert desk.held(2).user_id == hold.user_id
    assert_sound(desk)


def test_a_user_is_given_on_in_one_turn_with_who_and_why(desk: World) -> None:
    hold = desk.held(1)
    desk.held(2)
    desk.now += SECOND
    given = give(desk, hold, 3)
    assert isinstance(given, Assigned)
    made = given.assignment
    assert (made.user_id, made.agent_id, made.rank) == (hold.user_id, 3, hold.rank)
    assert made.claimed_at == desk.now
    assert made.lease_expires_at == desk.now + desk.settings.first_lease
    ended, began = desk.events("released")[0], desk.events("assigned")[-1]
    assert ended["at"] == began["at"]
    assert ended["details"] == SAID
    assert SAID.items() <= began["details"].items()
    assert began["details"]["reassigned_from"] == str(hold.id)
    late = desk.complete(hold)
    assert isinstance(late, Refused)
    assert late.code == Code.NOT_ACTIVE
    assert isinstance(desk.complete(made), Finished)
    assert_sound(desk)


def test_said_twice_it_gives_on_once(desk: World) -> None:
    hold = desk.held(1)
    first, second = give(desk, hold, 3), give(desk, hold, 3)
    assert isinstance(first, Assigned)
    assert isinstance(second, Assigned)
    assert second.assignment == first.assignment
    assert second.replayed
    other = give(desk, hold, 2)
    assert isinstance(other, Refused)
    assert other.code == Code.REQUEST_ID_TAKEN
    assert_sound(desk)


def test_it_goes_on_while_the_dialer_queue_is_paused_or_rebuilt(desk: World) -> None:
    hold = desk.held(1)
    desk.run(pause, UNSIGNED, **SAID)
    desk.regenerate(UNSIGNED)
    assert isinstance(give(desk, hold, 3), Assigned)
    assert_sound(desk)


def test_who_may_not_have_the_user_is_not_given_them_and_nothing_changes(desk: World) -> None:
    hold = desk.held(1)
    desk.held(2)
    for agent, code, words in (
        (2, Code.MALFORMED, "holds user"),
        (4, Code.QUEUE_NOT_ALLOWED, "not allowed"),
        (5, Code.INACTIVE_AGENT, "not active"),
        (99, Code.UNKNOWN_AGENT, "no agent 99"),
    ):
        answer = give(desk, hold, agent)
        assert isinstance(answer, Refused), answer
        assert answer.code == code
        assert words in answer.reason
    answer = desk.run(take_back, new_id(desk.now, desk.randomness), **SAID)
    assert isinstance(answer, Refused)
    assert answer.code == Code.UNKNOWN_ASSIGNMENT
    assert [each["kind"] for each in desk.events("released")] == []
    assert desk.states()[hold.user_number] == "held"
    assert_sound(desk)


def test_a_user_who_has_signed_since_is_not_given_on(desk: World) -> None:
    hold = desk.held(1)
    desk.execute(
        "UPDATE crm.users SET current_signature_file_id = 'x' WHERE id = :u", u=hold.user_id
    )
    answer = give(desk, hold, 3)
    assert isinstance(answer, Refused)
    assert "signed" in answer.reason
    assert desk.states()[hold.user_number] == "held"


def test_the_history_checker_sees_a_user_given_on_who_was_taken_from_nobody(desk: World) -> None:
    hold = desk.held(1)
    assert isinstance(give(desk, hold, 3), Assigned)
    desk.tamper(
        "UPDATE assignment.events SET details = details ||"
        ' \'{"reassigned_from": "01a20b24-e226-792f-923f-0824128b2f33"}\''
        " WHERE details ? 'reassigned_from'"
    )
    with desk.engine.connect() as connection:
        found = check(
            connection, dialer=loaded(), settings=desk.settings, bound=timedelta(minutes=2)
        )
    assert [(each.guarantee, "was not taken" in each.what) for each in found] == [(4, True)]
