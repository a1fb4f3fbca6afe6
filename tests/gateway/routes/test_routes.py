"""Each route, each outcome, each refusal, on the real processes."""

from __future__ import annotations

import json
import os
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.operator_actions import ASKED
from assignment_workers.client import Assigned, Finished, Hold, HttpClient, Refused, Unavailable
from assignment_workers.errors import UsageError
from tests.gateway.stage import Gateway
from tests.support.commands import type_in
from tests.support.processes import wait_until

PROBLEM = "application/problem+json"


def test_a_request_is_answered_with_a_user_and_again_with_the_same(gateway: Gateway) -> None:
    asked = {"agent_id": 10, "queue": "unsigned_users", "request_id": "ten-1", "timeout_ms": 9000}
    first = gateway.post("/v1/requests", asked)
    assert first.status == 200
    assert first.json["outcome"] == "assigned"
    assert first.json["request_id"] == first.headers["x-request-id"] == "ten-1"
    again = gateway.post("/v1/requests", asked)
    assert again.json["assignment"]["id"] == first.json["assignment"]["id"]
    assert again.json["replayed"] is True
    shown = gateway.get("/v1/agents/10/assignment").json
    assert shown == first.json["assignment"]


def test_a_request_id_is_made_where_there_is_none(gateway: Gateway) -> None:
    answer = gateway.post("/v1/requests", {"agent_id": 11})
    assert uuid.UUID(answer.json["request_id"]).version == 7
    assert answer.headers["x-request-id"] == answer.json["request_id"]


def test_the_request_id_comes_back_with_every_answer(gateway: Gateway) -> None:
    asked = {"agent_id": 999_999, "request_id": "mine"}
    for body, bearer, status in (
        (asked, "frontend", 403),
        (asked, "supervisor", 403),
        (asked, None, 401),
        (asked | {"timeout_ms": 1}, "frontend", 422),
        (asked | {"queue": "nowhere", "agent_id": 11}, "frontend", 422),
    ):
        answer = gateway.post("/v1/requests", body, bearer=bearer)
        assert answer.status == status, answer.text
        assert answer.json["request_id"] == answer.headers["x-request-id"] == "mine"
        assert answer.json["outcome"] == "refused"


def test_the_four_moves_end_or_renew_a_hold(gateway: Gateway) -> None:
    held = gateway.assigned(12)
    owner = {"agent_id": 12, "version": held["version"]}
    path = f"/v1/assignments/{held['id']}"
    renewed = gateway.post(f"{path}/renew", owner)
    assert renewed.json["outcome"] == "renewed"
    assert renewed.json["assignment"]["lease_expires_at"] > held["lease_expires_at"]
    done = gateway.post(f"{path}/complete", owner | {"outcome": "no_answer", "notes": "rang"})
    assert (done.status, done.json["outcome"], done.json["replayed"]) == (200, "completed", False)
    assert gateway.post(f"{path}/complete", owner | {"outcome": "no_answer"}).json["replayed"]
    for move, outcome in (("skip", "skipped"), ("release", "released")):
        held = gateway.assigned(12)
        answer = gateway.post(f"/v1/assignments/{held['id']}/{move}", {"agent_id": 12})
        assert answer.json["outcome"] == outcome
    nobody = gateway.get("/v1/agents/12/assignment")
    assert (nobody.status, nobody.headers["content-type"]) == (404, PROBLEM)


