"""Routes about the gateway: health, metrics, the OpenAPI document and live events."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.lifecycle.moves import AN_OUTCOME
from assignment_workers.assignment.settings_versions import current
from assignment_workers.dialer.described import DialerDescription, describe
from assignment_workers.gateway.auth.callers import ANYBODY
from assignment_workers.gateway.bodies import (
    A_QUEUE,
    EXAMPLES,
    STREAM_EXAMPLE,
    EventsQuery,
    Index,
    LiveEvent,
    Readiness,
    State,
)
from assignment_workers.gateway.dashboard.api_page import operations
from assignment_workers.gateway.dashboard.page_rendering import (
    as_page,
    html,
    looker_of,
    wants_page,
)
from assignment_workers.gateway.dashboard.pages import front
from assignment_workers.gateway.dependencies import (
    ALWAYS,
    WATCHED,
    Gateway,
    Here,
    Who,
    reading,
    routes,
)
from assignment_workers.gateway.events.stream import MEDIA_TYPE as EVENTS_TYPE
from assignment_workers.gateway.events.stream import EventStream
from assignment_workers.gateway.problems import MEDIA_TYPE, Problem, ProblemDetails, responses
from assignment_workers.health.model import Health, HealthState
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import TokenRole

ROUTES = routes()
DOCUMENT = routes(APIRoute)
"""The router of the OpenAPI document and of the page that shows it.

