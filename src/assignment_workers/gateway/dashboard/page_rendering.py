"""Rendering of pages for viewers who may see them, and the streams that update the pages.

A page requested as HTML is rendered whole. Then its script requests `text/event-stream`, and gets
each region (part of the page) whenever the region has changed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import wraps
from http import HTTPStatus
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from jinja2 import Environment
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.reports import details
from assignment_workers.assignment.rows import Row
from assignment_workers.client import AsyncClient
from assignment_workers.gateway.auth.callers import WATCHING, Caller, Callers
from assignment_workers.gateway.dashboard import acts, session
from assignment_workers.gateway.dashboard.views import Facts, PageSource, View
from assignment_workers.gateway.events.live import Live
from assignment_workers.gateway.problems import Problem, unavailable
from assignment_workers.gateway.read_cache import FRESH_SECONDS
from assignment_workers.gateway.redaction import redacted
from assignment_workers.health.model import Health

P = ParamSpec("P")
T = TypeVar("T")

TICK_SECONDS = 1.0
"""Seconds between two renderings of the regions (parts) of an open page."""
BEAT_SECONDS = 15.0
"""Seconds without a change after which a stream sends a comment, to keep the connection open."""
CHECKED_SECONDS = 3.0
"""Seconds between two checks that the viewer of an open page still has the right to see it."""
WATCHERS = 200
THREADS = 4
DIGITS = 18
"""The most digits that are accepted in a number in an address or a form."""
HTML = "text/html"
EVENTS = "text/event-stream"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of a page: the limits that the browser sets to the page.

The page may load styles, scripts and images only from the gateway, and images also from `data:`
addresses. Its scripts may connect only to the gateway. Its forms may be sent only to the gateway.
No page may show it in a frame.
"""


class HealthSource(Protocol):
    """An object with the latest health of the system, which can be read without waiting."""

    @property
    def latest(self) -> Health: ...


