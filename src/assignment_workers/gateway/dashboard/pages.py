"""The dashboard's routes: who may look, what is shown, and the stream that keeps it up to date.

A page asked for as HTML is rendered whole. Asked for as `text/event-stream`, by the page itself, it
is its regions, each when it has changed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from http import HTTPStatus
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, StreamingResponse
from jinja2 import Environment
from sqlalchemy import Engine

from assignment_workers.assignment import details
from assignment_workers.assignment.rows import Row
from assignment_workers.client import AsyncClient
from assignment_workers.gateway.callers import OPERATING, WATCHING, Caller, Callers
from assignment_workers.gateway.dashboard import acts, session, views
from assignment_workers.gateway.dashboard.render import HERE
from assignment_workers.gateway.dashboard.views import Source, View
from assignment_workers.gateway.latest import FRESH_SECONDS
from assignment_workers.gateway.live import Live
from assignment_workers.gateway.problems import Problem, unavailable
from assignment_workers.policy.queues import POLICIES

P = ParamSpec("P")
T = TypeVar("T")

TICK_SECONDS = 1.0
"""How often what is shown is looked at anew."""
BEAT_SECONDS = 15.0
"""How often a stream on which nothing changes gives a sign of life."""
CHECKED_SECONDS = 3.0
"""How often it is asked whether whoever watches still may."""
WATCHERS = 200
THREADS = 4
DIGITS = 18
"""The longest number that is read."""
HTML = "text/html"
EVENTS = "text/event-stream"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a page may load: its own style and script."""
PERIODS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
ASSETS = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "uPlot.css": "text/css",
    "uPlot.js": "text/javascript",
    "uPlot.LICENSE": "text/plain",
}

ROUTES = APIRouter(include_in_schema=False)


@dataclass
class Dashboard:
    """What the pages work with."""

    engine: Engine
    client: AsyncClient
    callers: Callers
    live: Live
    source: Source
    flower_url: str | None
    secure: bool
    """Whether the cookie is for HTTPS alone; to a browser its own device is as good."""
    templates: Environment
    watchers: int = 0
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(THREADS, "dashboard")
    )
    """Their own: what waits for the database here holds no caller up."""

    async def aside(self, what: Callable[..., T], *given: object) -> T:
        """What `what` returns, from another thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, what, *given)


def wants_page(request: Request) -> bool:
    """Whether a browser asks, and no program."""
    accepted = request.headers.get("accept", "")
    return HTML in accepted or EVENTS in accepted


Handler = Callable[Concatenate[Request, P], Awaitable[Response]]


def _page(handler: Handler[P]) -> Handler[P]:
    """What goes wrong is a page too; who has not signed in is asked to."""

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
    facts = {"title": problem.status.phrase, "detail": problem.detail, "caller": None}
    return _html(request, "wrong.html", facts, status=problem.status)


def _here(request: Request) -> Dashboard:
    found: Dashboard = request.app.state.dashboard
    return found


async def _looker(request: Request) -> Caller:
    caller = await session.looker(_here(request).callers, request)
    caller.must_be(WATCHING)
    return caller


def _may_act(caller: Caller) -> bool:
    return caller.role is None or caller.role in OPERATING


def _html(
    request: Request, template: str, facts: dict[str, Any], *, status: int = HTTPStatus.OK
) -> HTMLResponse:
    here = _here(request)
    shown = {
        "policies": list(POLICIES),
        "flower_url": here.flower_url,
        "path": request.url.path,
        "with_tokens": here.callers.required,
        "proof": session.proof(request),
    }
    text = here.templates.get_template(template).render(shown | facts)
    return HTMLResponse(text, status, headers={"Content-Security-Policy": POLICY})


async def show(request: Request, view: View) -> Response:
    """A page, or the stream that keeps it up to date. Raises `Problem`."""
    caller = await _looker(request)
    here = _here(request)
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
    done = await here.aside(_done, here, int(said)) if _is_number(said) else None
    names = view.actions(facts) if callable(view.actions) else view.actions
    offered = {name: acts.ACTS[name] for name in names} if _may_act(caller) else {}
    of_page = {
        "title": view.title,
        "view": view,
        "caller": caller,
        "may_act": _may_act(caller),
        "offered": offered,
        "done": done,
    }
    return _html(request, "page.html", dict(view.place) | facts | of_page)


def _done(here: Dashboard, number: int) -> Row | None:
    name = ("action", number)
    return here.source.read(name, lambda c: details.action(c, number), seconds=0.0)


def _nothing(view: View) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, f"{view.title}: nothing is known of it")


async def _regions(request: Request, caller: Caller, view: View) -> AsyncIterator[str]:
    """Each region when it has changed; a word when what is shown cannot be known any more."""
    here = _here(request)
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
        return await session.looker(_here(request).callers, request) == caller
    except Problem as problem:
        return problem.status != HTTPStatus.UNAUTHORIZED


def _now(here: Dashboard, view: View, caller: Caller) -> dict[str, str]:
    """The regions as they are now, made once for all who look at the same page."""
    name = ("page", view.title, _may_act(caller))
    return here.source.latest.once(
        name, lambda: _rendered(here, view, caller), seconds=FRESH_SECONDS / 2
    )


def _rendered(here: Dashboard, view: View, caller: Caller) -> dict[str, str]:
    """The regions, and under `trouble` why they are not known."""
    try:
        facts = view.read(here.source)
    except Problem as problem:
        return {"trouble": problem.detail}
    if facts is None:
        return {"trouble": _nothing(view).detail}
    given = dict(view.place) | facts | {"may_act": _may_act(caller)}
    regions = {
        name: here.templates.get_template(f"parts/{name}.html").render(given)
        for name in view.regions
    }
    if view.charts:
        regions["charts"] = json.dumps(facts["minutes"], default=float)
    return regions | {"trouble": ""}


@ROUTES.get("/queues/{name}")
@_page
async def queue(request: Request, name: str) -> Response:
    """A dialer queue."""
    return await show(request, views.queue(name))


@ROUTES.get("/queues/{name}/rules")
@_page
async def rules(request: Request, name: str) -> Response:
    """Which rules hold a dialer queue's users back, counted and not estimated."""
    return await show(request, views.rules(name))


