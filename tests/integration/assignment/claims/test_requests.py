"""Requests: one answer for each request id, and the truth in every other case."""

from __future__ import annotations

import itertools

import pytest

from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Empty,
    Paused,
    Refused,
    RequestAnswer,
    TooLate,
    Unavailable,
)
from assignment_workers.assignment.generations.pause import pause, resume
from tests.support.world import BOTH, OUTSTANDING, SECOND, UNSIGNED, User, World, outstanding


@pytest.fixture
def call_centre(world: World) -> World:
    """Agents 1 to 4; users 1 and 2 unsigned, 11 and 12 with outstanding requests."""
    world.add_agents(1, 2, 3, 4)
    world.add_users([User(1, 1), User(2, 2), outstanding(11, 1), outstanding(12, 2)])
    world.regenerate()
    return world


def refused(answer: RequestAnswer) -> Code:
    assert isinstance(answer, Refused), answer
    return answer.code


def test_hazard_b7_a_request_asked_again_gets_the_same_assignment_as_it_stands_now(
    call_centre: World,
) -> None:
    first = call_centre.ask(1, request_id="one")
    assert isinstance(first, Assigned)
    assert call_centre.ask(1, request_id="one") == first.model_copy(update={"replayed": True})
    call_centre.complete(first.assignment)
    ended = first.assignment.model_copy(update={"state": "completed", "version": 2})
    assert call_centre.ask(1, request_id="one") == Assigned(assignment=ended, replayed=True)
    assert len(call_centre.events("assigned")) == 1


def test_a_request_id_twice_in_one_list_is_answered_once(call_centre: World) -> None:
    request = call_centre.request(1, request_id="one")
    first, second = call_centre.answer(request, request)
    assert isinstance(first, Assigned)
    assert second == first.model_copy(update={"replayed": True})
    assert len(call_centre.events("assigned")) == 1


def test_an_answer_that_handed_nobody_out_stays_although_there_are_users_now(
    call_centre: World,
) -> None:
    late = call_centre.ask(1, request_id="late", deadline=call_centre.now)
    call_centre.run(pause, UNSIGNED)
    paused = call_centre.ask(1, request_id="paused")
    call_centre.run(resume, UNSIGNED)
    assert late == TooLate(database_time=call_centre.now)
    assert paused == Paused(queue=UNSIGNED)
    assert call_centre.ask(1, request_id="late", deadline=None) == late
    assert call_centre.ask(1, request_id="paused") == paused
    assert call_centre.column("SELECT count(*) FROM assignment.assignments") == [0]


def test_another_agent_cannot_use_a_request_id_again(call_centre: World) -> None:
    call_centre.ask(1, request_id="one")
    late = call_centre.ask(2, request_id="late", deadline=call_centre.now)
    assert late == TooLate(database_time=call_centre.now)
    for request_id, thief in (("one", 2), ("late", 1), ("one", 99)):
        answer = call_centre.ask(thief, request_id=request_id)
        assert refused(answer) == Code.REQUEST_ID_TAKEN
    assert call_centre.column("SELECT agent_id FROM assignment.requests ORDER BY agent_id") == [
        1,
        2,
    ]


def test_an_assignment_answers_its_request_even_when_the_answer_was_pruned(
    call_centre: World,
) -> None:
    hold = call_centre.ask(1, request_id="one")
    assert isinstance(hold, Assigned)
    call_centre.release(hold.assignment)
    call_centre.execute("DELETE FROM assignment.requests")
    again = call_centre.ask(1, request_id="one")
    assert isinstance(again, Assigned)
    assert (again.replayed, again.assignment.id) == (True, hold.assignment.id)
    assert refused(call_centre.ask(2, request_id="one")) == Code.REQUEST_ID_TAKEN


def test_nobody_is_assigned_from_the_deadline_on(call_centre: World) -> None:
    late = TooLate(database_time=call_centre.now)
    assert call_centre.ask(1, deadline=call_centre.now) == late
    assert call_centre.ask(1, deadline=call_centre.now - SECOND) == late
    assert call_centre.column("SELECT count(*) FROM assignment.assignments") == [0]
    assert isinstance(call_centre.ask(1, deadline=call_centre.now + SECOND), Assigned)


def test_an_agent_who_holds_somebody_gets_the_same_one_back(call_centre: World) -> None:
    hold = call_centre.held(1)
    same = Assigned(assignment=hold, replayed=True)
    assert call_centre.ask(1) == same
    assert call_centre.ask(1, OUTSTANDING) == same
    both = call_centre.answer(call_centre.request(2), call_centre.request(2))
    assert [each.replayed for each in both if isinstance(each, Assigned)] == [False, True]
    assert len({each.assignment.id for each in both if isinstance(each, Assigned)}) == 1
    assert call_centre.unhealthy() == []


