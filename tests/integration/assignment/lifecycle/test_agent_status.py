"""What agents say they are about decides whether they are handed anybody, and what they keep."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import text

from assignment_workers.assignment.answers import Assigned, Code, Done, Refused, Stated
from assignment_workers.assignment.claims.reassign import reassign
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Accept
from assignment_workers.schema.tables import AgentStatus
from assignment_workers.settings import by_team
from tests.integration.assignment.lifecycle.test_offers import accept, breaches, seen, state_of
from tests.support.sessions import WAITING
from tests.support.world import HOUR, SECOND, UNSIGNED, User, World, owner

MINUTE = 60 * SECOND
AVAILABLE, ON_CALL, WRAP_UP, BREAK, OFFLINE = AgentStatus


@pytest.fixture
def desk(world: World) -> World:
    """Agents 1 to 3; users 1 to 9 in their order."""
    world.add_agents(1, 2, 3)
    world.add_users(User(each, each) for each in range(1, 10))
    world.regenerate(UNSIGNED)
    return world


def say(world: World, becomes: AgentStatus, agent: int = 1, **said: Any) -> Stated:
    answer = world.run(agent_status.state, agent, becomes, **said)
    assert isinstance(answer, Stated), answer
    return answer


def shown(world: World, agent: int = 1) -> agent_status.AgentShown:
    with world.engine.connect() as connection:
        found = agent_status.shown(connection, agent)
    assert found is not None
    return found


@pytest.mark.parametrize(("away", "code"), [(BREAK, Code.ON_BREAK), (OFFLINE, Code.OFFLINE)])
def test_who_is_away_is_handed_nobody_and_told_what_to_do(
    desk: World, away: AgentStatus, code: Code
) -> None:
    say(desk, away, why="lunch")
    answer = desk.ask(1)
    assert isinstance(answer, Refused)
    assert (answer.code, answer.retry_after) == (code, None)
    assert "lunch" not in answer.reason, "a person typed it"
    assert "state available" in answer.reason
    say(desk, AVAILABLE)
    assert desk.held(1).user_id == 1
    assert breaches(desk) == []


def test_who_never_stated_anything_is_served_and_moves_make_no_state(desk: World) -> None:
    hold = accept(desk, desk.held(1))
    desk.complete(hold)
    desk.skip(desk.held(1))
    assert desk.rows("SELECT * FROM assignment.agents_state") == []
    assert shown(desk).state is None


def test_moves_lead_from_one_state_to_the_next(desk: World) -> None:
    say(desk, AVAILABLE)
    hold = desk.held(1)
    assert state_of(desk, 1) == "available"  # a claim makes nobody busy
    accept(desk, hold)
    assert state_of(desk, 1) == "on_call"
    desk.now += MINUTE
    desk.complete(hold)
    now = shown(desk)
    assert (now.state, now.since, now.calls_in_session) == ("wrap_up", desk.now, 1)
    assert now.last_call_ended_at == desk.now
    hold = accept(desk, desk.held(1))
    assert state_of(desk, 1) == "on_call"
    desk.skip(hold)
    assert state_of(desk, 1) == "available"
    hold = accept(desk, desk.held(1))
    desk.now = hold.lease_expires_at
    desk.expire()
    assert state_of(desk, 1) == "available"
    assert shown(desk).calls_in_session == 1


@pytest.mark.parametrize("away", [BREAK, OFFLINE])
def test_going_away_releases_an_offer_at_once_and_keeps_work(
    desk: World, away: AgentStatus
) -> None:
    offer = desk.held(1)
    answer = say(desk, away)
    assert answer.released == offer.id
    (told,) = desk.events("released")
    assert told["details"]["by"] == "agent 1"
    assert desk.held(2).user_id == offer.user_id
    say(desk, AVAILABLE)
    work = accept(desk, desk.held(1))
    assert say(desk, away).released is None
    again = desk.ask(1)  # a page that is loaded anew finds its work
    assert isinstance(again, Assigned)
    assert (again.assignment.id, again.replayed) == (work.id, True)
    desk.complete(work)
    assert state_of(desk, 1) == away  # finishing does not end a break
    assert breaches(desk) == []


def test_hazard_e2_saying_available_does_not_overwrite_on_call(desk: World) -> None:
    say(desk, AVAILABLE)
    work = accept(desk, desk.held(1))
    assert say(desk, AVAILABLE) == Stated(
        agent_id=1, state="on_call", since=desk.now, replayed=True
    )
    seen(desk, 1, desk.now)
    assert state_of(desk, 1) == "on_call"
    say(desk, BREAK)
    assert say(desk, AVAILABLE).state == "on_call"
    desk.complete(work)
    assert say(desk, AVAILABLE).state == "available"


def test_hazard_e1_an_agent_has_one_session_however_often_it_is_begun(desk: World) -> None:
    say(desk, AVAILABLE)
    began = desk.now
    desk.now += MINUTE
    assert say(desk, AVAILABLE).replayed
    say(desk, WRAP_UP)
    assert desk.rows("SELECT agent_id, session_began FROM assignment.agents_state") == [(1, began)]
    say(desk, OFFLINE)
    desk.now += MINUTE
    say(desk, AVAILABLE)
    assert shown(desk).session_began == desk.now
    assert shown(desk).calls_in_session == 0


@pytest.mark.parametrize("first", ["break", "accept"])
def test_a_break_between_claim_and_accept_takes_the_offer_or_keeps_the_work(
    desk: World, first: str
) -> None:
    hold = desk.held(1)
    said: list[Any] = []

    def second() -> None:
        if first == "break":
            said.append(desk.move(Accept(owner(hold), desk.settings.lease)))
        else:
            said.append(desk.run(agent_status.state, 1, BREAK))

    other = threading.Thread(target=second)
    with desk.transaction() as transaction:
        other.start()
        if first == "break":
            agent_status.state(transaction, 1, BREAK)
        else:
            finish(transaction, [Accept(owner(hold), desk.settings.lease)])
        while not transaction.connection.execute(text(WAITING)).first():
            assert other.is_alive()
    other.join()
    (answer,) = said
    if first == "break":
        assert answer.code == Code.NOT_ACTIVE
        assert desk.held(2).user_id == hold.user_id
    else:
        assert answer.released is None
        assert desk.complete(hold).outcome == "completed"
    assert state_of(desk, 1) == "break"
    assert breaches(desk) == []


def test_an_unknown_agent_has_no_state(desk: World) -> None:
    answer = desk.run(agent_status.state, 99, AVAILABLE)
    assert isinstance(answer, Refused)
    assert answer.code == Code.UNKNOWN_AGENT
    with desk.engine.connect() as connection:
        assert agent_status.shown(connection, 99) is None


def test_an_operator_gives_no_user_to_an_agent_who_is_away(desk: World) -> None:
    hold = desk.held(1)
    say(desk, BREAK, 2)
    given: dict[str, Any] = {
        "by": "ann",
        "why": "asked",
        "policies": desk.policies,
        "settings": desk.settings,
    }
    answer = desk.run(reassign, hold.id, 2, **given)
    assert isinstance(answer, Refused)
    assert answer.code == Code.ON_BREAK
    answer = desk.run(reassign, hold.id, 3, **given)
    assert isinstance(answer, Assigned)
    assert answer.assignment.accepted_at is None


def test_a_session_has_so_many_calls_by_team_or_for_all(desk: World) -> None:
    desk.set(session_calls="1, unsigned=2")
    desk.execute("UPDATE agents SET team = 'unsigned' WHERE id = 1")
    for agent, calls in ((1, 2), (2, 1)):
        say(desk, AVAILABLE, agent)
        for _ in range(calls):
            desk.complete(desk.held(agent))
        answer = desk.ask(agent)
        assert isinstance(answer, Refused)
        assert (answer.code, answer.retry_after) == (Code.SESSION_LIMIT, None)
    say(desk, OFFLINE)
    say(desk, AVAILABLE)
    assert desk.ask(1).outcome == "assigned"
    desk.complete(desk.held(3))  # without a session there is no limit
    assert desk.ask(3).outcome == "assigned"


def test_a_gap_between_calls_is_waited_for_and_the_same_request_may_ask_again(desk: World) -> None:
    desk.set(call_gap="30")
    say(desk, AVAILABLE)
    desk.complete(desk.held(1))
    desk.now += 10 * SECOND
    answer = desk.ask(1, request_id="patient")
    assert isinstance(answer, Refused)
    assert (answer.code, answer.retry_after) == (Code.CALL_GAP, 20.0)
    desk.now += 20 * SECOND
    again = desk.ask(1, request_id="patient")
    assert isinstance(again, Assigned)


def test_a_break_is_due_after_its_interval_and_once_taken_not_for_as_long(desk: World) -> None:
    desk.set(break_interval="7200")
    say(desk, AVAILABLE)
    desk.now += 2 * HOUR - SECOND
    desk.release(desk.held(1))
    desk.now += SECOND
    answer = desk.ask(1)
    assert isinstance(answer, Refused)
    assert answer.code == Code.BREAK_DUE
    say(desk, BREAK)
    desk.now += 10 * MINUTE
    say(desk, AVAILABLE)
    desk.now += 2 * HOUR - SECOND
    assert desk.ask(1).outcome == "assigned"


@pytest.mark.parametrize("said", ["", "0", "ten", "=5", "a=", "1.5", "-1"])
def test_a_limit_that_is_no_number_names_what_is_accepted(said: str) -> None:
    with pytest.raises(ValueError, match="a whole number from 1, for all, or by team"):
        by_team(said)


def test_a_session_without_a_sign_of_life_is_stale_after_minutes_and_ended_after_hours(
    desk: World,
) -> None:
    for agent in (1, 2, 3):
        say(desk, AVAILABLE, agent)
    work = accept(desk, desk.held(2))
    desk.execute("UPDATE assignment.agents_state SET since = since - interval '10 minutes'")
    seen(desk, 3, desk.now - MINUTE)
    assert [shown(desk, agent).stale for agent in (1, 2, 3)] == [True, False, False]
    desk.now += 2 * HOUR + SECOND
    seen(desk, 3, desk.now - MINUTE)
    with desk.engine.connect() as connection:
        found = agent_status.silent(connection, desk.now)
    assert found == [1]  # 2 holds work until the next expiry
    assert desk.run(agent_status.end_sessions, found, silent_at=desk.now) == Done(
        counts={"ended": 1}
    )
    assert [state_of(desk, agent) for agent in (1, 2, 3)] == ["offline", "on_call", "available"]
    answer = desk.ask(1)
    assert isinstance(answer, Refused)
    assert "no sign of life for 2:00:00" in answer.reason
    desk.expire()
    assert desk.complete(work).outcome == "refused"
    (told, *_) = [
        each for each in desk.events("agent_state") if each["details"]["state"] == "offline"
    ]
    assert (told["agent_id"], told["details"]["by"]) == (1, "agent.tend")


def test_whoever_is_back_before_the_command_comes_keeps_their_session(desk: World) -> None:
    say(desk, AVAILABLE)
    say(desk, AVAILABLE, 2)
    desk.now += 2 * HOUR + SECOND
    with desk.engine.connect() as connection:
        found = agent_status.silent(connection, desk.now)
    assert found == [1, 2]
    at = desk.now
    desk.now += SECOND
    desk.release(desk.held(1))  # asked since
    seen(desk, 2, desk.now)
    assert desk.run(agent_status.end_sessions, found, silent_at=at) == Done(counts={"ended": 0})


def test_hazard_e4_no_state_of_a_telephone_ends_a_hold_or_a_break(desk: World) -> None:
    """Whoever says it: only the owner and the lease end a hold, only the agent a break."""
    say(desk, AVAILABLE)
    work = accept(desk, desk.held(1))
    for state in (ON_CALL, WRAP_UP, BREAK, OFFLINE, BREAK):
        say(desk, state, by="telephony")
        again = desk.ask(1)
        assert isinstance(again, Assigned)
        assert again.assignment.id == work.id
    desk.complete(work)
    assert state_of(desk, 1) == "break"
    answer = desk.ask(1)
    assert isinstance(answer, Refused)
    assert answer.code == Code.ON_BREAK


def test_hazard_e5_the_hold_of_an_agent_who_is_deleted_lapses(desk: World) -> None:
    held = desk.held(1)
    desk.execute("DELETE FROM agents WHERE id = 1")
    answer = desk.ask(1)
    assert isinstance(answer, Refused)
    assert answer.code == Code.UNKNOWN_AGENT
    desk.now = held.lease_expires_at
    assert desk.held(2).user_id == held.user_id
    assert breaches(desk) == []
