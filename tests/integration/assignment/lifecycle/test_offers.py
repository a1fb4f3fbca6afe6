"""A claim is an offer until it is accepted; work lives by heartbeat; every hold ends all the same."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text

from assignment_workers.assignment.agents.heartbeats import beat
from assignment_workers.assignment.answers import Code, Finished, Held, Noted, Refused
from assignment_workers.assignment.history.history import judge
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.lifecycle.expire import expire
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Accept, Renew
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import AgentStatus
from tests.support.sessions import WAITING
from tests.support.world import HOUR, SECOND, UNSIGNED, User, World, owner


@pytest.fixture
def desk(world: World) -> World:
    """Agents 1 to 3; users 1 to 9 in their order."""
    world.add_agents(1, 2, 3)
    world.add_users(User(each, each) for each in range(1, 10))
    world.regenerate(UNSIGNED)
    return world


def accept(world: World, hold: Held) -> Held:
    answer = world.move(Accept(owner(hold), world.settings.lease))
    assert isinstance(answer, Finished), answer
    assert answer.outcome == "accepted"
    return answer.assignment


def seen(world: World, agent: int, at: datetime) -> None:
    """A heartbeat of that instant, whatever the database's clock says."""
    world.execute(
        "INSERT INTO assignment.agents_seen VALUES (:agent, :at)"
        " ON CONFLICT (agent_id) DO UPDATE SET seen_at = excluded.seen_at",
        agent=agent,
        at=at,
    )


def state_of(world: World, agent: int) -> str | None:
    found = world.column("SELECT state FROM assignment.agents_state WHERE agent_id = :a", a=agent)
    return found[0] if found else None


def lease(world: World, hold: Held) -> datetime:
    until: datetime = world.value(
        "SELECT lease_expires_at FROM assignment.assignments WHERE id = :id", id=hold.id
    )
    return until


def breaches(world: World) -> list[str]:
    with world.engine.connect() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        found = judge(connection, dialer=loaded(), settings=world.settings, bound=HOUR)
    return [each.what for each in found]


def test_an_offer_lapses_early_and_its_user_keeps_place_score_and_attempts(desk: World) -> None:
    hold = desk.held(1)
    assert hold.accepted_at is None
    assert hold.lease_expires_at == desk.now + desk.settings.offer
    scores = "SELECT * FROM user_call_scores ORDER BY user_id"
    before = desk.rows(scores)
    desk.now = hold.lease_expires_at
    assert desk.expire() == 1
    assert desk.rows(scores) == before
    row = desk.rows("SELECT state, ended_how FROM assignment.assignments")
    assert row == [("expired", "offer_lapsed")]
    (told,) = desk.events("offer_lapsed")
    assert (told["user_id"], told["agent_id"], told["assignment_id"]) == (1, 1, hold.id)
    assert desk.held(2).user_id == 1
    assert desk.unhealthy() == []
    assert breaches(desk) == []


@pytest.mark.parametrize("how", ["accept", "renew"])
def test_accepting_an_offer_makes_it_work_with_the_whole_lease(desk: World, how: str) -> None:
    hold = desk.held(1)
    desk.now = hold.lease_expires_at - SECOND
    move = Accept if how == "accept" else Renew
    answer = desk.move(move(owner(hold), desk.settings.lease))
    assert isinstance(answer, Finished)
    made = answer.assignment
    assert (made.accepted_at, made.version) == (desk.now, hold.version)
    assert made.lease_expires_at == desk.now + desk.settings.lease
    (told,) = desk.events("accepted")
    assert told["details"]["lease_expires_at"]
    desk.now += SECOND
    again = desk.move(Accept(owner(hold), desk.settings.lease))
    assert again == Finished(outcome="accepted", assignment=made, replayed=True)
    desk.now = made.lease_expires_at
    assert desk.expire() == 1
    assert desk.events("offer_lapsed") == []
    assert breaches(desk) == []


def test_an_offer_that_lapsed_is_not_accepted_any_more(desk: World) -> None:
    hold = desk.held(1)
    desk.now = hold.lease_expires_at
    desk.expire()
    answer = desk.move(Accept(owner(hold), desk.settings.lease))
    assert isinstance(answer, Refused)
    assert answer.code == Code.NOT_ACTIVE


def test_work_lives_by_heartbeat_and_ends_a_lease_after_the_last(desk: World) -> None:
    made = accept(desk, desk.held(1))
    began = desk.now
    for minutes in (4, 8, 12):
        desk.now = began + minutes * 60 * SECOND
        seen(desk, 1, desk.now)
        desk.now += 3 * 60 * SECOND
        desk.expire()
    last = began + 12 * 60 * SECOND
    assert lease(desk, made) == last + desk.settings.lease
    assert [each["details"]["by"] for each in desk.events("renewed")] == ["heartbeat"] * 3
    desk.now = last + desk.settings.lease - SECOND
    assert desk.expire() == 0
    desk.now = last + desk.settings.lease
    assert desk.expire() == 1
    assert breaches(desk) == []


def test_a_claim_keeps_work_alive_and_says_until_when(desk: World) -> None:
    made = accept(desk, desk.held(1))
    seen(desk, 1, made.lease_expires_at - SECOND)
    desk.now = made.lease_expires_at + SECOND
    answer = desk.ask(1)
    assert answer.outcome == "assigned"
    assert answer.assignment.id == made.id
    assert (
        answer.assignment.lease_expires_at == made.lease_expires_at - SECOND + desk.settings.lease
    )
    assert desk.held(2).user_id == 2


def test_a_heartbeat_before_the_work_or_of_somebody_else_keeps_nothing(desk: World) -> None:
    seen(desk, 1, desk.now)
    made = accept(desk, desk.held(1))
    seen(desk, 2, made.lease_expires_at - SECOND)
    desk.now = made.lease_expires_at
    assert desk.expire() == 1


