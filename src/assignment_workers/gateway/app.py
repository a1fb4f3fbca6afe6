"""The application: every route, who may call it, and what it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from importlib.metadata import version
from random import Random
from typing import Annotated, Any
from uuid import UUID

from fastapi import (
    APIRouter,
    Body,
    Depends,
    FastAPI,
    Header,
    Path,
    Query,
    Request,
    Response,
    params,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis import Redis
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.contextvars import bind_contextvars

from assignment_workers import traces
from assignment_workers.assignment import agents
from assignment_workers.assignment.actions import Action
from assignment_workers.assignment.agents import AgentShown
from assignment_workers.assignment.answers import Code, Done, Finished, Held, Noted, Stated
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.explain import Explanation, Funnel, instant
from assignment_workers.assignment.explain import explain as read_explanation
from assignment_workers.assignment.explain import funnel as read_funnel
from assignment_workers.assignment.holds import ACTIVE, HELD_COLUMNS, held
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.report import Report
from assignment_workers.assignment.report import report as read_report
from assignment_workers.assignment.status import (
    QueueStatus,
    crm_status,
    queue_statuses,
    sequencer_statuses,
)
from assignment_workers.client import AsyncClient, Unavailable, commands
from assignment_workers.client.commands import Command
from assignment_workers.errors import CrmUnavailable
from assignment_workers.gateway.abandoned import Abandoned
from assignment_workers.gateway.acting import kept, told_by
from assignment_workers.gateway.asking import Asking, response
from assignment_workers.gateway.bodies import (
    FINISHED_EXAMPLES,
    NOTED_EXAMPLES,
    REQUEST_EXAMPLES,
    STATED_EXAMPLES,
    STREAM_EXAMPLE,
    ActBody,
    CloseBody,
    CompleteBody,
    DeferBody,
    EventsQuery,
    HeartbeatBody,
    Index,
    LiveEvent,
    OwnerBody,
    Readiness,
    ReportQuery,
    RequestAnswer,
    RequestBody,
    Sent,
    State,
    StateBody,
)
from assignment_workers.gateway.callers import (
    ACTING,
    ANYBODY,
    OPERATING,
    WATCHING,
    Caller,
    Callers,
)
from assignment_workers.gateway.dashboard.pages import ROUTES as PAGES
from assignment_workers.gateway.dashboard.pages import Dashboard, front, wants_page
from assignment_workers.gateway.dashboard.render import environment
from assignment_workers.gateway.dashboard.schedule import Schedule
from assignment_workers.gateway.dashboard.views import Source
from assignment_workers.gateway.heartbeats import Heartbeats
from assignment_workers.gateway.latest import Latest
from assignment_workers.gateway.limits import SECURITY_HEADERS, BodyLimit, Pace, SecurityHeaders
from assignment_workers.gateway.live import Live
from assignment_workers.gateway.metrics import Metrics, StoredFigures
from assignment_workers.gateway.problems import (
    MEDIA_TYPE,
    REQUEST_ID,
    Problem,
    ProblemDetails,
    handle,
    problem,
    refused,
    responses,
    unavailable,
)
from assignment_workers.gateway.stream import MEDIA_TYPE as EVENTS_TYPE
from assignment_workers.gateway.stream import EventStream
from assignment_workers.identity import new_id
from assignment_workers.policy.queues import POLICIES
from assignment_workers.schema.tables import Assignment, TokenRole
from assignment_workers.sequencer.term import APPLICATION
from assignment_workers.settings import Settings

TIMEOUT = timedelta(seconds=10)
DAY = timedelta(days=1)
ROUTES = APIRouter(generate_unique_id_function=lambda route: route.name)
"""An operation's id is its function's name: generated clients call it so."""


@dataclass
class Gateway:
    """What the routes work with."""

    engine: Engine
    asking: Asking
    callers: Callers
    live: Live
    latest: Latest
    heartbeats: Heartbeats
    randomness: Random
    settings: Settings


def create_app(settings: Settings, engine: Engine, *, tokens: bool) -> FastAPI:
    """The gateway on this database and the Redis of `settings`. Without `tokens` all may do all."""
    metrics = Metrics()
    lanes = lanes_of(settings)
    latest = Latest(engine, lanes)
    metrics.registry.register(StoredFigures(latest))
    callers = Callers(
        engine, tokens, Pace(settings.gateway_token_rate), Pace(settings.gateway_agent_rate)
    )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        abandoned = Abandoned()
        client = AsyncClient(
            settings.redis,
            broker_url=settings.broker_url,
            lanes=lanes,
            orphaned=lambda _, answer: abandoned(answer),
        )
        abandoned.client = client
        live = Live(engine, settings.lock_database_url or settings.database)
        metrics.streams.set_function(lambda: live.readers)
        app.state.gateway = Gateway(
            engine,
            Asking(client, metrics, abandoned),
            callers,
            live,
            latest,
            Heartbeats(engine, settings),
            Random(),
            settings,
        )
        app.state.dashboard = Dashboard(
            engine,
            client,
            callers,
            live,
            Source(latest, Schedule(_redis(settings)), settings),
            flower_url(settings),
            secure=not settings.embedded,
            templates=environment(),
        )
        yield
        await live.close()
        await app.state.gateway.heartbeats.close()
        app.state.dashboard.threads.shutdown(wait=False, cancel_futures=True)
        await abandoned.close()
        await client.close()

    app = FastAPI(
        title="assignment-workers",
        version=version("assignment-workers"),
        summary="Hands each call-centre agent the next user to call: each user to one agent.",
        lifespan=life,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=traces.of_gateway(),
    )
    app.include_router(ROUTES)
    app.include_router(PAGES)
    handle(app, callers.caller)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        # Made outside of every middleware: this response has to be given its headers here.
        detail = "the gateway failed; its log tells how"
        response = problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)
        response.raw_headers += SECURITY_HEADERS
        return response

    app.add_middleware(BodyLimit)
    if settings.gateway_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[each.strip() for each in settings.gateway_origins.split(",")],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=[REQUEST_ID, "Retry-After", "Date"],
        )
    app.add_middleware(SecurityHeaders)
    return app


async def _gateway(request: Request) -> Gateway:  # async: else in a thread, each time
    found: Gateway = request.app.state.gateway
    return found


Here = Annotated[Gateway, Depends(_gateway)]


async def _caller(request: Request, here: Here) -> Caller:
    return await here.callers.caller(request)


Who = Annotated[Caller, Depends(_caller)]


def _of(roles: frozenset[TokenRole]) -> params.Depends:
    """Whoever calls, if of these roles; before the body is judged, which is for those to know."""

    async def checked(who: Who) -> Caller:
        who.must_be(roles)
        return who

    return params.Depends(checked)


Actor = Annotated[Caller, _of(ACTING)]
Stater = Annotated[Caller, _of(ACTING | OPERATING)]
Operator = Annotated[Caller, _of(OPERATING)]
WATCHED = _of(WATCHING)
AssignmentId = Annotated[UUID, Path(description="The assignment's id.")]
AgentPath = Annotated[int, Path(ge=1, le=2**31 - 1, description="The agent.")]
UserPath = Annotated[int, Path(ge=1, le=2**63 - 1, description="The user.")]
Queue = Annotated[str, Path(max_length=200, description="The dialer queue.")]
Said = Annotated[ActBody | None, Body(description="May be left out.")]

ALWAYS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)
WHEN_ASKED = (
    *ALWAYS,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
WHEN_FINISHED = (*WHEN_ASKED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


@ROUTES.post(
    "/v1/requests",
    tags=["agents"],
    response_model=RequestAnswer,
    responses={
        200: {
            "description": "The answer.",
            "content": {"application/json": {"examples": REQUEST_EXAMPLES}},
            "headers": {
                REQUEST_ID: {"description": "The request id.", "schema": {"type": "string"}}
            },
        },
        **responses(*WHEN_ASKED, HTTPStatus.CONFLICT),
    },
)
async def request_next(request: Request, body: RequestBody, here: Here, who: Actor) -> Response:
    """The next user for an agent. Asked again with the same `request_id`, the same answer."""
    timeout = timedelta(milliseconds=body.timeout_ms)
    name = body.request_id or str(new_id(datetime.now(UTC), here.randomness))
    request.state.request_id = name
    bind_contextvars(request_id=name, agent_id=body.agent_id)
    here.callers.let(who, body.agent_id)
    command = commands.request(body.agent_id, body.queue, name, timeout=timeout)
    answer = await here.asking.ask(request, command, timeout, request_id=name)
    answer.headers[REQUEST_ID] = name
    return answer


_FINISHED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "It is so.",
        "content": {"application/json": {"examples": FINISHED_EXAMPLES}},
    },
    **responses(*WHEN_FINISHED),
}


@ROUTES.post(
    "/v1/assignments/{assignment}/complete",
    tags=["agents"],
    response_model=Finished,
    responses=_FINISHED,
)
async def complete(
    request: Request, assignment: AssignmentId, body: CompleteBody, here: Here, who: Actor
) -> Response:
    """The call was made and `outcome` came of it. Said twice, the same answer."""
    command = commands.complete(
        assignment,
        body.agent_id,
        body.outcome,
        version=body.version,
        notes=body.notes,
        callback_at=body.callback_at,
    )
    return await _finish(request, command, body, here, who)


@ROUTES.post(
    "/v1/assignments/{assignment}/skip",
    tags=["agents"],
    response_model=Finished,
    responses=_FINISHED,
)
async def skip(
    request: Request, assignment: AssignmentId, body: OwnerBody, here: Here, who: Actor
) -> Response:
    """Not me: offered later, to this agent last."""
    command = commands.skip(assignment, body.agent_id, version=body.version)
    return await _finish(request, command, body, here, who)


@ROUTES.post(
    "/v1/assignments/{assignment}/defer",
    tags=["agents"],
    response_model=Finished,
    responses=_FINISHED,
)
async def defer(
    request: Request, assignment: AssignmentId, body: DeferBody, here: Here, who: Actor
) -> Response:
    """Later, for everyone: nobody is offered the user before `until`, or for `seconds`."""
    command = commands.defer(
        assignment,
        body.agent_id,
        version=body.version,
        until=body.until,
        seconds=body.seconds,
        why=body.why,
    )
    return await _finish(request, command, body, here, who)


@ROUTES.post(
    "/v1/assignments/{assignment}/close",
    tags=["agents"],
    response_model=Finished,
    responses=_FINISHED,
)
async def close(
    request: Request, assignment: AssignmentId, body: CloseBody, here: Here, who: Actor
) -> Response:
    """The user is out of this dialer queue, until an operator lifts it."""
    command = commands.close(assignment, body.agent_id, body.why, version=body.version)
    return await _finish(request, command, body, here, who)


@ROUTES.post(
    "/v1/assignments/{assignment}/accept",
    tags=["agents"],
    response_model=Finished,
    responses=_FINISHED,
)
async def accept(
    request: Request, assignment: AssignmentId, body: OwnerBody, here: Here, who: Actor
) -> Response:
    """The offer is taken up: it is work now, and the lease runs anew."""
    command = commands.accept(assignment, body.agent_id, version=body.version)
    return await _finish(request, command, body, here, who)


@ROUTES.post(
    "/v1/assignments/{assignment}/release",
    tags=["agents"],
    response_model=Finished,
    responses=_FINISHED,
)
async def release(
    request: Request, assignment: AssignmentId, body: OwnerBody, here: Here, who: Actor
) -> Response:
    """Give the user back untouched."""
    command = commands.release(assignment, body.agent_id, version=body.version)
    return await _finish(request, command, body, here, who)


@ROUTES.post(
    "/v1/assignments/{assignment}/renew",
    tags=["agents"],
    response_model=Finished,
    responses=_FINISHED,
)
async def renew(
    request: Request, assignment: AssignmentId, body: OwnerBody, here: Here, who: Actor
) -> Response:
    """Still at it: the lease runs anew."""
    command = commands.renew(assignment, body.agent_id, version=body.version)
    return await _finish(request, command, body, here, who)


async def _finish(
    request: Request, command: Command, body: OwnerBody, here: Gateway, who: Caller
) -> Response:
    here.callers.let(who, body.agent_id)
    return await here.asking.ask(request, command, TIMEOUT)


@ROUTES.post(
    "/v1/agents/{agent}/state",
    tags=["agents"],
    response_model=Stated,
    responses={
        200: {
            "description": "It is so.",
            "content": {"application/json": {"examples": STATED_EXAMPLES}},
        },
        **responses(*WHEN_ASKED),
    },
)
async def state(
    request: Request, agent: AgentPath, body: StateBody, here: Here, who: Stater
) -> Response:
    """The agent is about this from now on. On break or offline an unaccepted offer is released."""
    here.callers.let(who, agent)

    def ask(by: str | None) -> Awaitable[Response]:
        command = commands.state(agent, body.state, by=by, why=body.why)
        return here.asking.ask(request, command, TIMEOUT)

    if who.role is None or who.role in ACTING:
        return await ask(None)
    action = Action("agent_state", f"{agent} {body.state}", who.name, body.why)
    return (await kept(here.engine, action, lambda: ask(who.name), told_by))[1]


@ROUTES.post(
    "/v1/agents/{agent}/heartbeat",
    tags=["agents"],
    response_model=Noted,
    responses={
        200: {
            "description": "It is kept.",
            "content": {"application/json": {"examples": NOTED_EXAMPLES}},
        },
        **responses(*WHEN_FINISHED),
    },
)
async def heartbeat(
    request: Request, agent: AgentPath, body: HeartbeatBody, here: Here, who: Actor
) -> Response:
    """The agent is there: what they have accepted lives by it. It changes no state.

    Written together with others, about once a second. The first one that names an offer in
    `assignment_id` accepts it.
    """
    here.callers.let(who, agent)
    offer = body.assignment_id
    if offer is not None and not here.heartbeats.accepted.knows(agent, offer):
        command = commands.accept(offer, agent, version=None)
        taken = await here.asking.ask(request, command, TIMEOUT)
        if taken.status_code != HTTPStatus.OK:
            return taken
        here.heartbeats.accepted.add(agent, offer)
    return response((await here.heartbeats.beat(agent)).model_dump(mode="json"))


@ROUTES.get(
    "/v1/agents/{agent}",
    tags=["agents"],
    response_model=AgentShown,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
def agent_state(agent: AgentPath, here: Here, who: Who) -> AgentShown:
    """How an agent stands: their state, session, last sign of life, and what they hold."""
    who.must_act_for(agent)
    with _reading(here) as connection:
        found = agents.shown(connection, agent)
    if found is None:
        raise refused(HTTPStatus.NOT_FOUND, Code.UNKNOWN_AGENT, f"no agent {agent}")
    return found


@ROUTES.get(
    "/v1/agents/{agent}/assignment",
    tags=["agents"],
    response_model=Held,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
def active_assignment(agent: AgentPath, here: Here, who: Who) -> Held:
    """The assignment that an agent holds now."""
    who.must_act_for(agent)
    with _reading(here) as connection:
        row = (
            connection.execute(
                select(*HELD_COLUMNS).where(
                    Assignment.agent_id == agent, Assignment.state == ACTIVE
                )
            )
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise refused(HTTPStatus.NOT_FOUND, Code.UNKNOWN_ASSIGNMENT, f"agent {agent} holds nobody")
    return held(row)


@ROUTES.get(
    "/v1/queues",
    tags=["operators"],
    response_model=list[QueueStatus],
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def queues(here: Here) -> list[QueueStatus]:
    """How each dialer queue stands."""
    with _reading(here) as connection:
        return queue_statuses(connection)


@ROUTES.get(
    "/v1/queues/{queue}/explain",
    tags=["operators"],
    response_model=Funnel,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def explain_queue(queue: Queue, here: Here) -> Funnel:
    """From every user of the pool to the claimable ones: how many each rule holds back."""
    _known(queue)
    with _reading(here) as connection:
        return read_funnel(connection, policies_of(here.settings)[queue], now=instant(connection))


@ROUTES.get(
    "/v1/users/{user}/explain",
    tags=["operators"],
    response_model=Explanation,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def explain_user(user: UserPath, here: Here) -> Explanation:
    """Where a user stands, and why they are or are not offered now, rule by rule."""
    with _reading(here) as connection:
        found = read_explanation(
            connection,
            user,
            policies=policies_of(here.settings),
            settings=here.settings,
            now=instant(connection),
        )
    if found is None:
        raise refused(HTTPStatus.NOT_FOUND, Code.UNKNOWN_USER, f"no user {user}")
    return found


@ROUTES.post(
    "/v1/queues/{queue}/regenerate",
    tags=["operators"],
    status_code=HTTPStatus.ACCEPTED,
    response_model=Sent,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def regenerate(queue: Queue, here: Here, who: Operator, body: Said = None) -> Response:
    """Build a new generation of a dialer queue now."""

    async def do() -> Response:
        sent = await here.asking.client.regenerate(queue)
        if isinstance(sent, Unavailable):
            return response(sent.model_dump(mode="json"))
        return JSONResponse({"task_id": sent}, status_code=HTTPStatus.ACCEPTED)

    return await _act(here, Action("rebuild", queue, who.name, _why(body)), do)


@ROUTES.post(
    "/v1/queues/{queue}/pause",
    tags=["operators"],
    response_model=Done,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def pause(
    request: Request, queue: Queue, here: Here, who: Operator, body: Said = None
) -> Response:
    """Hand out nobody from a dialer queue; holds go on."""
    action = Action("pause", queue, who.name, _why(body))
    command = commands.pause(queue, action.who, action.why)
    return await _act(here, action, lambda: here.asking.ask(request, command, TIMEOUT))


@ROUTES.post(
    "/v1/queues/{queue}/resume",
    tags=["operators"],
    response_model=Done,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def resume(
    request: Request, queue: Queue, here: Here, who: Operator, body: Said = None
) -> Response:
    """Hand out users from a dialer queue again."""
    action = Action("resume", queue, who.name, _why(body))
    command = commands.resume(queue, action.who, action.why)
    return await _act(here, action, lambda: here.asking.ask(request, command, TIMEOUT))


async def _act(here: Gateway, action: Action, do: Callable[[], Awaitable[Response]]) -> Response:
    _known(action.subject)
    return (await kept(here.engine, action, do, told_by))[1]


def _why(body: ActBody | None) -> str | None:
    return body.why if body else None


def _known(queue: str) -> None:
    if queue not in POLICIES:
        raise refused(
            HTTPStatus.NOT_FOUND,
            Code.UNKNOWN_QUEUE,
            f"no dialer queue {queue!r}; there are {', '.join(POLICIES)}",
        )


@ROUTES.get(
    "/v1/report",
    tags=["operators"],
    response_model=Report,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def report(here: Here, query: Annotated[ReportQuery, Query()]) -> Report:
    """Service levels from `since` until now, against the targets of the incident report."""
    now = datetime.now(UTC)
    began = query.since.astimezone(UTC) if query.since else now - DAY
    if began > now:
        raise refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, Code.MALFORMED, "query.since: is yet to come"
        )
    with _reading(here) as connection:
        return read_report(connection, since=began)


@ROUTES.get(
    "/v1/events",
    tags=["events"],
    response_class=EventStream,
    status_code=HTTPStatus.OK,
    responses={
        200: {
            "description": "Server-sent events without end; each `data` is a `LiveEvent`.",
            "content": {
                EVENTS_TYPE: {"schema": {"type": "string"}, "example": STREAM_EXAMPLE},
            },
        },
        **responses(*ALWAYS, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE),
    },
)
async def events(
    request: Request,
    here: Here,
    who: Who,
    query: Annotated[EventsQuery, Query()],
    last_event_id: Annotated[
        int | None,
        Header(
            alias="Last-Event-ID",
            ge=0,
            le=2**63 - 1,
            description="The last id that was read: go on from there.",
        ),
    ] = None,
) -> Response:
    """What happens, as it is committed: assignments, their ends, generations, pauses.

    With `Last-Event-ID` nothing since then is left out and nothing comes twice, at whichever
    gateway; an `id` without `data` only says how far the stream has come. One of kind `reset` says
    that what was missed cannot be told: read how all stands anew. A reader that is too slow is cut
    off, and may go on from its last id. An agent's token sees that agent's assignments, a
    frontend's those of all agents, a supervisor's and an operator's everything.
    """
    sight = who.sees(query.agent_id)

    async def may_go_on() -> bool:
        try:
            return await here.callers.caller(request) == who
        except Problem as refusal:
            return refusal.status != HTTPStatus.UNAUTHORIZED

    own = who.token if who.role == TokenRole.AGENT else None
    return EventStream(here.live, sight, last_event_id, agent_token=own, may_go_on=may_go_on)


@ROUTES.get("/", tags=["about"], response_model=Index, responses=responses(*ALWAYS))
async def index(request: Request, here: Here) -> Response:
    """What this is, and where its interface is described."""
    if wants_page(request):
        return await front(request)
    (await here.callers.caller(request)).must_be(ANYBODY)
    return JSONResponse(Index(name=request.app.title, version=request.app.version).model_dump())


@ROUTES.get("/healthz", tags=["health"], response_model=State)
async def alive() -> State:
    """Alive."""
    return State(status="alive")


@ROUTES.get(
    "/readyz",
    tags=["health"],
    response_model=Readiness,
    responses=responses(HTTPStatus.SERVICE_UNAVAILABLE),
)
def ready(here: Here) -> Readiness:
    """Ready: the database answers, and a sequencer leads: of one lane, where there are several.

    A CRM that cannot be read is told, and does not make it less ready: calls are completed, skipped
    and released all the same, and who asks for a user is told `unavailable`.
    """
    with _reading(here) as connection:
        lanes = sequencer_statuses(
            connection, application=APPLICATION, lanes=lanes_of(here.settings)
        )
    if all(lane.leader is None for lane in lanes):
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "not ready", headers={"Retry-After": "1"})
    crm = here.latest.read("crm", crm_status)
    return Readiness(status="ready", crm="unavailable" if crm.trouble else "answers")


@ROUTES.get(
    "/metrics",
    tags=["operators"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **responses(*ALWAYS)},
    dependencies=[WATCHED],
)
def metrics(here: Here) -> Response:
    """What this gateway counts, for Prometheus."""
    return Response(generate_latest(here.asking.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@ROUTES.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, who: Who) -> JSONResponse:
    """This interface, as OpenAPI 3.1."""
    who.must_be(ANYBODY)
    return JSONResponse(document(request.app))


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the gateway: made once."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    parts = made["components"]
    for model in (ProblemDetails, LiveEvent):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        parts["schemas"] |= schema.pop("$defs") | {model.__name__: schema}
    for unused in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(unused, None)
    parts["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": f"An API token of role {', '.join(TokenRole)}.",
        }
    }
    for path, item in made["paths"].items():
        for operation in item.values():
            if path not in {"/healthz", "/readyz"}:
                operation["security"] = [{"token": []}]
            for code, told in operation["responses"].items():
                if int(code) >= HTTPStatus.BAD_REQUEST:
                    told["content"] = {MEDIA_TYPE: told["content"][MEDIA_TYPE]}
    return made


def flower_url(settings: Settings) -> str | None:
    """Where Flower is, for whoever looks at the dashboard; None: it is not known."""
    if settings.flower_url is None and settings.embedded:
        return f"http://127.0.0.1:{settings.flower_port}"
    return settings.flower_url


def _redis(settings: Settings) -> Redis:
    return Redis.from_url(settings.redis, protocol=2, socket_timeout=1, socket_connect_timeout=1)


@contextmanager
def _reading(here: Gateway) -> Iterator[Connection]:
    """A connection to read by. Raises `Problem` 503 where there is none."""
    try:
        with here.engine.connect() as connection:
            yield connection
    except CrmUnavailable as error:
        raise unavailable(str(error), retry_after=error.retry_after) from error
    except (DBAPIError, PoolTimeout) as error:
        raise unavailable("the database cannot answer") from error
