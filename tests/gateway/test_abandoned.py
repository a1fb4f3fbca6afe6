"""A hold that nobody was told of is released, unless its agent shows up within the grace."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import Any

from assignment_workers.client import AsyncClient
from assignment_workers.gateway.abandoned import Abandoned
from tests.gateway.stage import Gateway, scope
from tests.support.processes import wait_until

STATE = "SELECT state FROM assignment.assignments WHERE id = :id"


def left_behind(gateway: Gateway, answer: dict[str, Any]) -> None:
    """What the gateway does with an answer whose caller has gone, from beginning to end."""

    async def see_to_it() -> None:
        abandoned = Abandoned(grace=timedelta(milliseconds=50))
        async with AsyncClient(gateway.stack.redis_url) as client:
            abandoned.client = client
            abandoned(answer)
            await asyncio.gather(*abandoned._tasks)

    asyncio.run(see_to_it())


def assigned(held: dict[str, Any], *, replayed: bool = False) -> dict[str, Any]:
    return {"outcome": "assigned", "assignment": held, "replayed": replayed}


def test_a_hold_that_nobody_was_told_of_is_released(gateway: Gateway) -> None:
    held = gateway.assigned(60)
    left_behind(gateway, assigned(held))
    assert gateway.stack.value(STATE, id=held["id"]) == "released"


def test_a_caller_who_hangs_up_leaves_no_hold_behind(gateway: Gateway) -> None:
    body = b'{"agent_id": 66, "request_id": "sixty-six", "timeout_ms": 20000}'
    head = (
        f"POST /v1/requests HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {gateway.tokens['frontend']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with gateway.stack.connection() as connection:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        with socket.create_connection(("127.0.0.1", gateway.port)) as opened:
            opened.sendall(head.encode() + body)
            wait_until(lambda: gateway.metric("waiting") == 1, "the request to wait")
        wait_until(lambda: gateway.metric("waiting") == 0, "the gateway to notice")
        connection.rollback()
    made = "SELECT state FROM assignment.assignments WHERE request_id = 'sixty-six'"
    wait_until(lambda: gateway.stack.rows(made), "the request to be met")
    wait_until(lambda: gateway.stack.value(made) == "released", "the hold to be given back")


def test_an_operator_who_hangs_up_leaves_a_record_with_its_outcome(gateway: Gateway) -> None:
    kept = "SELECT outcome FROM assignment.operator_actions ORDER BY id DESC LIMIT 1"
    with gateway.stack.connection() as connection:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        with socket.create_connection(("127.0.0.1", gateway.port)) as opened:
            opened.sendall(
                b"POST /v1/queues/unsigned_users/resume HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization:"
                b" Bearer " + gateway.tokens["operator"].encode() + b"\r\n\r\n"
            )
            wait_until(lambda: gateway.metric("waiting") == 1, "the command to wait")
        told = wait_until(lambda: gateway.stack.value(kept), "its outcome to be kept")
        connection.rollback()
    assert told == "unavailable: the caller hung up before it was answered"


def test_a_caller_who_hangs_up_in_the_middle_of_a_body_is_no_failure(gateway: Gateway) -> None:
    token = gateway.tokens["frontend"]
    asked = scope("POST", "/v1/requests", bearer=token, content_type="application/json")
    app = gateway.app()
    sent: list[Any] = []

    async def run() -> None:
        begun = iter([{"type": "http.request", "body": b'{"agent', "more_body": True}])

        async def receive() -> Any:
            return next(begun, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        async with app.router.lifespan_context(app):
            await app(asked, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 422


def test_an_agent_who_asked_again_meanwhile_keeps_it(gateway: Gateway) -> None:
    held = gateway.assigned(61)
    assert gateway.assigned(61)["id"] == held["id"]
    left_behind(gateway, assigned(held))
    assert gateway.stack.value(STATE, id=held["id"]) == "active"


def test_an_agent_who_asked_again_with_the_same_request_id_keeps_it(gateway: Gateway) -> None:
    asked = {"agent_id": 64, "request_id": "sixty-four"}
    held = gateway.post("/v1/requests", asked).json["assignment"]
    again = gateway.post("/v1/requests", asked).json
    assert (again["assignment"]["id"], again["replayed"]) == (held["id"], True)
    left_behind(gateway, assigned(held))
    assert gateway.stack.value(STATE, id=held["id"]) == "active"


def test_a_hold_that_ended_meanwhile_is_let_be(gateway: Gateway) -> None:
    held = gateway.assigned(65)
    gateway.post(f"/v1/assignments/{held['id']}/skip", {"agent_id": 65})
    races = (
        "SELECT count(*) FROM assignment.events WHERE assignment_id = :id AND kind LIKE '%RACE%'"
    )
    left_behind(gateway, assigned(held))
    assert gateway.stack.value(STATE, id=held["id"]) == "skipped"
    assert gateway.stack.value(races, id=held["id"]) == 0


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