@dataclass
class Dashboard:
    """The parts of the gateway that the pages use, such as templates and the source of facts."""

    engine: Engine
    client: AsyncClient
    callers: Callers
    live: Live
    source: PageSource
    flower_url: str | None
    secure: bool
    """True if the browser sends the session cookie over HTTPS only. Browsers treat `localhost` as
    HTTPS.
    """
    templates: Environment
    secret: str | None = None
    """The secret that `assignment-workers up` made. It signs sign-in links."""
    health: HealthSource | None = None
    watchers: int = 0
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(THREADS, "dashboard")
    )
    """The threads that read the database for pages, so that slow pages delay no other caller."""

    async def aside(self, what: Callable[..., T], *given: object) -> T:
        """Call `what(*given)` in a thread of the dashboard and return the result."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, what, *given)

    async def stored(self, what: Callable[[Connection], T]) -> T:
        """Call `what` in a database transaction, in a thread, and return the result.

        Raises `Problem` 503 if the database fails.
        """

        def write() -> T:
            with self.engine.begin() as connection:
                return what(connection)

        try:
            return await self.aside(write)
        except (DBAPIError, PoolTimeout) as error:
            raise unavailable("the database cannot answer") from error


def wants_page(request: Request) -> bool:
    """Return True if the request accepts HTML or an event stream.

    A browser sends both kinds of requests. It requests a page as HTML. The script of the page then
    requests the event stream that updates the page.
    """
    accepted = request.headers.get("accept", "")
    return HTML in accepted or EVENTS in accepted


Handler = Callable[Concatenate[Request, P], Awaitable[Response]]


def as_page(handler: Handler[P]) -> Handler[P]:
    """Wrap a route so that a `Problem` is shown as a page, or for a stream as a bare HTTP status.

    A viewer who requests a page (GET) and has not signed in is redirected to the sign-in page.
    """

    @wraps(handler)
    async def handle(request: Request, *args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return await handler(request, *args, **kwargs)
        except Problem as problem:
            return _wrong(request, problem)

    return cast(Handler[P], handle)


def _wrong(request: Request, problem: Problem) -> Response:
    if EVENTS in request.headers.get("accept", ""):
        return Response(status_code=problem.status)
    if problem.status == HTTPStatus.UNAUTHORIZED and request.method == "GET":
        onward = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={quote(onward)}", HTTPStatus.SEE_OTHER)
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is not None and caller.role not in {None, *WATCHING}:
        caller = None
    passes = problem.status == HTTPStatus.SERVICE_UNAVAILABLE and request.method == "GET"
    facts = {
        "title": problem.status.phrase,
        "detail": problem.detail,
        "caller": caller,
        "again": request.url.path if passes else None,
    }
    return html(request, "wrong.html", facts, status=problem.status)


def here_of(request: Request) -> Dashboard:
    """Return the `Dashboard` object of the application that serves the request."""
    found: Dashboard = request.app.state.dashboard
    return found


async def looker_of(request: Request) -> Caller:
    """Return the signed-in viewer of a page.

    Raises `Problem` if the viewer has not signed in or may not see pages.
    """
    caller = await session.looker(here_of(request).callers, request)
    caller.must_be(WATCHING)
    return caller


def html(
    request: Request, template: str, facts: dict[str, Any], *, status: int = HTTPStatus.OK
) -> HTMLResponse:
    """Render a page from a template, `facts`, and the parts that every page has."""
    here = here_of(request)
    shown: dict[str, Any] = {
        "health": _health(here, facts.get("caller")),
        "flower_url": here.flower_url,
        "path": request.url.path,
        "with_tokens": here.callers.required,
        "proof": session.proof(request),
    }
    text = here.templates.get_template(template).render(shown | facts)
    return HTMLResponse(text, status, headers={"Content-Security-Policy": POLICY})


async def show(request: Request, view: View) -> Response:
    """Return the page of `view`, or the stream that updates it, if the request asks for a stream.

    Raises `Problem` if the viewer may not see pages, if the object that the page shows does not
    exist, if too many pages are open, or if the database fails.
    """
    caller = await looker_of(request)
    here = here_of(request)
    if EVENTS in request.headers.get("accept", ""):
        if here.watchers >= WATCHERS:
            raise unavailable("too many pages are open here already")
        return StreamingResponse(
            _regions(request, caller, view),
            media_type=EVENTS,
            headers={"X-Accel-Buffering": "no"},
        )
    facts = await here.aside(view.read, here.source)
    if facts is None:
        raise _nothing(view)
    said = request.query_params.get("said", "")
    done = await here.aside(_done, here, int(said)) if is_number(said) else None
    names = view.actions(facts) if callable(view.actions) else view.actions
    offered = {name: acts.ACTS[name] for name in names} if caller.sees_text else {}
    of_page = {"title": view.title, "view": view, "caller": caller, "offered": offered}
    return html(
        request, view.template, _shown(here, view, facts | {"done": done}, caller) | of_page
    )


def _shown(here: Dashboard, view: View, facts: Facts, caller: Caller) -> Facts:
    """Return the facts for the templates of a page, redacted for this caller."""
    seen = redacted(facts, sees_text=caller.sees_text)
    return (
        seen | dict(view.place) | {"health": _health(here, caller), "sees_text": caller.sees_text}
    )


def _health(here: Dashboard, caller: Caller | None) -> Health | None:
    """Return the latest health of the system, redacted for the viewer `caller`.

    All free text is hidden if the viewer may not read free text, or if `caller` is None because the
    viewer is not known. Returns None if the dashboard has no source of health.
    """
    if here.health is None:
        return None
    return redacted(here.health.latest, sees_text=caller is not None and caller.sees_text)


def _done(here: Dashboard, number: int) -> Row | None:
    name = ("action", number)
    return here.source.read(name, lambda c: details.action(c, number), seconds=0.0)


def _nothing(view: View) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, f"{view.title}: nothing is known of it")


async def _regions(request: Request, caller: Caller, view: View) -> AsyncIterator[str]:
    """Yield a server-sent event with the HTML of all regions (parts of the page) that changed.

    If the facts cannot be read, the region `trouble` has the reason.
    """
    here = here_of(request)
    shown: dict[str, str] = {}
    here.watchers += 1
    try:
        yield "retry: 1000\n\n"
        told = checked = time.monotonic()
        while not here.live.closed:
            began = time.monotonic()
            if began - checked >= CHECKED_SECONDS:
                checked = began
                if not await _may_go_on(request, caller):
                    return
            said = await here.aside(_now, here, view, caller)
            changed = {name: text for name, text in said.items() if shown.get(name) != text}
            shown |= changed
            if changed:
                yield f"event: regions\ndata: {json.dumps(changed)}\n\n"
                told = began
            elif began - told >= BEAT_SECONDS:
                yield ": alive\n\n"
                told = began
            await asyncio.sleep(max(0.0, TICK_SECONDS - (time.monotonic() - began)))
    finally:
        here.watchers -= 1


async def _may_go_on(request: Request, caller: Caller) -> bool:
    try:
        return await session.looker(here_of(request).callers, request) == caller
    except Problem as problem:
        return problem.status != HTTPStatus.UNAUTHORIZED


def _now(here: Dashboard, view: View, caller: Caller) -> dict[str, str]:
    """Return the current HTML of each region (a part of the page `view`), by name.

    Viewers of the same page with the same right to read free text share one rendering. `caller`:
    the viewer.
    """
    name = ("page", view.title, view.key, caller.sees_text)
    return here.source.read_cache.once(
        name, lambda: _rendered(here, view, caller), seconds=FRESH_SECONDS / 2
    )


def _rendered(here: Dashboard, view: View, caller: Caller) -> dict[str, str]:
    """Return the HTML of each region (a part of the page `view`), by the region's name.

    `caller`: the viewer, for whom the facts are redacted. If the facts cannot be read, only two
    regions are returned: `banner`, and `trouble` with the reason. If the object that the page is
    about does not exist, only `trouble` is returned, and says so. Otherwise `trouble` is empty.
    """
    try:
        facts = view.read(here.source)
    except Problem as problem:
        # What is wrong is known without the database.
        seen = _shown(here, view, {}, caller)
        banner = here.templates.get_template("parts/banner.html").render(seen)
        return {"trouble": problem.detail, "banner": banner}
    if facts is None:
        return {"trouble": _nothing(view).detail}
    seen = _shown(here, view, facts, caller)
    regions = {
        name: here.templates.get_template(f"parts/{name}.html").render(seen)
        for name in ("banner", *view.regions)
    }
    return regions | {"trouble": ""}


def is_number(said: str) -> bool:
    """Return True if the text `said` consists of 1 to 18 digits (`DIGITS`)."""
    return said.isascii() and said.isdigit() and len(said) <= DIGITS
