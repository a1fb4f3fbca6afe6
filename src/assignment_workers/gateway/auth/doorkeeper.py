"""Refusals: counted, recorded, and slowed down by address before a token is looked up.

An unknown token costs a look-up in the database. A call without a token passes through the whole
application before it is refused. Both take time from callers with a valid token. If calls from an
address were refused often, this middleware therefore answers further calls from that address with a
refusal, after a delay, without passing them to the application.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from math import ceil

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assignment_workers import links
from assignment_workers.gateway.auth.audit import AccessLog
from assignment_workers.gateway.auth.callers import Caller, Callers
from assignment_workers.gateway.limits import TokenBucket
from assignment_workers.gateway.metrics import Metrics
from assignment_workers.gateway.problems import unavailable
from assignment_workers.gateway.system_health import AnswerWindow
from assignment_workers.schema.tables import AccessKind

HELD_SECONDS = 1.0
"""Seconds by which a further refusal is delayed for an address that was refused too often."""
HELD_AT_MOST = 500
"""The greatest number of refusals that are being delayed at the same time. A further refusal is
sent at once, and its connection is closed.
"""
FOR_EVERYBODY = frozenset({"/healthz", "/readyz"})
AGENT_PATHS = ("/v1/requests", "/v1/assignments/")
"""The beginnings of the paths that agents' programs call.

The responses to POST calls to these paths are counted: all responses, and the responses with status
503. From these two counts, the health of the system shows whether agents are served.
"""
SIGN_IN = frozenset({"/login", links.PATH})
COOKIE = b"assignment_workers="


class Doorkeeper:
    """ASGI middleware that answers 429 to an address whose calls were refused too often.

    A refusal is a response 401 or 403. Each address has a limit of refusals per second, the setting
    `gateway_refusal_rate`. Only the refusals of calls without a valid token or session count
    towards this limit. Above the limit, every call from the address is answered 429, with two
    exceptions. A call is let through if its own token or session was valid when it was last looked
    up. A call is also let through if its path is in `FOR_EVERYBODY`.

    The middleware also counts every response 401 or 403 for the access log. For the health of the
    system, it counts all responses to POST calls of agents' programs (`AGENT_PATHS`), and those of
    them with the status 503. A call that the middleware itself answers 429 is in neither count.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        callers: Callers,
        access: AccessLog,
        metrics: Metrics,
        answers: AnswerWindow,
        pace: TokenBucket,
    ) -> None:
        self._app = app
        self._callers = callers
        self._access = access
        self._refused = metrics.refused
        self._unavailable = metrics.unavailable
        self._answers = answers
        self._pace = pace
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        address: str | None = client[0] if client else None
        wait = self._pace.left(address)
        if wait > 0 and scope["path"] not in FOR_EVERYBODY and not self._is_known(scope):
            await self._hold_back(wait, scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                    self._count(status, scope, address)
                if scope["method"] == "POST" and scope["path"].startswith(AGENT_PATHS):
                    is_useless = status == HTTPStatus.SERVICE_UNAVAILABLE
                    self._answers.count(unavailable=is_useless)
                    if is_useless:
                        self._unavailable.inc()
            await send(message)

        await self._app(scope, receive, watched)

    def _count(self, status: int, scope: Scope, address: str | None) -> None:
        caller: Caller | None = scope.get("state", {}).get("caller")
        who = caller.token if caller else None
        if scope["path"] in SIGN_IN:
            what = AccessKind.SIGN_IN_FAILED
        elif status == HTTPStatus.UNAUTHORIZED:
            what = AccessKind.UNAUTHENTICATED
        else:
            what = AccessKind.FORBIDDEN
        if who is None:
            self._pace.wait(address)
        self._refused.labels(what).inc()
        self._access.refused(what, who=who, address=address)

    def _is_known(self, scope: Scope) -> bool:
        """Return True if the call's token or session was valid at its last look-up."""
        authorization, cookie = b"", b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"cookie":
                _, found, rest = value.partition(COOKIE)
                cookie = rest.partition(b";")[0] if found else b""
        return self._callers.knows(authorization.decode("latin-1"), cookie.decode("latin-1"))

    async def _hold_back(self, wait: float, scope: Scope, receive: Receive, send: Send) -> None:
        self._refused.labels("hurried").inc()
        problem = unavailable(
            "too many calls without a good token from this address",
            status=HTTPStatus.TOO_MANY_REQUESTS,
            retry_after=ceil(wait),
        )
        if self._held >= HELD_AT_MOST:
            problem.headers["Connection"] = "close"
        else:
            self._held += 1
            try:
                await asyncio.sleep(HELD_SECONDS)
            finally:
                self._held -= 1
        await problem.response()(scope, receive, send)