def test_a_heartbeat_does_not_accept_an_offer_that_nobody_looks_at(desk: World) -> None:
    hold = desk.held(1)
    seen(desk, 1, hold.lease_expires_at - SECOND)
    desk.now = hold.lease_expires_at
    assert desk.expire() == 1


@pytest.mark.parametrize("commits", [True, False])
def test_a_heartbeat_that_comes_while_the_expiry_runs_counts_once_it_is_committed(
    desk: World, commits: bool
) -> None:
    made = accept(desk, desk.held(1))
    desk.now = made.lease_expires_at
    with desk.engine.connect() as page, page.begin() as heartbeat:
        page.execute(
            text("INSERT INTO assignment.agents_seen VALUES (1, :at)"), {"at": desk.now - SECOND}
        )
        if commits:
            heartbeat.commit()
        ended = desk.expire()  # does not wait for the one that is under way
    assert ended == (0 if commits else 1)
    answer = desk.complete(made)
    assert answer.outcome == ("completed" if commits else "refused")
    assert desk.unhealthy() == []
    assert breaches(desk) == []


@pytest.mark.parametrize("first", ["accept", "expire"])
def test_an_offer_accepted_at_the_moment_of_its_lapse_is_work_or_ended_never_both(
    desk: World, first: str
) -> None:
    hold = desk.held(1)
    desk.now = hold.lease_expires_at
    said: list[Any] = []

    def second() -> None:
        if first == "accept":
            said.append(desk.expire())
        else:
            said.append(desk.move(Accept(owner(hold), desk.settings.lease)))

    other = threading.Thread(target=second)
    with desk.transaction() as transaction:  # the other has to wait for this one's commit
        other.start()
        if first == "accept":
            finish(transaction, [Accept(owner(hold), desk.settings.lease)])
        else:
            expire(transaction, settings=desk.settings)
        while not transaction.connection.execute(text(WAITING)).first():
            assert other.is_alive()
    other.join()
    if first == "accept":
        assert said == [0]
        assert desk.rows("SELECT state, ended_how FROM assignment.assignments") == [
            ("active", None)
        ]
    else:
        assert said[0].code == Code.NOT_ACTIVE
        assert state_of(desk, 1) is None
    assert breaches(desk) == []


def test_three_lapsed_offers_in_a_row_set_the_agent_on_break_until_they_are_available(
    desk: World,
) -> None:
    for times in range(3):
        hold = desk.held(1)
        assert hold.user_id == 1, times
        desk.now = hold.lease_expires_at
        if times < 2:
            desk.expire()
    refused = desk.ask(1)  # the claim itself ends the third
    assert isinstance(refused, Refused)
    assert refused.code == Code.ON_BREAK
    assert "3 offers in a row lapsed" in refused.reason
    (told,) = desk.events("agent_state")
    assert (told["agent_id"], told["details"]["state"]) == (1, "break")
    assert desk.held(2).user_id == 1
    desk.run(agent_status.state, 1, AgentStatus.AVAILABLE)
    assert desk.held(1).user_id == 2
    assert breaches(desk) == []


@pytest.mark.parametrize("acts", ["accept", "skip", "complete", "release"])
def test_an_agent_who_acts_begins_to_count_anew(desk: World, acts: str) -> None:
    for _ in range(2):
        desk.now = desk.held(1).lease_expires_at
        desk.expire()
    hold = desk.held(1)
    if acts == "accept":
        accept(desk, hold)
        desk.release(hold)
    else:
        getattr(desk, acts)(hold)
    for _ in range(2):
        desk.now = desk.held(1).lease_expires_at
        desk.expire()
    assert state_of(desk, 1) is None
    assert desk.ask(1).outcome == "assigned"


def test_heartbeats_are_written_by_set_and_tell_each_agent_how_they_stand(desk: World) -> None:
    work, offer = accept(desk, desk.held(1)), desk.held(2)
    desk.run(agent_status.state, 3, AgentStatus.BREAK)
    with desk.engine.begin() as connection:
        told = beat(
            connection,
            {1: None, 2: None, 3: desk.now - HOUR, 99: None},
            dialer=loaded(),
            settings=desk.settings,
        )
    at = dict(desk.rows("SELECT agent_id, seen_at FROM assignment.agents_seen"))
    assert at.keys() == {1, 2, 3}
    assert at[3] == desk.now - HOUR
    assert told[1] == Noted(
        agent_id=1,
        state=None,
        assignment_id=work.id,
        lease_expires_at=max(work.lease_expires_at, at[1] + desk.settings.lease),
    )
    assert isinstance(told[2], Noted)
    assert told[2].lease_expires_at == offer.lease_expires_at
    assert isinstance(told[3], Noted)
    assert (told[3].state, told[3].assignment_id) == ("break", None)
    assert isinstance(told[99], Refused)
    assert told[99].code == Code.UNKNOWN_AGENT


def test_a_heartbeat_takes_no_later_one_back_and_is_never_of_a_time_to_come(desk: World) -> None:
    with desk.engine.begin() as connection:
        beat(connection, {1: None, 2: desk.now + HOUR}, dialer=loaded(), settings=desk.settings)
    first = dict(desk.rows("SELECT agent_id, seen_at FROM assignment.agents_seen"))
    assert first[2] < desk.now + HOUR / 2
    with desk.engine.begin() as connection:
        beat(connection, {1: desk.now - HOUR}, dialer=loaded(), settings=desk.settings)
    assert dict(desk.rows("SELECT agent_id, seen_at FROM assignment.agents_seen"))[1] == first[1]
