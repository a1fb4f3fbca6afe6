"""A hold that nobody was told of is released, unless its agent shows up within the grace."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from assignment_workers.client import AsyncClient
from assignment_workers.gateway.abandoned import Abandoned
from tests.gateway.stage import Gateway

STATE = "SELECT state FROM assignment.assignments WHERE id = :id"


def left_behind(gateway: Gateway, answer: dict[str, Any]) -> None:
    """What the gateway does with an answer whose caller has gone, from beginning to end."""

    async def see_to_it() -> None:
        abandoned = Abandoned(gateway.stack.engine, grace=timedelta(milliseconds=50))
        async with AsyncClient(gateway.stack.redis_url) as client:
            abandoned.client = client
            abandoned(None, answer)  # type: ignore[arg-type]
            await asyncio.gather(*abandoned._tasks)

    asyncio.run(see_to_it())


def assigned(held: dict[str, Any], *, replayed: bool = False) -> dict[str, Any]:
    return {"outcome": "assigned", "assignment": held, "replayed": replayed}


def test_a_hold_that_nobody_was_told_of_is_released(gateway: Gateway) -> None:
    held = gateway.assigned(60)
    left_behind(gateway, assigned(held))
    assert gateway.stack.value(STATE, id=held["id"]) == "released"


def test_an_agent_who_asked_again_meanwhile_keeps_it(gateway: Gateway) -> None:
    held = gateway.assigned(61)
    assert gateway.assigned(61)["id"] == held["id"]
    left_behind(gateway, assigned(held))
    assert gateway.stack.value(STATE, id=held["id"]) == "active"


def test_an_agent_who_renewed_meanwhile_keeps_it(gateway: Gateway) -> None:
    held = gateway.assigned(62)
    gateway.post(f"/v1/assignments/{held['id']}/renew", {"agent_id": 62})
    left_behind(gateway, assigned(held))
    assert gateway.stack.value(STATE, id=held["id"]) == "active"


def test_what_was_held_before_and_what_is_no_hold_are_let_be(gateway: Gateway) -> None:
    held = gateway.assigned(63)
    left_behind(gateway, assigned(held, replayed=True))
    left_behind(gateway, {"outcome": "too_late"})
    assert gateway.stack.value(STATE, id=held["id"]) == "active"
