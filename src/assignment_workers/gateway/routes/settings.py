"""Routes of the operational settings: those in force, their versions, and a change."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import Query, Request, Response

from assignment_workers.assignment import settings_versions
from assignment_workers.assignment.answers import Code, Done
from assignment_workers.assignment.operational_settings import misfit
from assignment_workers.assignment.operator_actions import RequestedAction
from assignment_workers.assignment.settings_versions import InForce, StoredVersion
from assignment_workers.client import commands
from assignment_workers.gateway.bodies import SettingsBody, VersionsQuery
from assignment_workers.gateway.dependencies import (
    ALWAYS,
    TIMEOUT,
    WATCHED,
    Here,
    Operator,
    reading,
    routes,
)
from assignment_workers.gateway.operator_actions import outcome_of, recorded
from assignment_workers.gateway.problems import refused, responses
from assignment_workers.policy.process_dialer import loaded

ROUTES = routes()


@ROUTES.get(
    "/v1/settings",
    tags=["operators"],
    response_model=InForce,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def settings(here: Here) -> InForce:
    """Return the operational settings in force, each with the values that it accepts."""
    with reading(here) as connection:
        return settings_versions.shown(connection, loaded(), here.settings)


@ROUTES.get(
    "/v1/settings/versions",
    tags=["operators"],
    response_model=list[StoredVersion],
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def settings_history(here: Here, query: Annotated[VersionsQuery, Query()]) -> list[StoredVersion]:
    """Return the newest changes of settings: operator, time, reason, old and new value of each."""
    with reading(here) as connection:
        return settings_versions.history(connection, most=query.most)


@ROUTES.put(
    "/v1/settings",
    tags=["operators"],
    response_model=Done,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def change_settings(
    request: Request, body: SettingsBody, here: Here, who: Operator
) -> Response:
    """Change operational settings. If one of the changes is refused, none is made.

    Each sequencer uses the new values from its next transaction on, so all later claims use them.
    Any other process uses them when it reads the settings next, for example in its next job.
    `value` null removes the stored value. A dialer queue or a team without a value of its own has
    the value that is set for all. If no value is set for all, the default applies.
    """
    for each in body.changes:
        if wrong := misfit(each, loaded().policies):
            raise refused(HTTPStatus.UNPROCESSABLE_ENTITY, Code.MALFORMED, wrong)
    changes = [each.model_dump() for each in body.changes]
    command = commands.change_settings(changes, who.name, body.why)
    subject = body.changes[0].name if len(body.changes) == 1 else "several"
    action = RequestedAction("settings", subject, who.name, body.why)
    _, answer = await recorded(
        here.engine,
        action,
        lambda at: here.dispatcher.ask(request, command.at(at), TIMEOUT),
        outcome_of,
    )
    here.read_cache.forget()
    return answer
