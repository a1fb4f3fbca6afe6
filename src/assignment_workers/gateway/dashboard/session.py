"""The dashboard session of a viewer, identified by a cookie that no script can read.

Only the pages of the dashboard accept the cookie. The paths under `/v1`, which are the interface
for programs, do not accept it. Otherwise another site could make a viewer's browser call such a
path with the cookie. A form contains a proof made from the cookie, and the header `Sec-Fetch-Site`
tells whether another site sent the form.
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
"""A random secret, from which the proof in a form is made if the request has no session cookie.

A proof (CSRF token) shows that a form was sent from our page. If the request has a session cookie,
the proof is made from the cookie instead. A viewer has no session cookie if the gateway requires no
API tokens, or before signing in.
"""


async def looker(callers: Callers, request: Request) -> Caller:
    """Return the signed-in viewer of a page.

    Raises `Problem` 401 without a valid session, 429 for too many calls, and 503 if the session
    cannot be looked up because the database is unavailable.
    """
    caller = await callers.session(cookie_of(request))
    request.state.caller = caller
    return caller


def cookie_of(request: Request) -> str:
    """Return the session cookie of the request; an empty text if there is none."""
    return request.cookies.get(COOKIE, "")


def set_cookie(response: Response, cookie: str, *, secure: bool) -> None:
    """Set the session cookie in the browser. `secure`: True to send it over HTTPS only."""
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
    """Delete the session cookie in the browser."""
    response.delete_cookie(COOKIE, path="/", httponly=True, secure=secure, samesite="strict")


def proof(request: Request) -> str:
    """Return the proof (CSRF token), a text that each form of this session contains.

    The proof shows that the form was sent from a page of the dashboard, and not by another site.
    """
    secret = cookie_of(request).encode("utf-8", "surrogatepass") or _OWN
    return hmac.new(secret, b"a form of the dashboard", hashlib.sha256).hexdigest()


async def fields(request: Request, *, proven: bool = True) -> dict[str, str]:
    """Return the fields of a submitted form. Raises `Problem` 403 if another site sent the form.

    `proven` True: the form must contain the session's `proof` (a CSRF token). It is False for the
    sign-in form, which is sent before a session exists.
    """
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
