"""Flower behind our own door: a login for everything, and no page of another origin.

Flower asks for its login on each page by itself, but not at `/metrics`, and it looks at no Host. A
one-time link signs a browser in where `up` runs it, so nobody has to type the password there.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import flower.command
from flower.app import Flower
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from assignment_workers import links
from assignment_workers.origins import Origins
from assignment_workers.settings import Settings

COOKIE = "assignment_workers_flower"
SESSION_LASTS = timedelta(hours=12)
OPEN = "/healthcheck"
"""What needs no login: it says OK, and nothing else."""


def guard_flower(settings: Settings) -> None:
    """Have the `flower` command of this process start a guarded one."""

    class Guarded(_Guarded):
        origins = Origins.of(settings.allowed_hosts, listens=settings.flower_host)
        logins = tuple((settings.flower_basic_auth or "").split(","))
        secret = settings.stack_token
        began = datetime.now(UTC)

    flower.command.Flower = Guarded


class _Guarded(Flower):  # type: ignore[misc]
    origins: Origins
    logins: tuple[str, ...]
    secret: str | None
    began: datetime
    """A link from before may have been used with the process that was here then."""
    used: dict[str, datetime]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.used = {}

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
        """The handler of a request that may come in; else one that refuses it."""
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
        # Flower looks for the login itself.
        login = b64encode(self.logins[0].encode())
        request.headers["Authorization"] = f"Basic {login.decode()}"
        return True

    def _signed_in(self, request: HTTPServerRequest) -> Any:
        """Let the browser in, once for each link; one that is in already goes on."""
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
    """Codes are made in whole seconds."""
    return at.replace(microsecond=0)


class _Refusing(RequestHandler):
    def initialize(self, status: HTTPStatus, why: str) -> None:
        self.status, self.why = status, why

    def check_xsrf_cookie(self) -> None:
        """Nothing is done here."""

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
