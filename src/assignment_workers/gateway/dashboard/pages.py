"""The routes of the dashboard: its pages and actions, signing in and out."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from assignment_workers import links
from assignment_workers.assignment import user_ids
from assignment_workers.assignment.calling import numbers_of
from assignment_workers.assignment.reports import details
from assignment_workers.assignment.reports.details import AgentList
from assignment_workers.errors import UsageError
from assignment_workers.gateway.auth import sessions
from assignment_workers.gateway.auth.callers import OPERATING, WATCHING, Caller
from assignment_workers.gateway.dashboard import acts, session, views
from assignment_workers.gateway.dashboard.page_rendering import (
    DIGITS,
    Dashboard,
    as_page,
    here_of,
    html,
    is_number,
    looker_of,
    show,
)
from assignment_workers.gateway.dashboard.render import HERE
from assignment_workers.gateway.problems import Problem
from assignment_workers.policy.process_dialer import loaded

ASSETS = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
}

PAGES = 100_000
"""The highest page number that is accepted for a list."""
TEAM_AT_MOST = 200
SEARCHED_AT_MOST = 200

ROUTES = APIRouter(include_in_schema=False)


@ROUTES.get("/queues/{name}")
@as_page
async def queue(request: Request, name: str) -> Response:
    """Show a dialer queue."""
    return await show(request, views.queue(name, _period(request, "hour")))


@ROUTES.get("/wall")
@as_page
async def wall(request: Request) -> Response:
    """Show the page for a big screen in the call centre."""
    return await show(request, views.wall())


@ROUTES.get("/engine")
@as_page
async def engine(request: Request) -> Response:
    """Show the page "Engine room": components, processes, Celery queues, jobs and findings.

    The findings are those of the doctor: the results of its checks of the guarantees that
    docs/how-it-works.md lists.
    """
    return await show(request, views.engine())


@ROUTES.get("/holds")
@as_page
async def holds(request: Request) -> Response:
    """Show the active assignments: the page "In hand"."""
    return await show(request, views.holds())


@ROUTES.get("/queues/{name}/rules")
@as_page
async def rules(request: Request, name: str) -> Response:
    """Show how many users each rule of a dialer queue excludes.

    In a dialer queue with more than 200,000 users, only 200,000 users are counted: those with the
    lowest scores.
    """
    return await show(request, views.rules(name))


@ROUTES.get("/users/{name:path}")
@as_page
async def user(request: Request, name: str) -> Response:
    """Show a user."""
    try:
        found = user_ids.read(loaded(), name)
    except UsageError as error:
        raise Problem(HTTPStatus.NOT_FOUND, f"no user {name!r:.30}: {error}") from None
    return await show(request, views.user(found))


@ROUTES.get("/agents")
@as_page
async def agents(request: Request) -> Response:
    """Show a page of the list of agents."""
    said = request.query_params
    listed = AgentList(
        _choice(said.get("state", "all"), details.AGENT_FILTERS, "filter"),
        said.get("team", "").replace("\x00", "")[:TEAM_AT_MOST] or None,
        _choice(said.get("sort", "hold"), details.AGENT_ORDERS, "order"),
        _number(said.get("page", "1"), "page", most=PAGES),
    )
    return await show(request, views.agents(listed))


@ROUTES.get("/agents/{number}")
@as_page
async def agent(request: Request, number: str) -> Response:
    """Show an agent."""
    return await show(request, views.agent(_number(number, "agent", most=2**31 - 1)))


@ROUTES.get("/assignments/{name}")
@as_page
async def assignment(request: Request, name: str) -> Response:
    """Show an assignment."""
    try:
        found = UUID(name)
    except ValueError:
        raise Problem(HTTPStatus.NOT_FOUND, "no assignment has such an id") from None
    return await show(request, views.assignment(found))


@ROUTES.get("/jobs")
@as_page
async def jobs(request: Request) -> Response:
    """Show all jobs: background tasks with recorded runs, such as rebuilds of dialer queues."""
    return await show(request, views.jobs())


@ROUTES.get("/jobs/{name}")
@as_page
async def job(request: Request, name: str) -> Response:
    """Show a job, such as the rebuild of dialer queues, with its latest runs."""
    return await show(request, views.job(name.replace("\x00", "")))


@ROUTES.get("/races")
@as_page
async def races(request: Request) -> Response:
    """Show the recorded races: conflicts of two writers that were resolved."""
    return await show(request, views.races())


@ROUTES.get("/events/{number}")
@as_page
async def event(request: Request, number: str) -> Response:
    """Show a recorded event, such as an assignment or a race (a conflict of two writers)."""
    return await show(request, views.event(_number(number, "event")))


@ROUTES.get("/quarantine")
@as_page
async def quarantine(request: Request) -> Response:
    """Show the users in quarantine, who are offered to nobody until an operator releases them."""
    return await show(request, views.quarantine())


@ROUTES.get("/closed")
@as_page
async def closed(request: Request) -> Response:
    """Show the closed users: those whom an agent has excluded from a dialer queue."""
    return await show(request, views.closed())


@ROUTES.get("/do-not-contact")
@as_page
async def do_not_contact(request: Request) -> Response:
    """Show the users and phone numbers that are not to be contacted."""
    return await show(request, views.do_not_contact())


@ROUTES.get("/settings")
@as_page
async def settings(request: Request) -> Response:
    """Show the operational settings: those that operators change while the system runs."""
    return await show(request, views.settings())


@ROUTES.get("/dead-letters")
@as_page
async def dead_letters(request: Request) -> Response:
    """Show the dead letters."""
    return await show(request, views.dead_letters())


@ROUTES.get("/dead-letters/{number}")
@as_page
async def dead_letter(request: Request, number: str) -> Response:
    """Show a dead letter."""
    return await show(request, views.dead_letter(_number(number, "dead letter")))


@ROUTES.get("/report")
@as_page
async def report(request: Request) -> Response:
    """Show the service levels of the last hour, day or week."""
    period = _period(request, "day")
    length, _, _ = views.PERIODS[period]
    began = datetime.now(UTC) - length
    return await show(request, views.service(began, f"last {period}"))


@ROUTES.post("/find")
@as_page
async def find(request: Request) -> Response:
    """Search for a user, an agent or an assignment; redirect to its page.

    If several are found, show a list of them; if none, show a page that says so (status 404). The
    form is posted, because a phone number must not be in the address of a page. Only operators
    search by phone number.
    """
    caller = await looker_of(request)
    here = here_of(request)
    fields = await session.fields(request)
    said = fields.get("said", "").replace("\x00", "")[:SEARCHED_AT_MOST]
    numbers = numbers_of(here.source.settings).reader.numbers(said) if caller.sees_text else []
    rows = await here.stored(lambda c: details.find(c, loaded(), said, numbers))
    # A number means a user; an agent where no user has it.
    users = [row for row in rows if row["kind"] == "user"]
    chosen = users if users and is_number(said) else rows
    found = [row | {"path": f"/{row['kind']}s/{quote(row['id'], safe='')}"} for row in chosen]
    if len(found) == 1:
        return RedirectResponse(found[0]["path"], HTTPStatus.SEE_OTHER)
    facts = {"title": "Found", "caller": caller, "found": found}
    status = HTTPStatus.OK if found else HTTPStatus.NOT_FOUND
    return html(request, "find.html", facts, status=status)


def _period(request: Request, usual: str) -> str:
    return _choice(request.query_params.get("period", usual), views.PERIODS, "period")


def _choice(said: str, choices: Collection[str], what: str) -> str:
    if said not in choices:
        raise Problem(
            HTTPStatus.NOT_FOUND, f"no {what} {said!r:.20}; there are {', '.join(choices)}"
        )
    return said


def _number(said: str, what: str, *, most: int = 10**DIGITS) -> int:
    found = int(said) if is_number(said) else 0
    if not 1 <= found <= most:
        raise Problem(HTTPStatus.NOT_FOUND, f"no {what} {said!r:.30}: a number is needed")
    return found


@ROUTES.post("/act/{name}")
@as_page
async def act(request: Request, name: str) -> Response:
    """Carry out the operator's action `name`, recorded with its operator and reason."""
    caller = await looker_of(request)
    caller.must_be(OPERATING)
    said = await session.fields(request)
    here = here_of(request)
    asked = acts.Asked(acts.subject_of(said), caller.name, said.get("why", ""), said)
    number = await acts.carry_out(here.client, here.engine, name, asked)
    here.source.read_cache.forget()
    where = acts.ACTS[name].where(quote(asked.subject, safe=""))
    return RedirectResponse(f"{where}?said={number}#said", HTTPStatus.SEE_OTHER)


