"""Limits on one caller: the bytes of a body and the calls per second."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assignment_workers.assignment.answers import Code
from assignment_workers.gateway.problems import problem, refused
from assignment_workers.origins import Origins

BODY_BYTES = 64 * 1024
REMEMBERED = 10_000
"""The greatest number of keys, such as tokens, whose rate of calls is remembered. The key that was
not used for the longest time is forgotten first.
"""


@dataclass
class TokenBucket:
    """A rate limit for each key: on average `per_second` calls a second.

    A key stands for the caller whose calls are counted together: an API token, an agent, or an
    address. While a key makes fewer than `per_second` calls a second, the calls that it could have
    made are saved up. The key may make its saved calls later, all at once. The maximum number of
    saved calls is twice the number `per_second`, but at least 1. A new key begins with this
    maximum.
    """

    per_second: float
    clock: Callable[[], float] = time.monotonic
    _seen: OrderedDict[object, tuple[float, float]] = field(default_factory=OrderedDict)

    def left(self, key: object) -> float:
        """Return the seconds until the next call of `key` is allowed; 0.0 if now.

        Counts no call.
        """
        if key not in self._seen:
            return 0.0
        left, at = self._seen[key]
        left += (self.clock() - at) * self.per_second
        return 0.0 if left >= 1.0 else (1.0 - left) / self.per_second

    def wait(self, key: object) -> float:
        """Count a call of `key`; return 0.0 if it is allowed, otherwise the seconds to wait."""
        now = self.clock()
        most = max(self.per_second * 2, 1.0)
        left, at = self._seen.pop(key, (most, now))
        left = min(most, left + (now - at) * self.per_second)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self.per_second
        self._seen[key] = (left - 1.0 if wait == 0.0 else left, now)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return wait


class BodyLimit:
    """ASGI middleware that refuses bodies above `BODY_BYTES`, with or without a Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b""
        )
        if declared.isdigit() and int(declared) > BODY_BYTES:
            await _too_large(scope, receive, send)
            return
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > BODY_BYTES:
                raise _TooLarge
            return message

        try:
            await self._app(scope, counted, send)
        except _TooLarge:
            await _too_large(scope, receive, send)


class OwnPages:
    """ASGI middleware that refuses calls from other origins' pages, even with a valid session."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers: dict[str, str] = {}
            for name, value in scope["headers"]:
                if name in _LOOKED_AT:
                    headers.setdefault(name.decode(), value.decode("latin-1"))
            if wrong := self._origins.refusal(scope["method"], headers):
                response = refused(wrong.status, Code.FORBIDDEN, wrong.detail).response()
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


_LOOKED_AT = frozenset(
    {b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"}
)


class _TooLarge(BaseException):
    """Raised while a body that is too large is read. No handler of the application catches it."""


async def _too_large(scope: Scope, receive: Receive, send: Send) -> None:
    response = problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body may have {BODY_BYTES} bytes at the most"
    )
    await response(scope, receive, send)


SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class SecurityHeaders:
    """ASGI middleware that sets security headers: no type guessing, framing or caching by browsers.

    Headers that the application has set, such as a page's content policy, are not changed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                set_already = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(each for each in SECURITY_HEADERS if each[0] not in set_already),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)