@ROUTES.get("/users/{number}")
@_page
async def user(request: Request, number: str) -> Response:
    """A user."""
    return await show(request, views.user(_number(number, "user")))


@ROUTES.get("/agents")
@_page
async def agents(request: Request) -> Response:
    """All agents."""
    return await show(request, views.agents())


@ROUTES.get("/agents/{number}")
@_page
async def agent(request: Request, number: str) -> Response:
    """An agent."""
    return await show(request, views.agent(_number(number, "agent", most=2**31 - 1)))


@ROUTES.get("/assignments/{name}")
@_page
async def assignment(request: Request, name: str) -> Response:
    """An assignment."""
    try:
        found = UUID(name)
    except ValueError:
        raise Problem(HTTPStatus.NOT_FOUND, "no assignment has such an id") from None
    return await show(request, views.assignment(found))


@ROUTES.get("/jobs")
@_page
async def jobs(request: Request) -> Response:
    """All jobs."""
    return await show(request, views.jobs())


@ROUTES.get("/jobs/{name}")
@_page
async def job(request: Request, name: str) -> Response:
    """A job."""
    return await show(request, views.job(name.replace("\x00", "")))


@ROUTES.get("/races")
@_page
async def races(request: Request) -> Response:
    """The races met."""
    return await show(request, views.races())


@ROUTES.get("/events/{number}")
@_page
async def event(request: Request, number: str) -> Response:
    """An event, such as a race."""
    return await show(request, views.event(_number(number, "event")))


@ROUTES.get("/quarantine")
@_page
async def quarantine(request: Request) -> Response:
    """Who is set aside."""
    return await show(request, views.quarantine())


@ROUTES.get("/do-not-contact")
@_page
async def do_not_contact(request: Request) -> Response:
    """Who is not to be contacted."""
    return await show(request, views.do_not_contact())


