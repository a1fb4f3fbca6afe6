"""Who looks at the dashboard: a session whose cookie no script can read.

Only the dashboard's own pages take the cookie; `/v1` takes none, so no other site can ride on it. A
form carries a word made from the cookie's secret, and browsers say where a form was sent from.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http import HTTPStatus
from urllib.parse import parse_qs

from fastapi import Request, Response

from assignment_workers.assignment.answers import Code
from assignment_workers.gateway.auth import sessions
from assignment_workers.gateway.auth.callers import Caller, Callers
from assignment_workers.gateway.problems import refused

COOKIE = "assignment_workers"
FORM = "application/x-www-form-urlencoded"
_OWN = secrets.token_bytes(32)
"""Where tokens are off there is no cookie, and one gateway: this process is the secret."""


async def looker(callers: Callers, request: Request) -> Caller:
    """Who looks. Raises `Problem` 401 without a session in force."""
    caller = await callers.session(cookie_of(request))
    request.state.caller = caller
    return caller


def cookie_of(request: Request) -> str:
    """The cookie that the browser shows; empty: none."""
    return request.cookies.get(COOKIE, "")


def set_cookie(response: Response, cookie: str, *, secure: bool) -> None:
    """Let the browser show this cookie from now on."""
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=int(sessions.LASTS.total_seconds()),
        httponly=True,
        secure=secure,
        samesite="strict",
        path="/",
    )


def forget(response: Response, *, secure: bool) -> None:
    """Take the cookie from the browser."""
    response.delete_cookie(COOKIE, path="/", httponly=True, secure=secure, samesite="strict")


def proof(request: Request) -> str:
    """What every form of this session carries."""
    secret = cookie_of(request).encode("utf-8", "surrogatepass") or _OWN
    return hmac.new(secret, b"a form of the dashboard", hashlib.sha256).hexdigest()


async def fields(request: Request, *, proven: bool = True) -> dict[str, str]:
    """What a form says. Raises `Problem` 403 for one that was not sent from our pages."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    body = (await request.body()).decode("utf-8", "replace")
    is_form = request.headers.get("content-type", "").partition(";")[0].strip() == FORM
    found = {name: each[-1].strip() for name, each in parse_qs(body).items()} if is_form else {}
    shown = found.pop("proof", "")
    if site not in {"same-origin", "none"} or (
        proven and not hmac.compare_digest(shown.encode(), proof(request).encode())
    ):
        raise refused(
            HTTPStatus.FORBIDDEN,
            Code.FORBIDDEN,
            "this form was not sent from a page of the dashboard, or its session is over",
        )
    return found
