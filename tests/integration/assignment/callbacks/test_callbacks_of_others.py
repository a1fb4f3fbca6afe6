"""Callbacks that another writer makes or ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, text

from assignment_workers.assignment.answers import Finished, Held
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete
from tests.integration.assignment.callbacks.promises import (
    callback,
    promise,
    unbroken,
    with_three_agents,
)
from tests.support.processes import wait_until
from tests.support.sessions import WAITING
from tests.support.world import HOUR, World, owner


@pytest.fixture
def world(world: World) -> World:
    return with_three_agents(world)


def test_another_writer_s_promise_is_superseded_never_doubled(world: World) -> None:
    hold = world.held(1)
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " VALUES (1, now() + interval '9 hours', gen_random_uuid())"
    )
    world.complete(hold, "call_back", callback_at=world.now + HOUR)
    statuses = world.column("SELECT status FROM callbacks ORDER BY scheduled_for")
    assert statuses == ["pending", "cancelled"]


def test_a_promise_that_another_writer_makes_in_that_instant_is_not_doubled(
    world: World,
) -> None:
    hold = world.held(1)
    outside: list[str] = []

    def promises_too(*said: Any) -> None:
        """After what was promised before is called off, just before our promise is written."""
        if "INSERT INTO public.callbacks" in said[2] and not outside:
            outside.append(said[2])
            world.execute(
                "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
                " VALUES (1, now() + interval '9 hours', gen_random_uuid())"
            )

    event.listen(world.engine, "before_cursor_execute", promises_too)
    world.complete(hold, "call_back", callback_at=world.now + HOUR)
    assert outside
    assert world.rows(
        "SELECT status, scheduled_for AT TIME ZONE 'UTC', preferred_agent_id FROM callbacks"
        " WHERE status <> 'cancelled'"
    ) == [("pending", world.now + HOUR, 1)]
    assert world.value("SELECT count(*) FROM callbacks") == 2
    unbroken(world)


def test_another_writer_may_promise_again_and_what_was_said_last_stays(world: World) -> None:
    def promised(hours: int) -> None:
        world.execute(
            "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
            f" VALUES (1, now() + interval '{hours} hours', gen_random_uuid())"
        )

    for hours in (1, 2, 3):
        promised(hours)
    by_time = "SELECT status FROM callbacks ORDER BY scheduled_for"
    assert world.column(by_time) == ["cancelled", "cancelled", "pending"]
    assert [each["user_id"] for each in world.events("callback_superseded")] == [1, 1]
    # An older promise that is taken up again does not displace the newer one.
    world.execute("UPDATE callbacks SET status = 'assigned' WHERE status = 'pending'")
    world.execute("UPDATE callbacks SET status = 'pending' WHERE status = 'assigned'")
    promised(4)
    world.execute(
        "UPDATE callbacks SET status = 'pending' WHERE scheduled_for < now() + interval '3 hours'"
    )
    assert world.column(by_time) == ["cancelled", "cancelled", "cancelled", "pending"]
    unbroken(world)


def test_two_writers_who_promise_at_once_follow_each_other(world: World) -> None:
    promise_one = (
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " VALUES (1, now() + interval '1 hour', gen_random_uuid())"
    )
    with world.engine.connect() as first:
        first.execute(text(promise_one))
        with ThreadPoolExecutor() as threads:
            second = threads.submit(world.execute, promise_one)
            wait_until(
                lambda: world.column(WAITING),
                "the second writer to wait for the first",
            )
            first.commit()
            second.result()
    assert sorted(world.column("SELECT status FROM callbacks")) == ["cancelled", "pending"]


def test_a_callback_that_another_ended_meanwhile_stays_as_it_is(world: World) -> None:
    user, world.now = promise(world)
    hold: Held = world.held(1)
    world.execute("UPDATE callbacks SET status = 'cancelled'")
    answer = world.run(finish, [Complete(owner(hold), "no_answer")])[0]
    assert isinstance(answer, Finished)
    assert callback(world, user)["status"] == "cancelled"
    unbroken(world)
