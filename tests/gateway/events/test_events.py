"""Live events: each once, in order, to whoever may see it; whoever comes back goes on from there."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from assignment_workers.gateway.auth import callers, tokens
from assignment_workers.gateway.bodies import LiveEvent
from assignment_workers.gateway.events import feed, live
from assignment_workers.gateway.events import stream as streaming
from assignment_workers.gateway.events.feed import EventFilter
from assignment_workers.gateway.events.live import EventReader, Live
from assignment_workers.gateway.events.stream import EventStream
from assignment_workers.gateway.problems import Problem
from assignment_workers.schema.engine import connect
from tests.gateway.stage import Gateway, never, scope
from tests.support.processes import wait_until
from tests.support.servers import free_port
from tests.support.sessions import END, OTHERS
from tests.support.world import FREE

INSERT = (
    "INSERT INTO assignment.events (at, kind, agent_id, details)"
    " SELECT clock_timestamp(), :kind, :agent, jsonb_build_object('error', 'not shown', 'rank', 1) ||"
    " CASE :kind WHEN 'ASSIGNMENT_RACE_CONDITION' THEN jsonb_build_object('kind', 'not_owner')"
    " ELSE '{}' END"
    " FROM generate_series(1, :count)"
)
LISTENING = f"SELECT pid {OTHERS} AND application_name = 'assignment-workers gateway live'"


def leave(gateway: Gateway, kind: str = "renewed", *, agent: int = 90, count: int = 1) -> None:
    """Events as any writer leaves them."""
    with gateway.stack.engine.begin() as connection:
        connection.execute(text(INSERT), {"kind": kind, "agent": agent, "count": count})


def stored(gateway: Gateway, after: int) -> list[int]:
    sql = "SELECT id FROM assignment.events WHERE id > :after ORDER BY id"
    return [row.id for row in gateway.stack.rows(sql, after=after)]


def in_process(gateway: Gateway, body: Callable[[Live], Coroutine[Any, Any, None]]) -> None:
    """Run a test of the parts, on the database of the running stack."""

    async def run() -> None:
        parts = Live(gateway.stack.engine, gateway.stack.database_url)
        async with asyncio.timeout(60):
            await body(parts)
        await parts.close()

    asyncio.run(run())


@asynccontextmanager
async def reading(
    parts: Live, event_filter: EventFilter, last: int | None = None
) -> AsyncIterator[EventReader]:
    async with parts.reader(event_filter, last, agent_token=None) as reader:
        yield reader


def ids(said: bytes) -> list[int]:
    """The ids of the events in a piece of a stream; those that only mark are left out."""
    blocks = [block for block in said.split(b"\n\n") if b"data: " in block]
    return [int(block.partition(b"id: ")[2].split(b"\n")[0]) for block in blocks]


def test_an_agents_moves_are_seen_as_they_are_committed(gateway: Gateway) -> None:
    with gateway.stream() as stream:
        held = gateway.assigned(70)
        for move in ("accept", "renew", "skip"):
            gateway.post(f"/v1/assignments/{held['id']}/{move}", {"agent_id": 70})
        seen = [
            stream.until(kind, agent_id=70, assignment_id=held["id"], user_id=held["user_id"])
            for kind in ("assigned", "accepted", "renewed", "skipped")
        ]
        assert [each["id"] for each in seen] == sorted(each["id"] for each in seen)
        assert seen[0]["details"]["lease_expires_at"] == held["lease_expires_at"]
        for each in seen:
            assert LiveEvent.model_validate(each).details is not None
            assert set(each) <= set(LiveEvent.model_fields)
        gateway.post("/v1/queues/outstanding_requests/pause", bearer="operator")
        gateway.post("/v1/queues/outstanding_requests/resume", bearer="operator")
        stream.until("queue_paused", queue="outstanding_requests")
        assert "details" in stream.until("queue_resumed", queue="outstanding_requests")


def test_details_that_may_tell_of_a_person_are_left_out(gateway: Gateway) -> None:
    with gateway.stream() as stream:
        leave(gateway, "generation_failed")
        assert stream.until("generation_failed")["details"] == {"rank": 1}


def test_each_role_sees_its_own(gateway: Gateway) -> None:
    """The last of four events is seen by all; who may see others has seen them before it."""

    def left() -> None:
        for kind, agent in (
            ("released", 2),
            ("queue_paused", 1),
            ("ASSIGNMENT_RACE_CONDITION", 1),
            ("released", 1),
        ):
            leave(gateway, kind, agent=agent)

    everything = ["released", "queue_paused", "ASSIGNMENT_RACE_CONDITION", "released"]
    for bearer, path, kinds in (
        ("agent 1", "/v1/events", ["released"]),
        ("frontend", "/v1/events", ["released", "released"]),
        ("frontend", "/v1/events?agent_id=1", ["released"]),
        ("supervisor", "/v1/events", everything),
        ("operator", "/v1/events?agent_id=1", everything[1:]),
    ):
        with gateway.stream(path, bearer=bearer) as stream:
            since = int(wait_until(lambda: stored(gateway, 0)[-1], "an event"))
            left()
            seen: list[dict[str, Any]] = []
            while [(e["kind"], e["agent_id"]) for e in seen][-1:] != [("released", 1)]:
                said = stream.next()
                seen += [said] if said["details"].get("rank") == 1 else []  # none but ours
            assert [each["kind"] for each in seen if each["id"] > since] == kinds, (bearer, path)
    refused = gateway.get("/v1/events?agent_id=2", bearer="agent 1")
    assert (refused.status, refused.json["code"]) == (403, "forbidden")
    wrong = gateway.get("/v1/events", bearer="supervisor", headers={"Last-Event-ID": "x"})
    assert (wrong.status, wrong.json["code"]) == (422, "malformed")


def test_whoever_comes_back_misses_nothing_and_gets_nothing_twice(gateway: Gateway) -> None:
    with gateway.stream(bearer="frontend") as stream:
        leave(gateway, agent=91, count=3)
        first = [stream.until("renewed", agent_id=91)["id"] for _ in range(3)]
        last = stream.last
    leave(gateway, agent=91, count=1200)
    port = free_port()
    process = gateway.stack.start("gateway", gateway_port=str(port))
    other = Gateway(gateway.stack, port, gateway.tokens)

    def ready() -> bool:
        try:
            return other.get("/readyz", bearer=None).status == 200
        except OSError:
            return False

    wait_until(ready, "the other gateway")
    with other.stream("/v1/events?agent_id=91", bearer="frontend", last=last) as stream:
        leave(gateway, agent=91, count=3)
        seen = [stream.next()["id"] for _ in range(1203)]
        sql = "SELECT id FROM assignment.events WHERE agent_id = 91 AND id > :last ORDER BY id"
        assert seen == [row.id for row in gateway.stack.rows(sql, last=first[-1])]
        # A gateway that is asked to end does not wait for its readers.
        process.signal(signal.SIGTERM)
        assert stream.read() is None
    assert process.popen.wait(20) == 0
    assert "graceful shutdown exceeded" not in process.said()


def test_an_event_that_commits_late_is_waited_for(gateway: Gateway) -> None:
    with gateway.stream() as stream, gateway.stack.connection() as slow:
        for ends in ("commit", "rollback"):
            slow.execute(text(INSERT), {"kind": "renewed", "agent": 92, "count": 2})
            leave(gateway, "expired", agent=92)
            leave(gateway, "expired", agent=92)
            threading.Timer(0.5, getattr(slow, ends)).start()
            seen: list[dict[str, Any]] = []
            while [each["kind"] for each in seen][-2:] != ["expired"] * 2:
                said = stream.next()
                seen += [said] if said.get("agent_id") == 92 else []
            kinds = [each["kind"] for each in seen]
            assert kinds == ["renewed"] * 2 * (ends == "commit") + ["expired"] * 2
            assert [each["id"] for each in seen] == sorted(each["id"] for each in seen)


def write(gateway: Gateway, seed: int, stop: threading.Event) -> None:
    """Leave events until told to stop, some in transactions that last, some of which roll back."""
    chance = random.Random(seed)
    while not stop.is_set():
        with gateway.stack.engine.connect() as connection:
            given = {"kind": "renewed", "agent": seed, "count": chance.randint(1, 3)}
            connection.execute(text(INSERT), given)
            stop.wait(chance.random() * 0.02)
            if chance.random() < 0.8:
                connection.commit()


async def follow(
    gateway: Gateway, parts: Live, event_filter: EventFilter, stop: threading.Event
) -> tuple[int, list[int]]:
    """Read until all is there, leaving and coming back often: since when, and the ids."""
    chance = random.Random(1)
    seen: list[int] = []
    last = began = -1
    while not stop.is_set() or last < stored(gateway, 0)[-1]:
        async with reading(parts, event_filter, None if last < 0 else last) as reader:
            began = reader.last if began < 0 else began
            for _ in range(chance.randint(1, 20)):
                seen += ids(await reader.more(0.01))
            last = reader.last
        await asyncio.sleep(chance.random() * 0.05)
    return began, seen


def test_whatever_commits_in_whichever_order_is_read_once_and_in_order(gateway: Gateway) -> None:
    stop = threading.Event()
    there = (
        "SELECT id FROM assignment.events WHERE id > :since AND coalesce(agent_id = :agent, true)"
        " AND coalesce(kind = :kind, true) ORDER BY id"
    )

    async def body(parts: Live) -> None:
        writing = [
            threading.Thread(target=write, args=(gateway, number, stop)) for number in (93, 94, 95)
        ]
        for thread in writing:
            thread.start()
        eyes = [(None, None), (94, None), (None, "renewed")]
        following = [
            asyncio.create_task(
                follow(
                    gateway, parts, EventFilter(agent, frozenset({kind}) if kind else None), stop
                )
            )
            for agent, kind in eyes
        ]
        await asyncio.sleep(2)
        stop.set()
        for thread in writing:
            await asyncio.to_thread(thread.join)
        for task, (agent, kind) in zip(following, eyes, strict=True):
            since, seen = await task
            rows = gateway.stack.rows(there, since=since, agent=agent, kind=kind)
            assert len(seen) > 30
            assert seen == [row.id for row in rows]

    in_process(gateway, body)


def test_a_lost_database_connection_loses_no_event(gateway: Gateway) -> None:
    with gateway.stream() as stream:
        for _ in range(3):
            killed = wait_until(lambda: gateway.stack.rows(LISTENING), "the gateway to listen")
            gateway.stack.value("SELECT pg_terminate_backend(:pid)", pid=killed[0].pid)
            leave(gateway, "released", agent=96)
            stream.until("released", agent_id=96)


def test_a_database_that_goes_while_a_reader_catches_up_loses_no_event(gateway: Gateway) -> None:
    last = stored(gateway, 0)[-1]
    leave(gateway, "renewed", agent=96, count=feed.PAGE + 100)
    own = connect(
        gateway.stack.database_url,
        name="catching up",
        statement_timeout=timedelta(seconds=10),
        pool_size=2,
    )
    kill = f"SELECT count(*) FROM ({END} AND application_name = :n) AS ended"

    async def body(_: Live) -> None:
        parts = Live(own, gateway.stack.database_url)
        async with reading(parts, EventFilter(96), last) as reader:
            seen = ids(await reader.more(5))
            assert gateway.stack.value(kill, n="catching up") >= 1
            while len(seen) < feed.PAGE + 100:
                seen += ids(await reader.more(0.1))
        assert seen == [number for number in stored(gateway, last) if number in set(seen)]

    in_process(gateway, body)
    own.dispose()


def test_a_reader_who_does_not_read_is_cut_off_and_can_go_on(gateway: Gateway) -> None:
    wait_until(lambda: gateway.metric("streams") == 0, "other streams to end")
    last = stored(gateway, 0)[-1]
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", gateway.port))
        token = gateway.tokens["supervisor"]
        head = (
            f"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        slow.sendall(head.encode())
        wait_until(lambda: gateway.metric("streams") == 1, "the stream to open")
        for _ in range(5):
            leave(gateway, "renewed", agent=97, count=10_000)
        wait_until(lambda: gateway.metric("streams") == 0, "it to be cut off", seconds=10)
    with gateway.stream(last=last) as stream:
        there = stored(gateway, last)
        assert len(there) >= 50_000
        assert [stream.next()["id"] for _ in there] == there


def test_whoever_hangs_up_frees_everything(gateway: Gateway) -> None:
    with gateway.stream(), gateway.stream():
        wait_until(lambda: gateway.metric("streams") == 2, "two streams")
        assert len(gateway.stack.rows(LISTENING)) == 1
    wait_until(lambda: gateway.metric("streams") == 0, "both to be gone")
    wait_until(lambda: not gateway.stack.rows(LISTENING), "its connection to be given back")


def test_whoever_missed_what_cannot_be_told_is_told_so(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BEHIND_AT_MOST", 10)
    leave(gateway, "renewed", agent=98, count=12)

    async def body(parts: Live) -> None:
        newest = stored(gateway, 0)[-1]
        for last in (newest - 11, newest + 1_000):
            async with reading(parts, EventFilter(98), last) as reader:
                said = (await reader.more(5)).decode()
                assert said.startswith(f"id: {newest}\nevent: reset\n"), said
                await asyncio.to_thread(leave, gateway, "renewed", agent=98)
                newest += 1
                assert ids(await reader.more(5)) == [newest]

    in_process(gateway, body)


def test_what_is_no_longer_kept_cannot_be_told(database_url: str) -> None:
    own = connect(database_url, name="test", statement_timeout=timedelta(seconds=10), pool_size=2)
    with own.begin() as connection:
        connection.execute(text(INSERT), {"kind": "renewed", "agent": 1, "count": 5})
        connection.execute(text(FREE))
        connection.execute(text("DELETE FROM assignment.events WHERE id <= 3"))
        connection.execute(text(FREE.replace("DISABLE", "ENABLE")))

    async def run() -> None:
        parts = Live(own, database_url)
        for last, begins, told in ((2, b"id: 5\nevent: reset", [5]), (3, b"id: 4\n", [4, 5])):
            async with reading(parts, EventFilter(), last) as reader:
                said = await reader.more(5)
                assert said.startswith(begins)
                assert ids(said) == told

    asyncio.run(run())
    own.dispose()


def test_a_database_that_moved_back_makes_its_readers_begin_again(database_url: str) -> None:
    """As after a failover to a standby without the last events, whose ids were given out again."""
    own = connect(database_url, name="test", statement_timeout=timedelta(seconds=10), pool_size=3)

    def change(*statements: str) -> None:
        with own.begin() as connection:
            for each in statements:
                connection.execute(text(each), {"kind": "renewed", "agent": 1, "count": 2})

    async def run() -> None:
        parts = Live(own, database_url)
        async with reading(parts, EventFilter()) as reader:
            await reader.more(0.0)
            await asyncio.to_thread(change, INSERT)
            assert ids(await reader.more(5)) == [1, 2]
            await asyncio.to_thread(
                change,
                FREE,
                "DELETE FROM assignment.events WHERE id = 2",
                "ALTER TABLE assignment.events ALTER id RESTART WITH 2",
                INSERT,
                FREE.replace("DISABLE", "ENABLE"),
                LISTENING.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"),
            )
            said = b""
            while not said:
                said = await reader.more(5)
            assert said == b'id: 3\nevent: reset\ndata: {"id":3,"kind":"reset"}\n\n'
            await asyncio.to_thread(change, INSERT)
            assert ids(await reader.more(5)) == [4, 5]

    asyncio.run(run())
    own.dispose()


def test_a_stream_says_how_far_it_is(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BEAT_SECONDS", 0.2)
    sent: list[bytes] = []

    async def body(parts: Live) -> None:
        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        asked = iter([True, True, False])

        async def may_go_on() -> bool:
            await asyncio.to_thread(leave, gateway, "renewed", agent=99)
            return next(asked)

        opened = EventStream(parts, EventFilter(1), None, agent_token=None, may_go_on=may_go_on)
        await opened({"type": "http"}, never, send)

    before = stored(gateway, 0)[-1]
    in_process(gateway, body)
    marks = [int(each.split(b"id: ")[1]) for each in sent if b": alive" in each]
    assert marks[0] == before
    assert marks[0] < marks[-1] <= stored(gateway, 0)[-1]
    assert len(marks) == 3


def test_a_stream_ends_with_its_token(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(callers, "KNOWN_SECONDS", 0.0)
    with gateway.stack.engine.begin() as connection:
        made = tokens.create(connection, "supervisor")
    app, asked = gateway.app(), scope("GET", "/v1/events", bearer=made)

    async def run() -> None:
        beats = asyncio.Semaphore(0)

        async def send(message: Any) -> None:
            if b": alive" in message.get("body", b""):
                beats.release()

        async with asyncio.timeout(20), app.router.lifespan_context(app):
            reading = asyncio.create_task(app(asked, never, send))
            for _ in range(3):
                await beats.acquire()
            assert not reading.done()
            with gateway.stack.engine.begin() as connection:
                assert tokens.revoke(connection, made.split("_")[1])
            await reading

    asyncio.run(run())


def test_one_agents_token_has_no_more_than_its_streams(gateway: Gateway) -> None:
    async def body(parts: Live) -> None:
        mine = [
            parts.reader(EventFilter(1), None, agent_token="one")
            for _ in range(live.READERS_OF_ONE)
        ]
        for each in mine:
            await each.__aenter__()
        with pytest.raises(Problem, match="streams open"):
            await parts.reader(EventFilter(1), None, agent_token="one").__aenter__()
        async with parts.reader(EventFilter(2), None, agent_token="two"):
            pass
        for each in mine:
            await each.__aexit__(None, None, None)
        assert parts.readers == 0

    in_process(gateway, body)
