"""A running gateway as its tests call it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from fastapi import FastAPI

from assignment_workers.gateway.app import create_app
from assignment_workers.settings import Settings
from tests.support.processes import Stack


@dataclass
class Reply:
    """What the gateway answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def scope(method: str, path: str, *, bearer: str, **headers: str) -> dict[str, Any]:
    """A call as ASGI says it; `bearer` is a token."""
    said = {"authorization": f"Bearer {bearer}"} | {
        name.replace("_", "-"): each for name, each in headers.items()
    }
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), each.encode()) for name, each in said.items()],
    }


async def never() -> Any:
    """What a caller sends who stays and says nothing."""
    await asyncio.Event().wait()


class Stream:
    """An open stream of server-sent events, read as the standard says."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        self.last = ""
        """The last event id, as a browser would keep it."""

    def next(self) -> dict[str, Any]:
        """The data of the next event; fails when none comes, or the stream has ended."""
        found = self.read()
        assert found is not None, "the stream has ended"
        return found

    def until(self, kind: str, **facts: Any) -> dict[str, Any]:
        """The data of the next event of this kind, with these facts."""
        while True:
            said = self.next()
            if said["kind"] == kind and facts.items() <= said.items():
                return said

    def read(self) -> dict[str, Any] | None:
        """The data of the next event; None at the end of the stream."""
        data = ""
        while line := self._response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "id":
                self.last = value
            elif name == "data":
                data += value
            elif name == "event":
                kind = value
            elif not name and data:
                said = dict(json.loads(data))
                assert (str(said["id"]), said["kind"]) == (self.last, kind)
                return said
        return None


@dataclass
class Gateway:
    """A running gateway, and a token of each role; agents 1 and 2 have one of their own."""

    stack: Stack
    port: int
    tokens: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        bearer: str | None = "frontend",
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Call a route; `bearer` is the name of a token here, or a token, or None for without."""
        sent = {"Content-Type": "application/json"} | (headers or {})
        if bearer is not None:
            sent["Authorization"] = f"Bearer {self.tokens.get(bearer, bearer)}"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=40)
        try:
            given = body if isinstance(body, str | bytes | None) else json.dumps(body)
            connection.request(method, path, given, sent)
            answer: HTTPResponse = connection.getresponse()
            text = answer.read().decode()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, text)
        finally:
            connection.close()

    def post(self, path: str, body: Any = None, **options: Any) -> Reply:
        return self.call("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> Reply:
        return self.call("GET", path, **options)

    def assigned(self, agent: int) -> dict[str, Any]:
        """A new assignment of this agent."""
        answer = self.post("/v1/requests", {"agent_id": agent})
        assert answer.status == 200, answer.text
        assert answer.json["outcome"] == "assigned", answer.text
        return dict(answer.json["assignment"])

    @contextmanager
    def stream(
        self,
        path: str = "/v1/events",
        *,
        bearer: str | None = "supervisor",
        last: int | str | None = None,
        seconds: float = 10.0,
    ) -> Iterator[Stream]:
        """Follow the events; each must come within so many seconds."""
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        if bearer is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(bearer, bearer)}"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield Stream(response)
        finally:
            connection.close()

    def app(self) -> FastAPI:
        """Another gateway on the same servers, for a test to call without a port."""
        servers = {"DATABASE_URL": self.stack.database_url, "REDIS_URL": self.stack.redis_url}
        return create_app(Settings.from_environment(servers), self.stack.engine, tokens=True)

    def metric(self, name: str) -> float:
        """One figure without labels of what this gateway counts."""
        told = self.get("/metrics", bearer="supervisor").text
        full = f"assignment_workers_gateway_{name} "
        return float(next(line for line in told.splitlines() if line.startswith(full)).split()[1])
