"""Routes of supervisors and operators about dialer queues and users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.answers import Code, Done
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.operator_actions import RequestedAction
from assignment_workers.assignment.reports.explain import explain as read_explanation
from assignment_workers.assignment.reports.explain import funnel as read_funnel
from assignment_workers.assignment.reports.explain import instant
from assignment_workers.assignment.reports.explanation import Explanation, Funnel
from assignment_workers.assignment.reports.report import Report
from assignment_workers.assignment.reports.report import report as read_report
from assignment_workers.assignment.reports.status import QueueStatus, queue_statuses
from assignment_workers.assignment.settings_versions import current
from assignment_workers.client import Unavailable, commands
from assignment_workers.errors import no_queue
from assignment_workers.gateway.bodies import ActBody, ReportQuery, Sent
from assignment_workers.gateway.command_dispatcher import response
from assignment_workers.gateway.dependencies import (
    ALWAYS,
    TIMEOUT,
    WATCHED,
    Gateway,
    Here,
    Operator,
    Queue,
    Said,
    UserPath,
    reading,
    routes,
)
from assignment_workers.gateway.operator_actions import outcome_of, recorded
from assignment_workers.gateway.problems import refused, responses
from assignment_workers.policy.process_dialer import loaded

DAY = timedelta(days=1)
ROUTES = routes()


@ROUTES.get(
    "/v1/queues",
    tags=["operators"],
    response_model=list[QueueStatus],
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def queues(here: Here) -> list[QueueStatus]:
    """Return the state of each dialer queue."""
    with reading(here) as connection:
        return queue_statuses(connection, loaded().policies)


@ROUTES.get(
    "/v1/queues/{queue}/explain",
    tags=["operators"],
    response_model=Funnel,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def explain_queue(queue: Queue, here: Here) -> Funnel:
    """Count the users of a dialer queue whom each rule excludes, and the claimable users left.

    At most 200,000 users are counted: those with the lowest scores. A user with a lower score is
    normally called earlier. If 200,000 users were counted, `complete` is false, because the dialer
    queue may have more.
    """
    _known(queue)
    with reading(here) as connection:
        settings = current(connection, loaded(), here.settings)
        policy = policies_of(loaded(), settings)[queue]
        return read_funnel(connection, policy, settings=settings, now=instant(connection))


@ROUTES.get(
    "/v1/users/{user:path}/explain",
    tags=["operators"],
    response_model=Explanation,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def explain_user(user: UserPath, here: Here) -> Explanation:
    """Explain a user's position and, rule by rule, why the user is or is not offered now."""
    with reading(here) as connection:
        settings = current(connection, loaded(), here.settings)
        found = read_explanation(
            connection,
            loaded(),
            here.crm,
            user_ids.number_of(loaded(), connection, user),
            policies=policies_of(loaded(), settings),
            settings=settings,
            now=instant(connection),
        )
        found = user_ids.shown(loaded(), connection, found)
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
    """Send a request to build a new generation of a dialer queue now; do not wait for the build."""

    async def do(_: int) -> Response:
        sent = await here.dispatcher.client.regenerate(queue)
        if isinstance(sent, Unavailable):
            return response(sent.model_dump(mode="json"))
        return JSONResponse({"task_id": sent}, status_code=HTTPStatus.ACCEPTED)

    return await _act(here, RequestedAction("rebuild", queue, who.name, _why(body)), do)


@ROUTES.post(
    "/v1/queues/{queue}/pause",
    tags=["operators"],
    response_model=Done,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def pause(
    request: Request, queue: Queue, here: Here, who: Operator, body: Said = None
) -> Response:
    """Pause a dialer queue: hand out none of its users. Active assignments are not affected."""
    action = RequestedAction("pause", queue, who.name, _why(body))
    command = commands.pause(queue, action.who, action.why)
    return await _act(
        here, action, lambda at: here.dispatcher.ask(request, command.at(at), TIMEOUT)
    )


@ROUTES.post(
    "/v1/queues/{queue}/resume",
    tags=["operators"],
    response_model=Done,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def resume(
    request: Request, queue: Queue, here: Here, who: Operator, body: Said = None
) -> Response:
    """Resume a dialer queue: hand out its users again."""
    action = RequestedAction("resume", queue, who.name, _why(body))
    command = commands.resume(queue, action.who, action.why)
    return await _act(
        here, action, lambda at: here.dispatcher.ask(request, command.at(at), TIMEOUT)
    )


async def _act(
    here: Gateway, action: RequestedAction, do: Callable[[int], Awaitable[Response]]
) -> Response:
    _known(action.subject)
    return (await recorded(here.engine, action, do, outcome_of))[1]


def _why(body: ActBody | None) -> str | None:
    return body.why if body else None


def _known(queue: str) -> None:
    if queue not in loaded().policies:
        raise refused(
            HTTPStatus.NOT_FOUND,
            Code.UNKNOWN_QUEUE,
            no_queue(queue, loaded().policies),
        )


@ROUTES.get(
    "/v1/report",
    tags=["operators"],
    response_model=Report,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def report(here: Here, query: Annotated[ReportQuery, Query()]) -> Report:
    """Return the measured service levels from `since` until now."""
    now = datetime.now(UTC)
    began = query.since.astimezone(UTC) if query.since else now - DAY
    if began > now:
        raise refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, Code.MALFORMED, "query.since: is yet to come"
        )
    with reading(here) as connection:
        return read_report(connection, loaded(), since=began)