def test_hazard_b11_what_is_refused_is_a_problem_with_its_code(gateway: Gateway) -> None:
    held = gateway.assigned(13)
    path = f"/v1/assignments/{held['id']}"
    unknown = f"/v1/assignments/{uuid.UUID(int=7)}"
    ask = "/v1/requests"
    for route, body, status, code in (
        (ask, {"agent_id": 999_999}, 403, "unknown_agent"),
        (ask, {"agent_id": 13, "queue": "nowhere"}, 422, "unknown_queue"),
        (f"{unknown}/skip", {"agent_id": 13}, 404, "unknown_assignment"),
        (f"{path}/release", {"agent_id": 14}, 409, "not_owner"),
        (f"{path}/release", {"agent_id": 13, "version": 9}, 409, "stale_version"),
        (f"{path}/complete", {"agent_id": 13, "outcome": "odd"}, 422, "unknown_outcome"),
        (f"{path}/complete", {"agent_id": 13, "outcome": "callback"}, 422, None),
    ):
        answer = gateway.post(route, body)
        assert (answer.status, answer.headers["content-type"]) == (status, PROBLEM), answer.text
        assert answer.json["status"] == status
        assert answer.json["detail"]
        assert code is None or answer.json["code"] == code
    gateway.post(f"{path}/release", {"agent_id": 13})
    late = gateway.post(f"{path}/complete", {"agent_id": 13, "outcome": "no_answer"})
    assert (late.status, late.json["code"]) == (409, "not_active")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "body.agent_id"),
        ({"agent_id": 0}, "body.agent_id"),
        ({"agent_id": "1"}, "body.agent_id"),
        ({"agent_id": 2**31}, "body.agent_id"),
        ({"agent_id": 1, "request_id": ""}, "body.request_id"),
        ({"agent_id": 1, "request_id": "a\u0000"}, "body.request_id"),
        ({"agent_id": 1, "timeout_ms": 30_001}, "body.timeout_ms"),
        ({"agent_id": 1, "timeout_ms": 99}, "body.timeout_ms"),
        ({"agent_id": 1, "more": 1}, "body.more"),
        ("{", "body"),
    ],
)
def test_what_is_malformed_is_refused_in_one_clear_line(
    gateway: Gateway, body: object, where: str
) -> None:
    answer = gateway.post("/v1/requests", body)
    assert (answer.status, answer.headers["content-type"]) == (422, PROBLEM)
    assert answer.json["detail"].startswith(where)


def test_what_was_written_about_a_user_is_not_repeated(gateway: Gateway) -> None:
    body = {"agent_id": 1, "outcome": "x", "notes": ["a secret of hers"]}
    answer = gateway.post(f"/v1/assignments/{uuid.UUID(int=7)}/complete", body)
    assert answer.status == 422
    assert "secret" not in answer.text


def test_a_body_that_is_too_large_is_refused(gateway: Gateway) -> None:
    answer = gateway.post("/v1/requests", {"agent_id": 1, "request_id": "x" * 70_000})
    assert (answer.status, answer.headers["content-type"]) == (413, PROBLEM)


DEPTHS = (100, 300, 600, *range(860, 1_000, 10), 2_000, 30_000)


