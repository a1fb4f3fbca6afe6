"""The gateway's limits as ASGI middleware, called without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assignment_workers.gateway.limits import (
    BODY_BYTES,
    SECURITY_HEADERS,
    BodyLimit,
    OwnPages,
    SecurityHeaders,
)
from assignment_workers.origins import Origins

Headers = list[tuple[bytes, bytes]]
HOSTS = Origins.of("gateway.example")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body to its end, and answer with its length."""
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    own = {"cache-control": "max-age=60"} if scope["path"] == "/asset" else None
    await PlainTextResponse(str(length), headers=own)(scope, receive, send)


def called(
    app: ASGIApp,
    parts: list[bytes] | None = None,
    headers: Headers | None = None,
    *,
    method: str = "POST",
    path: str = "/",
) -> tuple[int, dict[str, str], bytes]:
    """Call the application; return status, headers and body of its answer."""
    body = parts or [b""]
    waiting: list[Message] = [
        {"type": "http.request", "body": each, "more_body": number < len(body)}
        for number, each in enumerate(body, 1)
    ]
    sent: list[Any] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    start, *rest = sent
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], told, b"".join(each.get("body", b"") for each in rest)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("length", "status"), [(BODY_BYTES, 200), (BODY_BYTES + 1, 413)])
def test_a_body_that_is_too_large_is_refused_whether_its_length_was_declared(
    length: int, status: int, *, declared: bool
) -> None:
    headers = [(b"content-length", b"%d" % length)] if declared else []
    half = length // 2
    found, _, body = called(BodyLimit(echo), [b"x" * half, b"x" * (length - half)], headers)
    assert found == status
    assert (str(length) if status == 200 else str(BODY_BYTES)).encode() in body


def test_a_length_that_is_no_number_is_counted_instead() -> None:
    found = called(BodyLimit(echo), [b"x" * (BODY_BYTES + 1)], [(b"content-length", b"many")])
    assert found[0] == 413


@pytest.mark.parametrize("make", [BodyLimit, SecurityHeaders, lambda app: OwnPages(app, HOSTS)])
def test_what_is_no_request_is_handed_on(make: Callable[[ASGIApp], ASGIApp]) -> None:
    seen: list[Scope] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def never(*_: Any) -> Any:
        raise AssertionError("nothing is read or sent")

    asyncio.run(make(note)({"type": "lifespan"}, never, never))  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "gateway.example"}, 200),
        ({"host": "gateway.example", "origin": "http://gateway.example"}, 200),
        ({"host": "gateway.example", "origin": "https://evil.example"}, 403),
        ({"host": "gateway.example", "sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 421),
    ],
)
def test_a_page_of_another_origin_is_refused(headers: dict[str, str], status: int) -> None:
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    found, _, body = called(OwnPages(echo, HOSTS), headers=sent)
    assert found == status, body


def test_browsers_are_told_what_they_may_not_do_and_an_answer_s_own_headers_stay() -> None:
    _, headers, _ = called(SecurityHeaders(echo))
    for name, value in SECURITY_HEADERS:
        assert headers[name.decode()] == value.decode()
    _, headers, _ = called(SecurityHeaders(echo), path="/asset")
    assert headers["cache-control"] == "max-age=60"
    assert headers["x-frame-options"] == "DENY"
