"""Routes of agents and the frontends that act for them: requests, commands, heartbeats."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from sqlalchemy import select
from structlog.contextvars import bind_contextvars

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.active_assignments import ACTIVE, HELD_COLUMNS, held
from assignment_workers.assignment.answers import Code, Finished, Held, Noted, Stated
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.lifecycle.agent_status import AgentShown
from assignment_workers.assignment.lifecycle.moves import VERBS, accept
from assignment_workers.assignment.lifecycle.verb import AnyVerb
from assignment_workers.assignment.operator_actions import RequestedAction
from assignment_workers.client import commands
from assignment_workers.gateway.auth.callers import ACTING
from assignment_workers.gateway.bodies import (
    FINISHED_EXAMPLES,
    NOTED_EXAMPLES,
    REQUEST_EXAMPLES,
    STATED_EXAMPLES,
    HeartbeatBody,
    OwnerBody,
    RequestAnswer,
    RequestBody,
    StateBody,
    body_of,
)
from assignment_workers.gateway.command_dispatcher import response
from assignment_workers.gateway.dependencies import (
    ALWAYS,
    TIMEOUT,
    WHEN_ASKED,
    WHEN_FINISHED,
    Actor,
    AgentPath,
    AssignmentId,
    Here,
    Stater,
    Who,
    reading,
    routes,
)
from assignment_workers.gateway.fast_route import FastRoute
from assignment_workers.gateway.operator_actions import outcome_of, recorded
from assignment_workers.gateway.problems import REQUEST_ID, refused, responses
from assignment_workers.identity import new_id
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import Assignment

ROUTES = routes()
QUICK = routes(FastRoute)


@QUICK.post(
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
    """Request the next user for an agent. The same `request_id` gets the same answer."""
    timeout = timedelta(milliseconds=body.timeout_ms)
    name = body.request_id or str(new_id(datetime.now(UTC), here.randomness))
    request.state.request_id = name
    bind_contextvars(request_id=name, agent_id=body.agent_id)
    here.callers.let(who, body.agent_id)
    command = commands.request(body.agent_id, body.queue, name, timeout=timeout)
    answer = await here.dispatcher.ask(request, command, timeout, request_id=name)
    answer.headers[REQUEST_ID] = name
    return answer


_FINISHED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "It is so.",
        "content": {"application/json": {"examples": FINISHED_EXAMPLES}},
    },
    **responses(*WHEN_FINISHED),
}


def _add_route(verb: AnyVerb) -> None:
    """Add the route `POST /v1/assignments/{assignment}/VERB` for a verb.

    A verb is an agent's command about an assignment, such as `complete`. The body of a call has the
    verb's arguments.
    """
    own = tuple(each.name for each in verb.own)

    async def endpoint(
        request: Request, assignment: AssignmentId, body: OwnerBody, here: Here, who: Actor
    ) -> Response:
        said = {name: getattr(body, name) for name in own}
        called = verb.call(assignment, body.agent_id, version=body.version, **said)
        here.callers.let(who, body.agent_id)
        return await here.dispatcher.ask(request, commands.act(called), TIMEOUT)

    endpoint.__name__ = verb.name
    endpoint.__doc__ = verb.description
    endpoint.__annotations__["body"] = body_of(verb)
    QUICK.post(
        f"/v1/assignments/{{assignment}}/{verb.name}",
        tags=["agents"],
        response_model=Finished,
        responses=_FINISHED,
    )(endpoint)


for _verb in VERBS.values():
    _add_route(_verb)


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
    """Set the agent's state. On break or offline, the agent's offer, if any, is released."""
    here.callers.let(who, agent)

    def ask(by: str | None, position: int | None = None) -> Awaitable[Response]:
        command = commands.state(agent, body.state, by=by, why=body.why)
        return here.dispatcher.ask(request, replace(command, position=position), TIMEOUT)

    if who.role is None or who.role in ACTING:
        return await ask(None)
    action = RequestedAction("agent_state", f"{agent} {body.state}", who.name, body.why)
    return (await recorded(here.engine, action, lambda at: ask(who.name, at), outcome_of))[1]


@QUICK.post(
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
    """Record that the agent is present, which keeps the agent's accepted assignment alive.

    The heartbeats of all agents are written in batches, about once a second. The first heartbeat
    that names an offer in `assignment_id` accepts the offer. The acceptance changes the agent's
    state from `available` or `wrap_up` to `on_call`. No other heartbeat changes the agent's state.
    """
    here.callers.let(who, agent)
    offer = body.assignment_id
    if offer is not None and not here.heartbeats.accepted.knows(agent, offer):
        command = commands.act(accept.call(offer, agent))
        taken = await here.dispatcher.ask(request, command, TIMEOUT)
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
    """Return an agent's state, session, last sign of life and assignment.

    A session is a period of work. It begins when the agent's state changes from `offline`, or from
    no state, to another state. It ends when the state becomes `offline`.
    """
    who.must_act_for(agent)
    with reading(here) as connection:
        found = user_ids.shown(loaded(), connection, agent_status.shown(connection, agent))
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
    """Return the agent's active assignment."""
    who.must_act_for(agent)
    with reading(here) as connection:
        row = (
            connection.execute(
                select(*HELD_COLUMNS).where(
                    Assignment.agent_id == agent, Assignment.state == ACTIVE
                )
            )
            .mappings()
            .one_or_none()
        )
        found = None if row is None else user_ids.shown(loaded(), connection, held(row))
    if found is None:
        raise refused(HTTPStatus.NOT_FOUND, Code.UNKNOWN_ASSIGNMENT, f"agent {agent} holds nobody")
    return found
