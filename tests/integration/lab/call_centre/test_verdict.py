"""The verdict on a simulated day: what an agent was told is held against the records."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest

from assignment_workers.assignment.answers import Held
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder
from assignment_workers.lab.call_centre.verdict import judge
from tests.support.world import SECOND, User, World

AGENT, USER = 26, 2064


@pytest.fixture
def hold(world: World) -> Held:
    world.add_agents(AGENT)
    world.add_users([User(USER)])
    world.regenerate("unsigned_users")
    return world.held(AGENT)


def broken(
    world: World, recorder: Recorder, signed_at: dict[int, datetime] | None = None
) -> list[str]:
    plan = Plan(agents=1, users=1, seconds=1, speed=1, seed=1, chaos=False)
    settings = world.settings
    return judge(world.engine, plan, recorder, signed_at=signed_at or {}, settings=settings).broken


def told(hold: Held) -> Recorder:
    recorder = Recorder()
    recorder.record(hold)
    return recorder


def test_a_day_that_the_records_confirm_is_good(world: World, hold: Held) -> None:
    recorder = told(hold)
    world.complete(hold)
    recorder.ended(hold, "completed", "no_answer")
    assert broken(world, recorder, {USER: hold.claimed_at + SECOND}) == []


def test_a_user_who_is_given_to_two_at_once_is_a_surprise_in_whatever_order_it_is_told(
    hold: Held,
) -> None:
    late = hold.lease_expires_at + SECOND
    other = {"id": UUID(int=7), "agent_id": 27, "lease_expires_at": late + SECOND}
    meanwhile = hold.model_copy(update=other | {"claimed_at": hold.claimed_at + SECOND})
    after = hold.model_copy(update=other | {"claimed_at": late})
    for second, surprises in ((meanwhile, 1), (after, 0)):
        for answers in ((hold, second), (second, hold)):
            recorder = Recorder()
            for each in answers:
                recorder.record(each)
            assert len(recorder.surprises) == surprises, answers


def test_an_assignment_that_is_not_there_is_named(world: World, hold: Held) -> None:
    lost = hold.model_copy(update={"id": UUID(int=7)})
    (said,) = broken(world, told(lost))
    assert said.startswith(f"agent {AGENT} was given user {USER}")


def test_another_users_assignment_is_named(world: World, hold: Held) -> None:
    (said,) = broken(world, told(hold.model_copy(update={"user_id": 5})))
    assert said.endswith(f"is of agent {AGENT} and user {USER}, not as told")


def test_a_completion_that_was_confirmed_and_is_not_there_is_named(
    world: World, hold: Held
) -> None:
    recorder = told(hold)
    recorder.ended(hold, "completed", "no_answer")
    (said,) = broken(world, recorder)
    assert said.endswith("was told completed no_answer, is active None")


def test_a_user_who_had_signed_and_was_handed_out_is_named(world: World, hold: Held) -> None:
    (said,) = broken(world, told(hold), {USER: hold.claimed_at - SECOND})
    assert said.startswith(f"guarantee 3: user {USER} signed by")