@ROUTES.get("/dead-letters")
@_page
async def dead_letters(request: Request) -> Response:
    """What could not be handled."""
    return await show(request, views.dead_letters())


@ROUTES.get("/dead-letters/{number}")
@_page
async def dead_letter(request: Request, number: str) -> Response:
    """A message that could not be handled."""
    return await show(request, views.dead_letter(_number(number, "dead letter")))


@ROUTES.get("/report")
@_page
async def report(request: Request) -> Response:
    """Service levels."""
    period = request.query_params.get("period", "day")
    if period not in PERIODS:
        raise Problem(
            HTTPStatus.NOT_FOUND, f"no period {period!r:.20}; there are {', '.join(PERIODS)}"
        )
    began = datetime.now(UTC) - PERIODS[period]
    return await show(request, views.service(began, f"last {period}"))


@ROUTES.get("/find")
@_page
async def find(request: Request) -> Response:
    """Go to a user or an agent by number."""
    await _looker(request)
    said = request.query_params
    what = "agent" if said.get("what") == "agent" else "user"
    number = _number(said.get("number", "").strip(), what)
    return RedirectResponse(f"/{what}s/{number}", HTTPStatus.SEE_OTHER)


def _is_number(said: str) -> bool:
    return said.isascii() and said.isdigit() and len(said) <= DIGITS


def _number(said: str, what: str, *, most: int = 10**DIGITS) -> int:
    found = int(said) if _is_number(said) else 0
    if not 1 <= found <= most:
        raise Problem(HTTPStatus.NOT_FOUND, f"no {what} {said!r:.30}: a number is needed")
    return found


@ROUTES.post("/act/{name}")
@_page
async def act(request: Request, name: str) -> Response:
    """Do something, with who and why."""
    caller = await _looker(request)
    caller.must_be(OPERATING)
    said = await session.fields(request)
    here = _here(request)
    asked = acts.Asked(acts.subject_of(said), caller.name, said.get("why", ""), said)
    number = await acts.carry_out(here.client, here.engine, name, asked)
    here.source.latest.forget()
    where = acts.ACTS[name].where(quote(asked.subject, safe=""))
    return RedirectResponse(f"{where}?said={number}#said", HTTPStatus.SEE_OTHER)


@ROUTES.get("/login")
@_page
async def login(request: Request) -> Response:
    """Ask for a token."""
    return _sign_in_page(request, request.query_params.get("next", "/"))


@ROUTES.post("/login")
@_page
async def sign_in(request: Request) -> Response:
    """Keep the token in a cookie, if it is one that may look."""
    here = _here(request)
    said = await session.fields(request, proven=False)
    token, onward = said.get("token", ""), said.get("next", "/")
    try:
        (await here.callers.bearer(token)).must_be(WATCHING)
    except Problem as problem:
        return _sign_in_page(request, onward, wrong=problem)
    local = onward.startswith("/") and not onward.startswith(("//", "/\\"))
    response = RedirectResponse(onward if local else "/", HTTPStatus.SEE_OTHER)
    session.keep(response, token, secure=here.secure)
    return response


def _sign_in_page(request: Request, onward: str, *, wrong: Problem | None = None) -> Response:
    facts = {
        "title": "Sign in",
        "caller": None,
        "next": onward,
        "wrong": wrong.detail if wrong else "",
    }
    return _html(request, "login.html", facts, status=wrong.status if wrong else HTTPStatus.OK)


@ROUTES.post("/logout")
@_page
async def sign_out(request: Request) -> Response:
    """Forget the token."""
    await session.fields(request)
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    session.forget(response, secure=_here(request).secure)
    return response


@ROUTES.get("/assets/{name}")
async def asset(name: str) -> Response:
    """Style, script, the charting library and its licence: nothing in them is anybody's."""
    if name not in ASSETS:
        return Response(status_code=HTTPStatus.NOT_FOUND)
    return FileResponse(
        HERE / "assets" / name,
        media_type=ASSETS[name],
        headers={"Cache-Control": "public, max-age=300"},
    )


@_page
async def front(request: Request) -> Response:
    """The overview, at `/`."""
    return await show(request, views.overview())
