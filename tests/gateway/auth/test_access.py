"""Who comes in: tokens that expire, the access log, an address that hurries, limits of the socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine

from assignment_workers.gateway import socket_limits
from assignment_workers.gateway.auth import tokens
from assignment_workers.gateway.auth.audit import ADDRESSES, OTHERS, AccessLog
from assignment_workers.gateway.socket_limits import ARRIVE_SECONDS, HEAD_BYTES
from assignment_workers.schema.engine import connect
from assignment_workers.schema.tables import AccessKind
from tests.gateway.stage import Gateway, Reply
from tests.support.processes import wait_until
from tests.support.servers import free_port

NOW = datetime(2026, 1, 5, 9, 5, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def strict(gateway: Gateway) -> Gateway:
    """Another gateway on the same stack, which lets two refusals a second through."""
    port = free_port()
    gateway.stack.start("gateway", gateway_port=str(port), gateway_refusal_rate="2")
    found = Gateway(gateway.stack, port, gateway.tokens)
    wait_until(lambda: _is_ready(found), "the strict gateway")
    return found


@pytest.fixture
def migrated_engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url, name="test", statement_timeout=timedelta(seconds=30))
    yield engine
    engine.dispose()


def _is_ready(gateway: Gateway) -> bool:
    try:
        return gateway.get("/readyz", bearer=None).status == 200
    except OSError:
        return False


def records(gateway: Gateway, what: str) -> list[Any]:
    return gateway.stack.rows(
        f"SELECT who, subject, address, count FROM assignment.access_log WHERE what = '{what}'"
    )


def test_a_token_is_void_when_its_time_is_over(gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        made = tokens.create(connection, "supervisor", lasts=timedelta(days=1))
    name = made.split("_")[1]
    assert gateway.get("/v1/queues", bearer=made).status == 200
    expire = "UPDATE assignment.api_tokens SET expires_at = now() WHERE id = '{}'"
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(expire.format(name))
    wait_until(lambda: gateway.get("/v1/queues", bearer=made).status == 401, "it to be refused")


def test_a_tokens_life_and_its_use_are_recorded(gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        made = tokens.create(connection, "supervisor", by="ann")
    name = made.split("_")[1]
    assert gateway.get("/v1/queues", bearer=made).status == 200
    used = f"SELECT last_used_at FROM assignment.api_tokens WHERE id = '{name}'"
    wait_until(lambda: gateway.stack.value(used), "its use to be written")
    with gateway.stack.engine.begin() as connection:
        assert tokens.revoke(connection, name, by="bob")
    assert ("ann", name, None, 1) in records(gateway, "token_created")
    assert ("bob", name, None, 1) in records(gateway, "token_revoked")


def test_who_signs_in_and_out_is_recorded(gateway: Gateway) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
    token = gateway.tokens["supervisor"]
    name = token.split("_")[1]
    entered = gateway.post("/login", f"token={token}", bearer=None, headers=form)
    assert entered.status == 303
    cookie = {"Cookie": entered.headers["set-cookie"].split(";")[0]}
    page = gateway.get("/agents", bearer=None, headers=form | cookie).text
    proof = page.split('name="proof" value="')[1].split('"')[0]
    left = gateway.post("/logout", f"proof={proof}", bearer=None, headers=form | cookie)
    assert left.status == 303
    assert (name, None, "127.0.0.1", 1) in records(gateway, "signed_in")
    assert (name, None, "127.0.0.1", 1) in records(gateway, "signed_out")


def test_refusals_are_counted_in_the_metric(gateway: Gateway) -> None:
    def refused(what: str) -> float:
        told = gateway.get("/metrics", bearer="supervisor").text
        line = f'assignment_workers_gateway_refused_total{{what="{what}"}} '
        return float(next((x.split()[1] for x in told.splitlines() if x.startswith(line)), 0))

    before = {what: refused(what) for what in ("unauthenticated", "forbidden", "sign_in_failed")}
    gateway.get("/v1/queues", bearer=None)
    gateway.get("/v1/queues", bearer="agent 1")
    form = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
    gateway.post("/login", "token=aw_x_wrong", bearer=None, headers=form)
    for what, count in before.items():
        assert refused(what) == count + 1, what


def test_refusals_are_sums_by_address_and_minute(migrated_engine: Engine) -> None:
    now = NOW
    log = AccessLog(migrated_engine, lambda: now)

    def told() -> set[tuple[Any, ...]]:
        with migrated_engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT at, what, who, address, count FROM assignment.access_log"
            )
            return {tuple(row) for row in found}

    for _ in range(3):
        log.refused(AccessKind.UNAUTHENTICATED, who=None, address="192.0.2.1")
    log.refused(AccessKind.FORBIDDEN, who="0123", address="192.0.2.1")
    asyncio.run(log.write())
    assert told() == set(), "the minute is not over"
    now += timedelta(minutes=1)
    log.refused(AccessKind.UNAUTHENTICATED, who=None, address="192.0.2.1")
    asyncio.run(log.write())
    asyncio.run(log.write())
    minute = NOW.replace(second=0)
    first = {
        (minute, "unauthenticated", None, "192.0.2.1", 3),
        (minute, "forbidden", "0123", "192.0.2.1", 1),
    }
    assert told() == first
    for number in range(ADDRESSES * 2):
        log.refused(AccessKind.UNAUTHENTICATED, who=None, address=f"2001:db8::{number}")
    asyncio.run(log.close())
    sums = told() - first
    assert len(sums) == ADDRESSES + 1
    assert sum(count for *_, count in sums) == ADDRESSES * 2 + 1
    assert any(address == OTHERS for *_, address, _ in sums)


def test_who_acts_for_an_agent_is_recorded_with_the_agent_once_an_hour(
    migrated_engine: Engine,
) -> None:
    now = NOW.replace(minute=10)
    log = AccessLog(migrated_engine, lambda: now)

    def told() -> list[tuple[Any, ...]]:
        with migrated_engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT at, who, subject, count FROM assignment.access_log"
                " WHERE what = 'acted_for' ORDER BY at, who, subject"
            )
            return [tuple(row) for row in found]

    for token, agent in (("0a", 26), ("0a", 26), ("0a", 27), ("0b", 26)):
        log.acted(token, agent)
    now += timedelta(minutes=40)
    log.acted("0a", 26)
    asyncio.run(log.write())
    at = NOW.replace(minute=10, second=0)
    first = [(at, "0a", "agent 26", 1), (at, "0a", "agent 27", 1), (at, "0b", "agent 26", 1)]
    assert told() == first
    now += timedelta(minutes=20)
    log.acted("0a", 26)
    asyncio.run(log.close())
    assert told() == [*first, (at + timedelta(hours=1), "0a", "agent 26", 1)]
    for agent in range(ADDRESSES * 2):
        log.acted("0c", agent)
    asyncio.run(log.close())
    assert len(told()) == len(first) + 1 + ADDRESSES + 1, "a token cannot fill the table"


def test_a_frontend_and_the_agent_it_acts_for_are_both_recorded(gateway: Gateway) -> None:
    frontend = gateway.tokens["frontend"].split("_")[1]
    hold = gateway.assigned(31)
    assert gateway.post(f"/v1/assignments/{hold['id']}/release", {"agent_id": 31}).status == 200
    own = {"agent_id": 1}
    assert gateway.post("/v1/requests", own, bearer="agent 1").status == 200

    def told() -> set[tuple[str, str]]:
        return {(who, subject) for who, subject, *_ in records(gateway, "acted_for")}

    wait_until(lambda: (frontend, "agent 31") in told(), "it to be written")
    agent = gateway.tokens["agent 1"].split("_")[1]
    assert agent not in {who for who, _ in told()}, "an agent's own token is the agent"


def test_each_event_of_an_agent_names_the_token_that_acted(gateway: Gateway) -> None:
    frontend = f"token {gateway.tokens['frontend'].split('_')[1]}"
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    moves: list[dict[str, Any]] = [
        {"move": "skip"},
        {"move": "defer", "seconds": 60},
        {"move": "close", "why": "asked"},
        {"move": "release"},
        {"move": "complete", "outcome": "call_back", "callback_at": soon},
    ]

    def work(agent: int, bearer: str) -> None:
        for body in moves:
            move, own = body["move"], {"agent_id": agent}
            asked = gateway.post("/v1/requests", own, bearer=bearer).json["assignment"]
            at = f"/v1/assignments/{asked['id']}/"
            for first in ("accept", "renew"):
                assert gateway.post(at + first, own, bearer=bearer).status == 200
            said = own | {name: value for name, value in body.items() if name != "move"}
            assert gateway.post(at + move, said, bearer=bearer).status == 200
            again = {"release": "skip"}.get(move, "release")
            assert gateway.post(at + again, own, bearer=bearer).status == 409
        state = f"/v1/agents/{agent}/state"
        assert gateway.post(state, {"state": "break"}, bearer=bearer).status == 200
        assert gateway.post(state, {"state": "offline"}, bearer=bearer).status == 200

    def told(agent: int) -> dict[str, set[str | None]]:
        found: dict[str, set[str | None]] = {}
        for kind, sender in gateway.stack.rows(
            "SELECT kind, details->>'sent_by' FROM assignment.events"
            f" WHERE agent_id = {agent} AND (details->>'by' IS NULL OR kind = 'agent_state')"
            f" AND at > '{began}'"
        ):
            found.setdefault(kind, set()).add(sender)
        return found

    began = gateway.stack.value("SELECT clock_timestamp()")
    work(41, "frontend")
    work(1, "agent 1")
    kinds = {"assigned", "accepted", "renewed", "skipped", "deferred", "closed", "released"}
    kinds |= {"completed", "callback_promised", "agent_state", "ASSIGNMENT_RACE_CONDITION"}
    assert told(41) == {kind: {frontend} for kind in kinds}
    assert told(1) == {kind: {None} for kind in kinds}, "an agent's own token is the agent"


def test_a_database_that_is_away_loses_no_sum(migrated_engine: Engine) -> None:
    log = AccessLog(migrated_engine, lambda: NOW)
    log.refused(AccessKind.UNAUTHENTICATED, who=None, address="192.0.2.1")
    move = "ALTER TABLE assignment.{} RENAME TO {}"
    with migrated_engine.begin() as connection:
        connection.exec_driver_sql(move.format("access_log", "away"))
    asyncio.run(log.write(whole=False))
    with migrated_engine.begin() as connection:
        connection.exec_driver_sql(move.format("away", "access_log"))
    asyncio.run(log.write(whole=False))
    with migrated_engine.connect() as connection:
        count = connection.exec_driver_sql("SELECT sum(count) FROM assignment.access_log")
        assert count.scalar_one() == 1


def test_an_address_that_hurries_waits_and_who_has_a_token_does_not(strict: Gateway) -> None:
    assert strict.get("/v1/queues", bearer="supervisor").status == 200
    replies: list[Reply] = []

    def hurry(number: int) -> None:
        guessed = f"aw_{number:012x}_guessed"
        replies.extend(strict.get("/v1/queues", bearer=guessed) for _ in range(3))

    threads = [threading.Thread(target=hurry, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: any(each.status == 429 for each in list(replies)), "a refusal to wait")
    began = time.monotonic()
    assert strict.get("/v1/queues", bearer="supervisor").status == 200
    assert strict.get("/healthz", bearer=None).status == 200
    assert time.monotonic() - began < 0.9, "they are held back for no second"
    for thread in threads:
        thread.join()
    held = [each for each in replies if each.status == 429]
    assert {each.status for each in replies} == {401, 429}
    assert len(held) > len(replies) / 2
    assert all(int(each.headers["retry-after"]) >= 1 for each in held)


def sent(gateway: Gateway, *parts: bytes) -> bytes:
    """What a caller is answered who sends these parts; all of it, until the end of a connection."""
    with closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=40)) as caller:
        try:
            for part in parts:
                caller.sendall(part)
            return b"".join(iter(lambda: caller.recv(65_536), b""))
        except (BrokenPipeError, ConnectionResetError):
            return b""


HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([HEAD + b"X: " + b"x" * HEAD_BYTES], id="a header that does not end"),
        pytest.param([HEAD, *[b"X: y\r\n"] * (HEAD_BYTES // 4)], id="headers without an end"),
        pytest.param([HEAD + b"X: y\r\n" * HEAD_BYTES + b"\r\n"], id="one large head"),
        pytest.param([b"GET /" + b"x" * HEAD_BYTES * 2], id="an address that does not end"),
    ],
)
def test_a_head_that_is_too_large_is_refused_and_the_connection_closed(
    gateway: Gateway, parts: list[bytes]
) -> None:
    began = time.monotonic()
    answer = sent(gateway, *parts)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert time.monotonic() - began < ARRIVE_SECONDS / 2, "refused as soon as it is too large"
    assert gateway.get("/healthz", bearer=None).status == 200


def test_a_head_that_fits_is_served_in_however_many_parts_it_comes(gateway: Gateway) -> None:
    long = {"X-Long": "x" * (HEAD_BYTES - 1_000)}
    assert gateway.get("/healthz", bearer=None, headers=long).status == 200
    whole = HEAD + b"X: " + b"x" * (HEAD_BYTES - 1_000) + b"\r\nConnection: close\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=40)) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(whole), 4_000):
            caller.sendall(whole[start : start + 4_000])
            gateway.get("/healthz", bearer=None)  # what was sent before is read by now
        assert b"".join(iter(lambda: caller.recv(65_536), b"")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(HEAD, id="half a head"),
        pytest.param(
            b"POST /v1/requests HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{",
            id="half a body",
        ),
        pytest.param(HEAD + b"\r\n", id="a whole request, and line ends after it"),
    ],
)
def test_a_request_that_does_not_arrive_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """On the protocol itself, with a second for twenty."""
    monkeypatch.setattr(socket_limits, "ARRIVE_SECONDS", 1.0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        start = {"type": "http.response.start", "status": 200}
        await send(start | {"headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def trickle() -> bytes:
        import uvicorn
        from uvicorn.server import ServerState

        config = uvicorn.Config(app, http=socket_limits.LimitedProtocol, log_config=None)
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: socket_limits.LimitedProtocol(config, state, {}), "127.0.0.1", 0
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            found = b""
            try:
                async with asyncio.timeout(10):
                    while piece := await reader.read(1000):
                        found += piece
                        writer.write(b"\r\n")
            except ConnectionResetError:
                pass
            writer.close()
            return found

    found = asyncio.run(trickle())
    assert found.startswith(b"HTTP/1.1 200") if said.endswith(b"\r\n\r\n") else found == b""


def test_who_acts_by_a_message_of_no_door_is_marked(gateway: Gateway) -> None:
    queue = "outstanding_requests"

    def by(kind: str) -> Any:
        found = gateway.stack.rows(
            "SELECT coalesce(e.details->>'by', t.texts->>'by') AS by FROM assignment.events e"
            " LEFT JOIN assignment.event_texts t ON t.event_id = e.id"
            f" WHERE e.kind = '{kind}' AND e.queue = '{queue}' ORDER BY e.id DESC LIMIT 1"
        )
        return found[0].by if found else None

    path = f"/v1/queues/{queue}"
    assert gateway.post(f"{path}/pause", {"why": "a test"}, bearer="operator").status == 200
    named = by("queue_paused")
    assert named == f"token {gateway.tokens['operator'].split('_')[1]}"
    forger = gateway.stack.client()  # it has the broker, and no key
    for args, kwargs in (([queue, f"{named} 1"], {}), ([], {"queue": queue, "by": f"{named} 2"})):
        forger.send_again("queue.resume", args, kwargs, "assignment")
        marked = f"unauthenticated: {kwargs.get('by') or args[1]}"
        wait_until(partial(lambda mark: by("queue_resumed") == mark, marked), "the mark")
        assert gateway.post(f"{path}/pause", {"why": "a test"}, bearer="operator").status == 200
    assert gateway.post(f"{path}/resume", {"why": "a test"}, bearer="operator").status == 200
    assert by("queue_resumed") == named
