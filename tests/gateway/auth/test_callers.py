"""Who may do what: without a token nothing but health, and an agent's token for that agent alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI

from assignment_workers.errors import UsageError
from assignment_workers.gateway.app import create_app
from assignment_workers.gateway.auth import tokens
from assignment_workers.gateway.limits import TokenBucket
from assignment_workers.gateway.serve import wants_tokens
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings
from tests.gateway.stage import Gateway
from tests.support.commands import type_in
from tests.support.processes import wait_until

NOBODY = "00000000-0000-7000-8000-000000000000"
REFUSAL = {"type", "title", "status", "detail", "outcome", "code"}


def routes(gateway: Gateway) -> list[tuple[str, str]]:
    """Every route of the OpenAPI document, with its parameters filled in."""
    paths = gateway.get("/openapi.json").json["paths"]
    filled = {"{assignment}": NOBODY, "{agent}": "1", "{queue}": "unsigned_users"}
    found = []
    for path, item in paths.items():
        for name, value in filled.items():
            path = path.replace(name, value)  # noqa: PLW2901
        found += [(method.upper(), path) for method in item]
    return [*found, ("GET", "/openapi.json")]


def test_no_route_without_a_token_answers_more_than_health(gateway: Gateway) -> None:
    found = routes(gateway)
    assert len(found) >= 13
    for method, path in found:
        for bearer in (None, "aw_0_0", "nonsense", "aw_" + "f" * 12 + "_" + "A" * 43):
            answer = gateway.call(
                method, path, {"agent_id": 1, "outcome": "no_answer"}, bearer=bearer
            )
            if path in {"/healthz", "/readyz"}:
                assert answer.status == 200
                known = {"status", "state", "wrong", "crm"} if path == "/readyz" else {"status"}
                assert answer.json.keys() == known
            else:
                assert answer.status == 401, (method, path, answer.text)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert set(answer.json) == REFUSAL


def test_a_body_is_not_criticised_before_its_sender_is_known(gateway: Gateway) -> None:
    for body in ("{", b"\xff", "[]", '{"agent_id": 0}'):
        answer = gateway.post("/v1/requests", body, bearer=None)
        assert answer.status == 401, answer.text
        assert set(answer.json) == REFUSAL
        known = gateway.post("/v1/requests", body)
        assert (known.status, known.json["code"]) == (422, "malformed")


def test_a_token_of_agent_1_acts_for_agent_1_alone(gateway: Gateway) -> None:
    held = gateway.post("/v1/requests", {"agent_id": 2}, bearer="agent 2").json["assignment"]
    path = f"/v1/assignments/{held['id']}"
    for move in ("complete", "skip", "release", "renew"):
        body: dict[str, Any] = {"agent_id": 2}
        if move == "complete":
            body["outcome"] = "no_answer"
        assert gateway.post(f"{path}/{move}", body, bearer="agent 1").status == 403
        mine = gateway.post(f"{path}/{move}", body | {"agent_id": 1}, bearer="agent 1")
        assert (mine.status, mine.json["code"]) == (409, "not_owner")
    assert gateway.post("/v1/requests", {"agent_id": 2}, bearer="agent 1").status == 403
    assert gateway.get("/v1/agents/2/assignment", bearer="agent 1").status == 403
    assert gateway.get("/v1/agents/2/assignment", bearer="agent 2").json == held
    done = gateway.post(f"{path}/release", {"agent_id": 2}, bearer="agent 2")
    assert done.json["outcome"] == "released"


@pytest.mark.parametrize(
    ("bearer", "allowed"),
    [
        ("agent 1", {"ask"}),
        ("frontend", {"ask"}),
        ("supervisor", {"watch"}),
        ("operator", {"watch", "operate"}),
    ],
)
def test_each_role_does_its_own(gateway: Gateway, bearer: str, allowed: set[str]) -> None:
    # Another test may have left the agent on a break.
    gateway.post("/v1/agents/1/state", {"state": "available"})
    tried = {
        "ask": gateway.post("/v1/requests", {"agent_id": 1}, bearer=bearer),
        "watch": gateway.get("/v1/queues", bearer=bearer),
        "operate": gateway.post("/v1/queues/unsigned_users/resume", bearer=bearer),
    }
    assert {name for name, answer in tried.items() if answer.status == 200} == allowed
    assert {a.status for name, a in tried.items() if name not in allowed} <= {403}
    assert gateway.get("/metrics", bearer=bearer).status == (200 if "watch" in allowed else 403)


def test_what_is_wrong_with_a_call_is_told_to_those_who_may_make_it(gateway: Gateway) -> None:
    for path, body, may, may_not in (
        ("/v1/requests", {"agent_id": 0}, "frontend", "supervisor"),
        (f"/v1/assignments/{uuid4()}/skip", {}, "frontend", "operator"),
        ("/v1/agents/1/state", {"state": "asleep"}, "operator", "supervisor"),
        ("/v1/queues/unsigned_users/pause", {"why": 1}, "operator", "supervisor"),
    ):
        assert gateway.post(path, body, bearer=may).status == 422, path
        assert gateway.post(path, body, bearer=may_not).status == 403, path
    assert gateway.get("/v1/report?since=x", bearer="supervisor").status == 422
    assert gateway.get("/v1/report?since=x", bearer="frontend").status == 403


def test_a_revoked_token_is_refused(gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        made = tokens.create(connection, "supervisor")
    assert gateway.get("/v1/queues", bearer=made).status == 200
    with gateway.stack.engine.begin() as connection:
        assert tokens.revoke(connection, made.split("_")[1])
        assert not tokens.revoke(connection, made.split("_")[1])
    wait_until(lambda: gateway.get("/v1/queues", bearer=made).status == 401, "the token to be void")


def test_only_the_hash_is_kept(gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        made = tokens.create(connection, "agent", agent_id=5, note="for a test")
        shown = [each for each in tokens.listed(connection) if each.id == made.split("_")[1]]
    secret = made.split("_", 2)[2]
    assert [(each.role, each.agent_id, each.note) for each in shown] == [("agent", 5, "for a test")]
    rows = gateway.stack.rows("SELECT t::text, encode(hash, 'escape') FROM assignment.api_tokens t")
    assert rows
    assert not any(secret in column for row in rows for column in row)


def test_tokens_are_made_listed_and_revoked_by_command(gateway: Gateway) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if "ASSIGNMENT" not in name}
        there = {"DATABASE_URL": gateway.stack.database_url, "REDIS_URL": gateway.stack.redis_url}
        return type_in(["token", *words], clean | there)

    made = run("create", "agent", "--agent", "40", "--note", "desk 40").stdout.strip()
    assert gateway.post("/v1/requests", {"agent_id": 40}, bearer=made).status == 200
    listed = run("list")
    assert "desk 40" in listed.stdout
    assert made not in listed.stdout
    name = made.split("_")[1]
    assert run("revoke", name).returncode == 0
    assert run("revoke", name).returncode == 2
    for wrong in (["create", "king"], ["create", "agent"], ["create", "operator", "--agent", "1"]):
        told = run(*wrong)
        assert told.returncode == 2
        assert len(told.stderr.strip().splitlines()) == 1


def test_every_response_has_the_security_headers_and_no_origin_is_let_in(gateway: Gateway) -> None:
    for answer in (
        gateway.get("/healthz", headers={"Origin": "https://elsewhere.example"}),
        gateway.get("/v1/nothing", headers={"Origin": "https://elsewhere.example"}),
        gateway.call("OPTIONS", "/v1/requests", headers={"Origin": "https://elsewhere.example"}),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def alone(**settings: str) -> FastAPI:
    """The application without a stack behind it, and without having been started."""
    given = {
        "DATABASE_URL": "postgresql://127.0.0.1:1/nowhere",
        "REDIS_URL": "redis://127.0.0.1:1",
    }
    read = Settings.from_environment(given | settings)
    engine = connect(read.database, name="test", statement_timeout=read.lease)
    return create_app(read, engine, tokens=True)


def heads(app: FastAPI, method: str, path: str, sent: dict[str, str]) -> dict[bytes, bytes]:
    """The headers that it answers with, whatever becomes of it."""
    found: list[tuple[bytes, bytes]] = []

    async def send(message: Any) -> None:
        found.extend(message.get("headers", []))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(name.encode(), value.encode()) for name, value in sent.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": headers,
        "query_string": b"",
    }

    async def call() -> None:
        with contextlib.suppress(AttributeError):
            await app(scope, receive, send)

    asyncio.run(call())
    return dict(found)


def test_an_origin_that_is_named_is_let_in_and_no_other() -> None:
    app = alone(ASSIGNMENT_WORKERS_GATEWAY_ORIGINS="https://dialer.example, https://other.example")

    def preflight(origin: str) -> dict[bytes, bytes]:
        asked = {
            "origin": origin,
            "access-control-request-method": "GET",
            "access-control-request-headers": "authorization, last-event-id",
        }
        return heads(app, "OPTIONS", "/v1/events", asked)

    allowed = preflight("https://other.example")
    assert allowed[b"access-control-allow-origin"] == b"https://other.example"
    assert b"Last-Event-ID" in allowed[b"access-control-allow-headers"]
    assert b"access-control-allow-credentials" not in allowed
    assert allowed[b"x-content-type-options"] == b"nosniff"
    assert b"access-control-allow-origin" not in preflight("https://elsewhere.example")


def test_a_gateway_that_fails_has_the_security_headers_too() -> None:
    failed = heads(alone(), "GET", "/readyz", {})  # it was not started
    assert failed[b"content-type"] == b"application/problem+json"
    assert failed[b"x-content-type-options"] == b"nosniff"
    assert failed[b"cache-control"] == b"no-store"


def test_tokens_are_off_only_with_the_embedded_servers_on_loopback() -> None:
    def wants(**given: Any) -> bool:
        return wants_tokens(Settings(**given))

    assert wants()
    assert wants(embedded=True)
    assert wants(embedded=True, gateway_tokens="required")
    assert not wants(embedded=True, gateway_tokens="off")
    for given in ({}, {"embedded": True, "gateway_host": "10.0.0.1"}):
        with pytest.raises(UsageError, match="GATEWAY_TOKENS"):
            wants(gateway_tokens="off", **given)


def test_a_pace_lets_twice_a_second_through_at_once_and_then_its_pace() -> None:
    now = 0.0
    pace = TokenBucket(10.0, clock=lambda: now)
    assert [pace.wait("a") for _ in range(20)] == [0.0] * 20
    assert pace.wait("a") == pytest.approx(0.1)
    assert pace.wait("b") == 0.0
    now = 0.1
    assert pace.wait("a") == 0.0
    assert pace.wait("a") > 0


def test_an_agent_who_asks_too_often_is_told_when_to_come_back(gateway: Gateway) -> None:
    import threading

    replies: list[Any] = []

    def hurry() -> None:
        replies.extend(gateway.post("/v1/requests", {"agent_id": 50}) for _ in range(120))

    threads = [threading.Thread(target=hurry) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held_back = [each for each in replies if each.status == 429]
    assert {each.status for each in replies} <= {200, 429}
    assert all(int(each.headers["retry-after"]) >= 1 for each in held_back)


def test_the_openapi_document_has_an_example_of_every_outcome(gateway: Gateway) -> None:
    document = gateway.get("/openapi.json").json
    ask = document["paths"]["/v1/requests"]["post"]["responses"]
    examples = ask["200"]["content"]["application/json"]["examples"]
    assert set(examples) == {"assigned", "empty", "paused", "too_late"}
    assert {"401", "403", "422", "429", "503"} <= set(ask)
    named = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(set(named)) == len(named)
    assert {"request_next", "complete", "skip", "release", "renew", "active_assignment"} <= set(
        named
    )
    for item in document["paths"].values():
        for operation in item.values():
            for code, told in operation["responses"].items():
                if int(code) >= 400:
                    assert list(told["content"]) == ["application/problem+json"]