The answers of these two routes are not redacted, because they are the same for every caller.
"""

TAGS = {
    "agents": "Requests for users, commands about assignments, states and heartbeats.",
    "operators": "Dialer queues, explanations, reports, dead letters and persons.",
    "events": "Live events.",
    "health": "Health of this process.",
    "about": "The interface itself.",
}
"""The tags of the OpenAPI document, which group its operations, with their descriptions."""


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
            description="The last id that was read. Later events are sent.",
        ),
    ] = None,
) -> Response:
    """Stream events as they are committed: assignments, their ends, generations, pauses.

    With `Last-Event-ID`, any gateway sends each event after that id once, and leaves none out.
    Without `Last-Event-ID`, the stream begins with the next new event. An `id` without `data` only
    tells how far the stream has come. Kind `reset` means that the stream cannot continue after the
    client's last event, for example because the missed events were deleted. The client must then
    read the current state again. A client that reads too slowly is disconnected, and may resume
    after its last id.

    With an agent's token, the stream has the events about that agent and the agent's assignments.
    With a frontend's token, it has such events of all agents, but no other events, such as those of
    generations and pauses. Supervisors and operators get every event.
    """
    event_filter = who.sees(query.agent_id)

    async def may_go_on() -> bool:
        try:
            return await here.callers.caller(request) == who
        except Problem as refusal:
            return refusal.status != HTTPStatus.UNAUTHORIZED

    own = who.token if who.role == TokenRole.AGENT else None
    return EventStream(here.live, event_filter, last_event_id, agent_token=own, may_go_on=may_go_on)


@ROUTES.get("/", tags=["about"], response_model=Index, responses=responses(*ALWAYS))
async def index(request: Request, here: Here) -> Response:
    """Return the name and version of the gateway and the paths of its interface.

    A browser gets the overview of the dashboard.
    """
    if wants_page(request):
        return await front(request)
    (await here.callers.caller(request)).must_be(ANYBODY)
    return JSONResponse(Index(name=request.app.title, version=request.app.version).model_dump())


@ROUTES.get(
    "/v1/dialer",
    tags=["about"],
    response_model=DialerDescription,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
)
def dialer(here: Here, who: Who) -> DialerDescription:
    """Return the dialer queues, the outcomes of calls, and the actions that may follow a call.

    An action is a task for another system after a call, such as to send a text message. The dialer
    queues and the outcomes are in the configured order. Agents see the outcomes in this order. The
    actions are in the order in which the outcomes name them.

    The action `review` is always included: an operator has to look at the user. It may follow a
    call although the call's outcome does not name it. If no outcome names `review`, it is the last
    action.
    """
    who.must_be(ANYBODY)
    with reading(here) as connection:
        return describe(
            loaded(), policies_of(loaded(), current(connection, loaded(), here.settings))
        )


@ROUTES.get("/healthz", tags=["health"], response_model=State)
async def alive() -> State:
    """Report that the process is alive."""
    return State(status="alive")


@ROUTES.get(
    "/readyz",
    tags=["health"],
    response_model=Readiness,
    responses=responses(HTTPStatus.SERVICE_UNAVAILABLE),
)
async def ready(here: Here) -> Readiness:
    """Report that this gateway can answer callers, and the components that are not good.

    The gateway stays ready while a server is down or no sequencer leads, because it still answers
    calls with `unavailable`, and a proxy must not take all gateways out of service. `GET
    /v1/health` tells whether agents are served.
    """
    if not here.health.is_current:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "not ready", headers={"Retry-After": "1"})
    health = here.health.latest
    crm = health.of("crm")
    return Readiness(
        status="ready",
        state=health.state,
        wrong=[each.name for each in health.wrong],
        crm="answers" if crm and crm.state is HealthState.GOOD else "unavailable",
    )


@ROUTES.get(
    "/v1/health",
    tags=["health"],
    response_model=Health,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
async def health(here: Here) -> Health:
    """Return the state of the system and of each component, as this gateway sees it.

    The gateway reads the servers in the background, so the call waits for none of them. The answer
    is at most three seconds old; `at` is the time of the reading.
    """
    return here.health.latest


@ROUTES.get(
    "/metrics",
    tags=["operators"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **responses(*ALWAYS)},
    dependencies=[WATCHED],
)
def metrics(here: Here) -> Response:
    """Return the metrics of this gateway for Prometheus."""
    return Response(
        generate_latest(here.dispatcher.metrics.registry), media_type=CONTENT_TYPE_LATEST
    )


@DOCUMENT.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, who: Who) -> JSONResponse:
    """Return the OpenAPI 3.1 document of this interface."""
    who.must_be(ANYBODY)
    return JSONResponse(document(request.app))


@DOCUMENT.get("/api", include_in_schema=False)
@as_page
async def api(request: Request) -> Response:
    """Show the documentation of this interface, to every signed-in viewer and every token."""
    here: Gateway = request.app.state.gateway
    if "authorization" in request.headers:
        (await here.callers.caller(request)).must_be(ANYBODY)
    else:
        await looker_of(request)
    made = document(request.app)
    facts = {
        "title": "HTTP interface",
        "version": made["info"]["version"],
        "groups": list(operations(made)),
    }
    return html(request, "api.html", facts)


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the gateway. It is made at the first call."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        routes=app.routes,
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": "/", "description": "The gateway that serves this document."}],
        tags=[{"name": name, "description": said} for name, said in TAGS.items()],
    )
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
            _restore_examples(operation)
            if path not in {"/healthz", "/readyz"}:
                operation["security"] = [{"token": []}]
            for code, told in operation["responses"].items():
                if int(code) >= HTTPStatus.BAD_REQUEST:
                    told["content"] = {MEDIA_TYPE: told["content"][MEDIA_TYPE]}
    return _with_names(made)


def _with_names(made: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document with configured names in its examples.

    The examples contain two placeholders. One is replaced by the name of this dialer's first dialer
    queue. The other is replaced by the name of one of this dialer's outcomes.
    """
    outcome = min(loaded().outcomes_by_name.values(), key=lambda each: not each.retried)
    named = (
        json.dumps(made)
        .replace(A_QUEUE, next(iter(loaded().policies)))
        .replace(AN_OUTCOME, outcome.name)
    )
    found: dict[str, Any] = json.loads(named)
    return found


def _restore_examples(operation: dict[str, Any]) -> None:
    """Restore the declared examples of an operation, because FastAPI drops null values in them."""
    for told in operation["responses"].values():
        for media in told.get("content", {}).values():
            for given in EXAMPLES:
                if media.get("examples", {}).keys() == given.keys():
                    media["examples"] = given