def test_without_a_queue_the_unsigned_come_first(call_centre: World) -> None:
    given = call_centre.answer(*(call_centre.request(agent, None) for agent in (1, 2, 3, 4)))
    users = [each.assignment.user_id for each in given if isinstance(each, Assigned)]
    assert users == [1, 2, 11, 12]
    assert [each.assignment.queue for each in given if isinstance(each, Assigned)] == [
        UNSIGNED,
        UNSIGNED,
        OUTSTANDING,
        OUTSTANDING,
    ]


def test_without_a_queue_only_those_that_the_agent_is_allowed_are_taken_from(
    call_centre: World,
) -> None:
    call_centre.add_agents(21, allowed_queues=[OUTSTANDING])
    call_centre.add_agents(22, allowed_queues=[OUTSTANDING, UNSIGNED])
    assert call_centre.held(21, None).user_id == 11
    assert call_centre.held(22, None).user_id == 1


def test_hazard_b14_agents_who_may_not_ask_are_refused_and_told_why(call_centre: World) -> None:
    call_centre.add_agents(21, is_active=False)
    call_centre.add_agents(22, allowed_queues=[OUTSTANDING])
    call_centre.add_agents(23, allowed_queues=[])
    call_centre.add_agents(24, allowed_queues="unsigned_users")
    call_centre.add_agents(25, allowed_queues=["manual_call", 7, None])
    call_centre.add_agents(26, allowed_queues={UNSIGNED: True})
    expected = {
        (99, UNSIGNED): Code.UNKNOWN_AGENT,
        (21, UNSIGNED): Code.INACTIVE_AGENT,
        (22, UNSIGNED): Code.QUEUE_NOT_ALLOWED,
        (23, None): Code.QUEUE_NOT_ALLOWED,
        (24, UNSIGNED): Code.QUEUE_NOT_ALLOWED,
        (25, None): Code.QUEUE_NOT_ALLOWED,
        (26, UNSIGNED): Code.QUEUE_NOT_ALLOWED,
        (1, "manual_call"): Code.UNKNOWN_QUEUE,
    }
    answers = call_centre.answer(*(call_centre.request(*each) for each in expected))
    assert dict(zip(expected, map(refused, answers), strict=True)) == expected
    assert call_centre.column("SELECT count(*) FROM assignment.assignments") == [0]


def test_a_refused_request_in_a_list_keeps_no_other_from_its_user(call_centre: World) -> None:
    given = call_centre.answer(
        call_centre.request(99),
        call_centre.request(1),
        call_centre.request(2, deadline=call_centre.now),
        call_centre.request(3),
    )
    users = [each.assignment.user_id for each in given if isinstance(each, Assigned)]
    assert users == [1, 2]


def test_a_paused_dialer_queue_hands_out_nobody_and_lets_holds_be(call_centre: World) -> None:
    hold = call_centre.held(1)
    for _ in range(2):
        call_centre.run(pause, UNSIGNED, by="supervisor")
    assert call_centre.ask(2) == Paused(queue=UNSIGNED)
    assert call_centre.ask(1) == Assigned(assignment=hold, replayed=True)
    assert call_centre.held(3, None).user_id == 11
    call_centre.run(pause, OUTSTANDING)
    assert call_centre.ask(4, None) == Paused(queue=None)
    call_centre.release(hold)
    call_centre.run(resume, UNSIGNED)
    assert call_centre.held(2).user_id == 1
    kinds = [event["kind"] for event in call_centre.events("queue_paused", "queue_resumed")]
    assert kinds == ["queue_paused", "queue_paused", "queue_resumed"]


def test_pausing_what_is_no_dialer_queue_is_refused(call_centre: World) -> None:
    for operation in (pause, resume):
        answer = call_centre.run(operation, "manual_call")
        assert isinstance(answer, Refused)
        assert answer.code == Code.UNKNOWN_QUEUE


def test_one_paused_and_the_other_never_built_is_not_empty(world: World) -> None:
    world.add_agents(1)
    world.run(pause, UNSIGNED)
    assert isinstance(world.ask(1, None), Unavailable)
    world.regenerate(OUTSTANDING)
    assert world.ask(1, None) == Empty(
        queue=None, retry_after=30.0, why={UNSIGNED: "paused", OUTSTANDING: "none_in_pool"}
    )


def test_hazard_b2_a_user_is_handed_out_in_any_order_of_requests_for_both_dialer_queues(
    call_centre: World,
) -> None:
    for first, second in itertools.permutations(BOTH):
        given = call_centre.answer(call_centre.request(1, first), call_centre.request(2, second))
        holds = [each.assignment for each in given if isinstance(each, Assigned)]
        assert [hold.queue for hold in holds] == [first, second]
        assert sorted(hold.user_id for hold in holds) == [1, 11]
        for hold in holds:
            call_centre.release(hold)


def test_unavailable_is_not_for_ever(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    assert world.ask(1, request_id="one").outcome == "unavailable"
    world.regenerate(UNSIGNED)
    assert isinstance(world.ask(1, request_id="one"), Assigned)
