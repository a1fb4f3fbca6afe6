"""A running gateway as its tests call it."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from tests.processes import Stack


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Reply:
    """What the gateway answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


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