@ROUTES.get("/login")
@as_page
async def login(request: Request) -> Response:
    """Show the sign-in page."""
    return _sign_in_page(request, request.query_params.get("next", "/"))


@ROUTES.post("/login")
@as_page
async def sign_in(request: Request) -> Response:
    """Begin a session if the token's role may see pages; otherwise show the sign-in page again."""
    here = here_of(request)
    said = await session.fields(request, proven=False)
    token, onward = said.get("token", ""), said.get("next", "/")
    try:
        caller = await here.callers.bearer(token)
        caller.must_be(WATCHING)
        cookie = await _begin(here, caller, _address(request))
    except Problem as problem:
        return _sign_in_page(request, onward, wrong=problem)
    local = onward.startswith("/") and not onward.startswith(("//", "/\\"))
    response = RedirectResponse(onward if local else "/", HTTPStatus.SEE_OTHER)
    if cookie:
        session.set_cookie(response, cookie, secure=here.secure)
    return response


@ROUTES.get(links.PATH)
@as_page
async def sign_in_by_link(request: Request) -> Response:
    """Begin a session by a sign-in link, which works once.

    The command `assignment-workers up` or `assignment-workers env` printed the link.
    """
    here = here_of(request)
    response = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    if not here.callers.required:
        return response
    code = request.query_params.get("code", "")
    read = here.secret and links.read(here.secret, links.DASHBOARD, code, now=datetime.now(UTC))
    if read:
        stack = here.callers.stack_digest
        address = _address(request)
        cookie = await here.stored(
            lambda c: sessions.begin(c, stack=stack, link=read.name, address=address)
        )
        if cookie:
            session.set_cookie(response, cookie, secure=here.secure)
            return response
    try:
        await looker_of(request)
    except Problem:
        return _sign_in_page(request, "/", wrong=_USED)
    return response


