"""Draining takes out whoever is not held, and nobody else; the next build has them again."""

from __future__ import annotations

from datetime import timedelta

from assignment_workers.assignment.answers import Code, Done, Empty, Refused
from assignment_workers.assignment.generations.drain import DRAINED_AT_MOST, drain, drainable
from assignment_workers.assignment.history.history import check
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import OUTSTANDING, UNSIGNED, User, World, outstanding


def would(world: World, queue: str = UNSIGNED) -> int:
    with world.engine.connect() as connection:
        return drainable(connection, queue)


def test_who_is_claimable_or_waits_is_out_and_who_is_held_keeps_their_place(world: World) -> None:
    world.add_agents(1, 2, 3)
    world.add_users([*(User(each, each) for each in (1, 2, 3, 4)), outstanding(21)])
    world.regenerate()
    hold = world.held(1)
    world.skip(world.held(2))
    assert would(world) == 3
    assert world.run(drain, UNSIGNED, by="ann") == Done(counts={"drained": 3})
    assert world.states() == {1: "held", 2: "out", 3: "out", 4: "out"}
    assert world.states(OUTSTANDING) == {21: "ready"}
    told = [(each["user_id"], each["details"]) for each in world.events("taken_out")]
    assert sorted(user for user, _ in told) == [2, 3, 4]
    assert {tuple(sorted(details.items())) for _, details in told} == {
        (("by", "ann"), ("reason", "drained"))
    }
    assert world.run(drain, UNSIGNED, by="ann") == Done(counts={"drained": 0})
    empty = world.ask(3)
    assert isinstance(empty, Empty)
    assert empty.why == {UNSIGNED: "drained"}
    world.release(hold)
    assert world.held(3).user_id == 1
    world.regenerate(UNSIGNED)
    assert would(world) == 3
    assert world.unhealthy() == []


def test_a_long_dialer_queue_is_drained_some_at_a_time(world: World) -> None:
    world.add_users(User(each) for each in range(1, DRAINED_AT_MOST + 3))
    world.regenerate(UNSIGNED)
    drained = [world.run(drain, UNSIGNED, by="ann") for _ in range(2)]
    assert drained == [Done(counts={"drained": each}) for each in (DRAINED_AT_MOST, 2)]
    assert would(world) == 0


def test_what_was_never_built_has_nobody_and_what_is_unknown_is_refused(world: World) -> None:
    assert would(world) == 0
    assert world.run(drain, UNSIGNED, by="ann") == Done(counts={"drained": 0})
    answer = world.run(drain, "signed_users", by="ann")
    assert isinstance(answer, Refused)
    assert answer.code == Code.UNKNOWN_QUEUE


def test_the_history_of_a_drain_breaks_nothing(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(each, each) for each in (1, 2, 3)])
    world.regenerate(UNSIGNED)
    world.held(1)
    world.run(drain, UNSIGNED, by="ann")
    world.regenerate(UNSIGNED)
    world.held(2)
    with world.engine.connect() as connection:
        found = check(
            connection, dialer=loaded(), settings=world.settings, bound=timedelta(hours=1)
        )
    assert found == []
