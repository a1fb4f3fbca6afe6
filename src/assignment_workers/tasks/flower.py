"""Flower behind our own checks: a login for everything, and no requests from other origins.

Flower itself asks for its login on every page except `/metrics`, and ignores the Host header. If
Flower was started by the command `up`, which runs a whole stack, a one-time link signs a browser
in, so that nobody has to type the password.

Flower itself also waits for events without a time limit. If the host of the broker hangs, Flower's
connection stays open, but no event arrives. Flower would then show nothing new until Flower itself
is restarted. Here the wait has a limit, `SILENCE_SECONDS`; after it, Flower connects again.
"""

from __future__ import annotations

import contextlib
import hmac
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import flower.command
import flower.events
from celery.events import EventReceiver
from flower.app import Flower
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from assignment_workers import links
from assignment_workers.origins import Origins
from assignment_workers.settings import Settings

COOKIE = "assignment_workers_flower"
SESSION_LASTS = timedelta(hours=12)
SILENCE_SECONDS = 10.0
"""Seconds without any event after which Flower connects to the broker again. Each worker sends a
heartbeat event every two seconds.
"""
OPEN = "/healthcheck"
"""The only path of Flower that needs no login. It answers OK and nothing else."""


def guard_flower(settings: Settings) -> None:
    """Make the `flower` command of this process start Flower with this module's access checks."""

    class Guarded(_Guarded):
        origins = Origins.of(settings.allowed_hosts, listens=settings.flower_host)
        logins = tuple((settings.flower_basic_auth or "").split(","))
        secret = settings.stack_token
        began = datetime.now(UTC)

    flower.command.Flower = Guarded
    flower.events.EventReceiver = BoundedReceiver


class BoundedReceiver(EventReceiver):
    """Celery's event receiver, changed to return after `SILENCE_SECONDS` without an event."""

    def capture(self, *args: Any, **options: Any) -> None:
        """Pass events to their handlers until none arrives for `SILENCE_SECONDS`.

        Flower then connects to the broker again.
        """
        options["timeout"] = options.get("timeout") or SILENCE_SECONDS
        with contextlib.suppress(TimeoutError):
            super().capture(*args, **options)


class _Guarded(Flower):  # type: ignore[misc]
    origins: Origins
    logins: tuple[str, ...]
    secret: str | None
    began: datetime
    """The start of this process. A sign-in link that was made before this time is refused: a link
    is valid only once, and an earlier process may have accepted this one already.
    """
    used: dict[str, datetime]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.used = {}

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
        """Return the handler that answers the request; it may be one that refuses the request.

        The request is refused if its Host header does not name this server, or if it comes from a
        page of another origin. A request without a valid login is refused too, with status 401.
        Exceptions: the path `/healthcheck` needs no login, and the sign-in link has a handler of
        its own.
        """
        headers = {name.lower(): value for name, value in request.headers.get_all()}
        if wrong := self.origins.refusal(request.method or "", headers):
            return self._refused(request, wrong.status, wrong.detail)
        if request.path.endswith(OPEN):
            return super().find_handler(request, **options)
        if request.path.endswith(links.PATH):
            return self._signed_in(request)
        if not self._is_known(request):
            return self._refused(request, HTTPStatus.UNAUTHORIZED, "Access denied")
        return super().find_handler(request, **options)

    def _is_known(self, request: HTTPServerRequest) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                login = b64decode(given.encode())
            except (NotBase64, UnicodeEncodeError):
                return False
            return any(hmac.compare_digest(login, each.encode()) for each in self.logins)
        cookie = request.cookies.get(COOKIE)
        code = cookie and self._read(links.FLOWER_SESSION, cookie.value)
        if not code:
            return False
        # Flower checks the login itself.
        login = b64encode(self.logins[0].encode())
        request.headers["Authorization"] = f"Basic {login.decode()}"
        return True

    def _signed_in(self, request: HTTPServerRequest) -> Any:
        """Return the handler for a request of the sign-in link.

        With a valid code, the handler signs the browser in. Each code is valid only once. Without a
        valid code, the handler sends a browser that is signed in already to Flower's first page,
        and refuses a request of any other browser with status 403.
        """
        now = datetime.now(UTC)
        self.used = {name: until for name, until in self.used.items() if until > now}
        given = request.query_arguments.get("code", [b""])[0].decode("latin-1")
        code = self._read(links.FLOWER, given)
        fresh = code and code.name not in self.used
        if code and fresh and code.expires_at - links.LINK_LASTS >= _second(self.began):
            self.used[code.name] = code.expires_at
            cookie = links.make(
                self.secret or "", links.FLOWER_SESSION, now=now, lasts=SESSION_LASTS
            )
            return self.get_handler_delegate(request, _SignIn, {"cookie": cookie})
        if self._is_known(request):
            return self.get_handler_delegate(request, _SignIn, {"cookie": None})
        why = "this link was used before, or is over; the dashboard's link to Flower is a new one"
        return self._refused(request, HTTPStatus.FORBIDDEN, why)

    def _read(self, purpose: str, code: str) -> links.SignInCode | None:
        if self.secret is None:
            return None
        return links.read(self.secret, purpose, code, now=datetime.now(UTC))

    def _refused(self, request: HTTPServerRequest, status: HTTPStatus, why: str) -> Any:
        return self.get_handler_delegate(request, _Refusing, {"status": status, "why": why})


def _second(at: datetime) -> datetime:
    """Round a time down to whole seconds, the precision of the times in sign-in links."""
    return at.replace(microsecond=0)


class _Refusing(RequestHandler):
    def initialize(self, status: HTTPStatus, why: str) -> None:
        self.status, self.why = status, why

    def check_xsrf_cookie(self) -> None:
        """Skip the check, because this handler changes nothing."""

    async def prepare(self) -> None:
        self.set_status(self.status)
        if self.status == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        await self.finish(self.why)


class _SignIn(RequestHandler):
    def initialize(self, cookie: str | None) -> None:
        self.cookie = cookie

    def get(self) -> None:
        if self.cookie:
            self.set_cookie(
                COOKIE,
                self.cookie,
                max_age=int(SESSION_LASTS.total_seconds()),
                httponly=True,
                samesite="Strict",
                path="/",
            )
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.redirect("./")
