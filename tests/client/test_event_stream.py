"""A stream of events that ends goes on where it was, in each client over HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any

import pytest

from assignment_workers.client import AsyncHttpClient, EventsRefused, HttpClient, event_stream

HELD = (
    '{"id":%d,"kind":"assigned","at":"2026-11-23T15:00:00Z","user_id":2064,"agent_id":26,'
    '"details":{"rank":1}}'
)
STREAMS = [
    # A mark without data, two events, and the end of the connection in the middle of a third.
    "retry: 2000\n\nid: 7\n\n"
    + "".join(f"id: {n}\nevent: assigned\ndata: {HELD % n}\n\n" for n in (8, 9))
    + "id: 10\nevent: assi",
    "",
    "unavailable",
    f": alive\n\nid: 10\nevent: assigned\ndata: {HELD % 10}\n\n",
]


class Gateway(ThreadingHTTPServer):
    """Answers each request with the next of `STREAMS`, and then refuses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.streams = iter(STREAMS)


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Last-Event-ID"]))
        said = next(self.server.streams, "refused")
        if said in {"unavailable", "refused"}:
            self.send_response(503 if said == "unavailable" else 403)
            self.send_header("Content-Type", "application/problem+json")
            self.end_headers()
            self.wfile.write(b'{"code":"forbidden","detail":"not for you"}')
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(event_stream, "AGAIN_SECONDS", 0.001)
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


ASKED = [
    ("/v1/events?agent_id=26", None),
    *[("/v1/events?agent_id=26", "9")] * 3,
    ("/v1/events?agent_id=26", "10"),
]


def test_each_event_comes_once_over_several_connections(gateway: Gateway) -> None:
    with HttpClient(f"http://127.0.0.1:{gateway.server_port}") as client:
        events = client.events(agent_id=26)
        found = list(islice(events, 3))
        assert [(each.id, each.user_id, each.details) for each in found] == [
            (number, 2064, {"rank": 1}) for number in (8, 9, 10)
        ]
        with pytest.raises(EventsRefused, match="not for you"):
            next(events)
    assert gateway.asked == ASKED


def test_each_event_comes_once_to_a_coroutine(gateway: Gateway) -> None:
    async def read() -> list[int]:
        found: list[int] = []
        async with AsyncHttpClient(f"http://127.0.0.1:{gateway.server_port}") as client:
            with pytest.raises(EventsRefused, match="not for you"):  # noqa: PT012
                async for each in client.events(agent_id=26):
                    found.append(each.id)  # noqa: PERF401 - the loop raises
        return found

    assert asyncio.run(read()) == [8, 9, 10]
    assert gateway.asked == ASKED
