"""The dependencies of routes: the parts of the gateway, the caller, and the error responses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from random import Random
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Body, Depends, Path, Request, params
from fastapi.routing import APIRoute
from pydantic import AfterValidator, WithJsonSchema
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.errors import CrmUnavailable, UsageError
from assignment_workers.gateway.auth.callers import ACTING, OPERATING, WATCHING, Caller, Callers
from assignment_workers.gateway.bodies import ActBody
from assignment_workers.gateway.command_dispatcher import CommandDispatcher
from assignment_workers.gateway.events.live import Live
from assignment_workers.gateway.heartbeats import Heartbeats
from assignment_workers.gateway.problems import unavailable
from assignment_workers.gateway.read_cache import ReadCache
from assignment_workers.gateway.redaction import RedactedRoute
from assignment_workers.gateway.system_health import SystemHealth
from assignment_workers.identity import UserId
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import TokenRole
from assignment_workers.settings import Settings

log = structlog.get_logger()

TIMEOUT = timedelta(seconds=10)


def routes(kind: type[APIRoute] = RedactedRoute) -> APIRouter:
    """Return a router whose JSON answers are redacted, unless `kind` is another route class.

    In the OpenAPI document, the operation id of a route is the name of its function, because
    generated clients name their methods by the operation ids.
    """
    return APIRouter(generate_unique_id_function=lambda route: route.name, route_class=kind)


@dataclass
class Gateway:
    """The parts of the gateway that the routes use, such as the client and the database."""

    engine: Engine
    crm: Crm | None
    """The external CRM; None if the CRM is in our own database."""
    dispatcher: CommandDispatcher
    callers: Callers
    live: Live
    read_cache: ReadCache
    heartbeats: Heartbeats
    randomness: Random
    settings: Settings
    health: SystemHealth


async def _gateway(request: Request) -> Gateway:  # async: a plain function would run in a thread
    found: Gateway = request.app.state.gateway
    return found


Here = Annotated[Gateway, Depends(_gateway)]


async def _caller(request: Request, here: Here) -> Caller:
    return await here.callers.caller(request)


Who = Annotated[Caller, Depends(_caller)]


def _of(roles: frozenset[TokenRole]) -> params.Depends:
    """Return a dependency that requires one of these roles, before the body is read."""

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


def _user(given: str) -> UserId:
    try:
        return user_ids.read(loaded(), given)
    except UsageError as error:
        raise ValueError(str(error)) from None


UserPath = Annotated[
    str,
    AfterValidator(_user),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}),
    Path(description="The CRM's id of the user."),
]
"""A user's id in a path, converted to a number if the ids of the dialer's CRM are numbers."""
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


@contextmanager
def reading(here: Gateway) -> Iterator[Connection]:
    """Yield a database connection for reads.

    Raises `Problem` 503 if the database or CRM is down.
    """
    try:
        with here.engine.connect() as connection:
            yield connection
    except CrmUnavailable as error:
        log.warning("unavailable", reason=str(error))
        raise unavailable(error.general, retry_after=error.retry_after) from error
    except (DBAPIError, PoolTimeout) as error:
        raise unavailable("the database cannot answer") from error