@pytest.mark.parametrize("path", ["/v1/requests", "/v1/queues/unsigned_users/pause"])
def test_json_nested_deep_is_refused_after_its_sender_at_any_depth(
    gateway: Gateway, path: str
) -> None:
    for depth in DEPTHS:
        for body in ("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            sent = body[:60_000]
            nobody = gateway.call("POST", path, sent, bearer=None)
            assert nobody.status == 401, (depth, nobody.text)
            refused = gateway.call("POST", path, sent, bearer="operator")
            assert (refused.status, refused.json["code"]) in (
                (422, "malformed"),
                (403, "forbidden"),
            )
    gateways = [each for each in gateway.stack.started if each.name == "gateway"]
    assert gateways
    assert not any("RecursionError" in each.said() for each in gateways)


def test_an_unknown_path_and_a_wrong_method_are_problems(gateway: Gateway) -> None:
    assert gateway.get("/v1/nothing").headers["content-type"] == PROBLEM
    assert gateway.get("/v1/requests").status == 405


def test_pause_resume_and_regenerate(gateway: Gateway) -> None:
    at = "/v1/queues/outstanding_requests"
    paused = gateway.post(f"{at}/pause", {"why": "a test"}, bearer="operator")
    assert (paused.status, paused.json["outcome"]) == (200, "done")
    try:
        asked = {"agent_id": 15, "queue": "outstanding_requests"}
        answer = gateway.post("/v1/requests", asked)
        assert (answer.status, answer.json["outcome"]) == (200, "paused")
        states = {
            each["queue"]: each for each in gateway.get("/v1/queues", bearer="supervisor").json
        }
        assert states["outstanding_requests"]["paused"]
        assert states["outstanding_requests"]["paused_by"].startswith("token ")
    finally:
        assert gateway.post(f"{at}/resume", bearer="operator").json["outcome"] == "done"
    sent = gateway.post(f"{at}/regenerate", bearer="operator")
    assert sent.status == 202
    built = gateway.stack.client().built(sent.json["task_id"], timeout=timedelta(seconds=60))
    assert isinstance(built, dict)
    assert gateway.post("/v1/queues/nowhere/pause", bearer="operator").status == 404
    who = f"token {gateway.tokens['operator'].split('_')[1]}"
    assert gateway.stack.rows(
        "SELECT who, action, subject, why, outcome FROM assignment.operator_actions"
        " ORDER BY id DESC LIMIT 3"
    )[::-1] == [
        (who, "pause", "outstanding_requests", "a test", "done"),
        (who, "resume", "outstanding_requests", None, "done"),
        (who, "rebuild", "outstanding_requests", None, ASKED),
    ]
    assert gateway.stack.value(
        "SELECT details || texts AS details FROM assignment.events JOIN assignment.event_texts"
        " ON event_id = id WHERE kind = 'queue_paused' ORDER BY id DESC LIMIT 1"
    ) == {"by": who, "why": "a test"}


def test_a_reason_that_cannot_be_kept_is_refused_and_nothing_is_done(gateway: Gateway) -> None:
    kept = "SELECT count(*) FROM assignment.operator_actions"
    before = gateway.stack.value(kept)
    wrong: list[Any] = [
        {"why": ""},
        {"why": "x" * 501},
        {"why": 5},
        {"reason": "x"},
        [],
        "nonsense",
    ]
    for body in wrong:
        answer = gateway.post("/v1/queues/unsigned_users/pause", body, bearer="operator")
        assert (answer.status, answer.json["code"]) == (422, "malformed"), body
    assert gateway.post("/v1/queues/unsigned_users/pause", bearer="supervisor").status == 403
    assert gateway.stack.value(kept) == before


def test_the_report_says_what_the_records_say(gateway: Gateway) -> None:
    since = datetime.now(UTC)
    held = gateway.assigned(18)
    gateway.post(f"/v1/assignments/{held['id']}/release", {"agent_id": 19})
    gateway.post(f"/v1/assignments/{held['id']}/release", {"agent_id": 18})
    gateway.post("/v1/requests", {"agent_id": 999_999})
    path = f"/v1/report?since={since.isoformat().replace('+', '%2B')}"
    told = gateway.get(path, bearer="supervisor").json
    assert told["assignments"] == 1
    assert told["ended"]["released"] == 1
    assert told["answers"] == {"assigned": 1, "refused": 1}
    assert (told["success_rate"], told["failed"], told["lost"]) == (1.0, 0, 0)
    assert told["races"] == {"not_owner": 1}
    assert told["consistency"]["broken"] == []
    assert told["consistency"]["checks"] > 5
    times = told["seconds_to_assign"]
    sql = (
        "SELECT extract(epoch FROM answered_at - received_at) FROM assignment.requests"
        " WHERE assignment_id = :id"
    )
    seconds = float(gateway.stack.value(sql, id=held["id"]))
    assert times["measured"] == 1
    assert [times[name] for name in ("average", "p50", "p95", "p99")] == [
        pytest.approx(seconds, abs=1e-6)
    ] * 4
    ahead = (since + timedelta(days=1)).isoformat().replace("+", "%2B")
    wrong = gateway.get(f"/v1/report?since={ahead}", bearer="supervisor")
    assert (wrong.status, wrong.json["code"]) == (422, "malformed")
    odd = gateway.get("/v1/report?sinc=x", bearer="supervisor")
    assert (odd.status, odd.json["detail"].split(":")[0]) == (422, "query.sinc")
    assert gateway.get("/v1/report", bearer="frontend").status == 403


def test_the_report_by_command_says_the_same(gateway: Gateway) -> None:
    gateway.assigned(19)
    clean = {name: value for name, value in os.environ.items() if "ASSIGNMENT" not in name}
    servers = {
        "DATABASE_URL": gateway.stack.database_url,
        "REDIS_URL": gateway.stack.redis_url,
    }
    command = ["report", "--since", "2h"]
    told = [type_in([*command, *words], clean | servers).stdout for words in ([], ["--json"])]
    found = json.loads(told[1])
    assert found["assignments"] >= 1
    assert set(found) == set(gateway.get("/v1/report", bearer="operator").json)
    for words in ("time to assign, p99", "under 100 ms", "success rate"):
        assert words in told[0]


def test_the_report_of_nothing_knows_nothing(gateway: Gateway) -> None:
    since = datetime.now(UTC).isoformat().replace("+", "%2B")
    told = gateway.get(f"/v1/report?since={since}", bearer="operator").json
    assert told["success_rate"] is None
    assert told["seconds_to_assign"]["p99"] is None


def test_the_index_says_what_this_is(gateway: Gateway) -> None:
    told = gateway.get("/", bearer="agent 1").json
    assert told["name"] == "assignment-workers"
    assert gateway.get(told["interface"], bearer="agent 1").status == 200


def test_metrics_count_the_answers(gateway: Gateway) -> None:
    gateway.assigned(16)
    told = gateway.get("/metrics", bearer="supervisor").text
    assert 'assignment_workers_gateway_answers_total{move="request",outcome="assigned"}' in told


def test_a_request_nobody_answers_in_time_is_unavailable(gateway: Gateway) -> None:
    with gateway.stack.connection() as connection:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        answer = gateway.post("/v1/requests", {"agent_id": 17, "timeout_ms": 200})
        connection.rollback()
    assert (answer.status, answer.json["outcome"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json["request_id"]


def test_a_caller_who_leaves_while_requests_gather_takes_the_request_back(gateway: Gateway) -> None:
    def waiting() -> float:
        told = gateway.get("/metrics", bearer="supervisor").text
        line = next(
            each
            for each in told.splitlines()
            if each.startswith("assignment_workers_gateway_waiting ")
        )
        return float(line.split()[1])

    def ask(agent: int, name: str) -> socket.socket:
        body = f'{{"agent_id": {agent}, "request_id": "{name}", "timeout_ms": 20000}}'
        opened = socket.create_connection(("127.0.0.1", gateway.port))
        opened.sendall(
            f"POST /v1/requests HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {gateway.tokens['frontend']}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        return opened

    with gateway.stack.connection() as connection:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        first = []
        for number in (1, 2):  # both messages that may be under way are
            first.append(ask(20 + number, f"gone-{number}"))
            wait_until(partial(lambda count: waiting() == count, number), "a request to wait")
        third = ask(23, "gone-3")
        wait_until(lambda: waiting() == 3, "the third to gather")
        third.close()
        wait_until(lambda: waiting() == 2, "the gateway to notice")
        connection.rollback()
    for opened in first:
        with opened, opened.makefile("rb") as read:
            while (line := read.readline()) and line.strip():
                pass  # the head; the body is one line of JSON up to its closing braces
            assert read.read(len(b'{"outcome":"assigned"')) == b'{"outcome":"assigned"'
    known = "SELECT count(*) FROM assignment.requests WHERE request_id = :name"
    assert gateway.stack.value(known, name="gone-2") == 1
    assert gateway.stack.value(known, name="gone-3") == 0


def test_the_same_client_over_http(gateway: Gateway) -> None:
    with HttpClient(gateway.url, token=gateway.tokens["frontend"]) as client:
        answer = client.request_next(30, queue="unsigned_users", request_id="thirty")
        assert isinstance(answer, Assigned)
        held = answer.assignment
        assert client.active_assignment(30) == held
        assert isinstance(client.renew(held.id, 30, version=held.version), Finished)
        when = datetime.now(UTC) + timedelta(hours=2)
        refused = client.complete(held.id, 31, "no_answer", callback_at=when)
        assert isinstance(refused, Refused)
        done = client.complete(held.id, 30, "no_answer", version=held.version)
        assert isinstance(done, Finished)
        assert client.active_assignment(30) is None
        match client.request_next(30, queue="nowhere"):
            case Refused(code="unknown_queue"):
                pass
            case other:
                pytest.fail(str(other))
        with client.holding(30) as hold:
            assert isinstance(hold, Hold)
        assert client.active_assignment(30) is None


def test_a_client_says_what_its_token_may_not_do(gateway: Gateway) -> None:
    for token, code in (
        (None, Code.UNAUTHENTICATED),
        ("aw_0_0", Code.UNAUTHENTICATED),
        (gateway.tokens["supervisor"], Code.FORBIDDEN),
        (gateway.tokens["agent 2"], Code.FORBIDDEN),
    ):
        with HttpClient(gateway.url, token=token) as client:
            for answer in (
                client.request_next(1),
                client.skip(uuid.UUID(int=7), 1),
                client.active_assignment(1)
                if code is Code.UNAUTHENTICATED
                else client.renew(uuid.UUID(int=7), 1),
            ):
                assert isinstance(answer, Refused)
                assert answer.code is code, answer


def test_a_client_says_so_when_there_is_no_gateway() -> None:
    with HttpClient("http://127.0.0.1:1") as client:
        answer = client.request_next(1, timeout=timedelta(milliseconds=200))
    assert isinstance(answer, Unavailable)
    with pytest.raises(UsageError, match="gateway_url: the scheme"):
        HttpClient("127.0.0.1:8000")


def test_a_user_and_a_dialer_queue_are_explained_to_who_may_watch(gateway: Gateway) -> None:
    held = gateway.assigned(14)
    told = gateway.get(f"/v1/users/{held['user_id']}/explain", bearer="supervisor")
    assert (told.status, told.json["hold"]["id"]) == (200, held["id"])
    assert "held" in {each["why"] for each in told.json["queues"]}
    funnel = gateway.get(f"/v1/queues/{held['queue']}/explain", bearer="supervisor").json
    assert funnel["pool"] == funnel["claimable"] + sum(each["users"] for each in funnel["steps"])
    assert "held" in {each["why"] for each in funnel["steps"]}
    for path, code in (("users/999999999", "unknown_user"), ("queues/nowhere", "unknown_queue")):
        unknown = gateway.get(f"/v1/{path}/explain", bearer="supervisor")
        assert (unknown.status, unknown.json["code"]) == (404, code)
    assert gateway.get("/v1/users/1/explain", bearer="frontend").status == 403


def test_requests_without_an_answer_count_and_callers_mistakes_do_not(gateway: Gateway) -> None:
    """A hundred answered 503 and four malformed: each once, though the sequencer answers later."""
    since = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=5)
    path = f"/v1/report?since={since.isoformat().replace('+', '%2B')}"
    kept = "SELECT coalesce(sum(n), 0) FROM assignment.answer_counts, unnest(by_minute) n WHERE kind = :kind"
    late = "SELECT count(*) FROM assignment.requests WHERE outcome = 'too_late'"

    def told() -> dict[str, Any]:
        found: dict[str, Any] = gateway.get(path, bearer="supervisor").json
        return found

    def call(agent: int) -> int:
        return gateway.post("/v1/requests", {"agent_id": agent, "timeout_ms": 300}).status

    empty, answered_late = gateway.stack.value(kept, kind="assigned"), gateway.stack.value(late)
    gateway.assigned(70)
    wait_until(
        lambda: gateway.stack.value(kept, kind="assigned") > empty, "what was counted before"
    )
    before = told()
    with gateway.stack.connection() as connection, ThreadPoolExecutor(25) as callers:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        assert set(callers.map(call, range(1, 101))) == {503}
        connection.rollback()
    for body in ({}, {"agent_id": 0}, {"agent_id": "x"}, {"agent_id": 1, "timeout_ms": 1}):
        assert gateway.post("/v1/requests", body).status == 422
    lost = gateway.stack.value(kept, kind="unavailable") + 100
    wait_until(lambda: gateway.stack.value(late) > answered_late, "the sequencer's late answers")
    wait_until(lambda: gateway.stack.value(kept, kind="unavailable") >= lost, "the counts")
    after = told()
    grown = {name: after[name] - before[name] for name in ("asked", "useful", "mistakes")}
    assert grown == {"asked": 100, "useful": 0, "mistakes": 4}
    assert after["success_rate"] == after["useful"] / after["asked"]
    counted = gateway.stack.value(kept, kind="unavailable")
    with gateway.stack.connection() as connection, gateway.stack.client() as client:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        answer = client.request_next(71, timeout=timedelta(milliseconds=200))
        assert isinstance(answer, Unavailable)
        connection.rollback()
    wait_until(
        lambda: gateway.stack.value(kept, kind="unavailable") == counted + 1,
        "the count of the client over Celery, which it sends when it is closed",
    )


def test_the_documentation_of_the_interface_is_a_page_for_every_token(gateway: Gateway) -> None:
    page = gateway.get("/api", bearer="agent 1")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for name in ("POST /v1/requests", "POST /v1/assignments/{assignment}/defer", "GET /v1/events"):
        assert f"<code>{name}</code>" in page.text
    assert "Defer this user: offer the user to nobody before" in page.text
    assert "<script" not in page.text
    without = gateway.call("GET", "/api", None, bearer=None)
    assert (without.status, without.headers["location"]) == (303, "/login?next=/api")
