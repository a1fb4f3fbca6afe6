"""Promises of callbacks: made, read, and handed out."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from assignment_workers.assignment.answers import Finished
from assignment_workers.assignment.history.history import check
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import HOUR, UNSIGNED, User, World

MINUTE = timedelta(minutes=1)


def with_three_agents(world: World) -> World:
    """Agents 1 to 3; users 1 to 6 in the order of their scores, published."""
    world.add_agents(1, 2, 3)
    world.add_users([User(each, score=10 * each) for each in range(1, 7)])
    world.regenerate(UNSIGNED)
    return world


def promise(world: World, *, after: timedelta = HOUR, agent: int = 1) -> tuple[int, datetime]:
    """An agent promises their next user a callback: who it is, and for when."""
    hold = world.held(agent)
    at = world.now + after
    assert isinstance(world.complete(hold, "call_back", callback_at=at), Finished)
    return hold.user_number, at


def callback(world: World, user: int) -> dict[str, Any]:
    with world.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT * FROM callbacks WHERE user_id = %s ORDER BY created_at DESC, id DESC LIMIT 1",
            (user,),
        )
        return dict(found.mappings().one())


def given(world: World, agent: int, queue: str | None = UNSIGNED) -> tuple[int, str]:
    """Whom an agent is given, and from which source."""
    hold = world.held(agent, queue)
    return hold.user_number, hold.source


def unbroken(world: World) -> None:
    with world.engine.connect() as connection:
        assert check(connection, dialer=loaded(), settings=world.settings, bound=HOUR) == []
    assert world.unhealthy() == []