_USED = Problem(
    HTTPStatus.FORBIDDEN,
    "This link was used before, or is over. `assignment-workers env` prints a new one as "
    "DASHBOARD_URL; a token signs in too.",
)


def _address(request: Request) -> str | None:
    return request.client.host if request.client else None


async def _begin(here: Dashboard, caller: Caller, address: str | None) -> str | None:
    """Begin a session of `caller` and return its cookie; None if no API tokens are required.

    `address`: the network address of the browser, for the access log.
    """
    if caller.token is None:
        return None
    is_stack = caller.role is None
    return await here.stored(
        lambda connection: sessions.begin(
            connection,
            token=None if is_stack else caller.token,
            stack=here.callers.stack_digest if is_stack else None,
            address=address,
        )
    )


@ROUTES.get("/flower")
@as_page
async def flower(request: Request) -> Response:
    """Redirect to Flower.

    If `assignment-workers up` runs Flower, the redirect also signs the operator in to Flower.
    """
    caller = await looker_of(request)
    here = here_of(request)
    if here.flower_url is None:
        raise Problem(HTTPStatus.NOT_FOUND, "this gateway does not know where Flower is")
    where = here.flower_url
    if here.secret:
        caller.must_be(OPERATING)
        code = links.make(here.secret, links.FLOWER, now=datetime.now(UTC))
        where = f"{where.rstrip('/')}{links.PATH}?code={code}"
    return RedirectResponse(where, HTTPStatus.SEE_OTHER)


def _sign_in_page(request: Request, onward: str, *, wrong: Problem | None = None) -> Response:
    facts = {
        "title": "Sign in",
        "caller": None,
        "next": onward,
        "wrong": wrong.detail if wrong else "",
    }
    return html(request, "login.html", facts, status=wrong.status if wrong else HTTPStatus.OK)


@ROUTES.post("/logout")
@as_page
async def sign_out(request: Request) -> Response:
    """End the session, and delete its cookie in the browser.

    A gateway that can reach the database accepts the cookie for at most 3 more seconds. A gateway
    that cannot reach the database may accept the cookie for up to an hour after these 3 seconds.
    """
    await session.fields(request)
    here, cookie = here_of(request), session.cookie_of(request)
    if cookie:
        digest, address = sessions.digest(cookie), _address(request)
        await here.stored(lambda connection: sessions.end(connection, digest, address=address))
        here.callers.forget(cookie)
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    session.forget(response, secure=here.secure)
    return response


@ROUTES.get("/assets/{name}")
async def asset(name: str) -> Response:
    """Serve a static file: the style or the script of the pages. No sign-in is needed."""
    if name not in ASSETS:
        return Response(status_code=HTTPStatus.NOT_FOUND)
    return FileResponse(
        HERE / "assets" / name,
        media_type=ASSETS[name],
        headers={"Cache-Control": "public, max-age=300"},
    )


@as_page
async def front(request: Request) -> Response:
    """Show the overview, at `/`."""
    return await show(request, views.overview(_period(request, "hour")))
