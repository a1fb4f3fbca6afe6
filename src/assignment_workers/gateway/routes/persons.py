"""Routes of operators for a person's rights: export and erasure of stored data."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import Request, Response
from pydantic_core import to_json

from assignment_workers.assignment import person, user_ids
from assignment_workers.assignment.answers import Code, Done
from assignment_workers.assignment.calling import numbers_of
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.operator_actions import RequestedAction
from assignment_workers.assignment.suppressions import FORGOTTEN
from assignment_workers.client import commands
from assignment_workers.client.erasing import forget_results_at
from assignment_workers.errors import UsageError
from assignment_workers.gateway.dependencies import (
    ALWAYS,
    TIMEOUT,
    Gateway,
    Here,
    Operator,
    Said,
    UserPath,
    reading,
    routes,
)
from assignment_workers.gateway.operator_actions import outcome_of, recorded
from assignment_workers.gateway.problems import refused, responses, unavailable
from assignment_workers.identity import UserId
from assignment_workers.policy.process_dialer import loaded

ROUTES = routes()


@ROUTES.get(
    "/v1/users/{user:path}/export",
    tags=["operators"],
    response_model=person.Stored,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def export_user(user: UserPath, here: Here, who: Operator) -> Response:
    """Return all stored data of a user, by table. The call is recorded as an operator's action."""

    def read() -> Response:
        with reading(here) as connection:
            number = user_ids.number_of(loaded(), connection, user)
            found = person.export(connection, loaded(), number, numbers_of(here.settings).reader)
        return Response(to_json(found), media_type="application/json")

    action = RequestedAction("person_export", str(user), who.name, None)
    return (await recorded(here.engine, action, lambda _: asyncio.to_thread(read), outcome_of))[1]


@ROUTES.post(
    "/v1/users/{user:path}/forget",
    tags=["operators"],
    response_model=Done,
    responses=responses(*ALWAYS, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def forget_user(
    request: Request, user: UserPath, here: Here, who: Operator, body: Said = None
) -> Response:
    """Erase the free text about a user and the user's phone numbers; never offer the user again.

    A number that is on the do-not-contact list stays there, but only as a hash with a secret key.
    The answer is 503 if there is such a number and no key is configured, and 409 while an agent
    holds the user. In both cases nothing is erased, but the user is not offered again.
    """

    async def do(at: int) -> Response:
        command = commands.do_not_contact(user, None, FORGOTTEN, who.name).at(at)
        # What waits on another lane's queue may name the person too.
        others = lanes_of(here.settings).celery_queues[1:]
        for each in (command, *map(commands.passing, others)):
            answer = await here.dispatcher.ask(request, each, TIMEOUT)
            if answer.status_code != HTTPStatus.OK:
                return answer
        return await asyncio.to_thread(_forget, here, user)

    action = RequestedAction("person_forget", str(user), who.name, body.why if body else None)
    return (await recorded(here.engine, action, do, outcome_of))[1]


def _forget(here: Gateway, user: UserId) -> Response:
    with reading(here) as connection:
        number = user_ids.number_of(loaded(), connection, user)
        held = person.is_held(connection, number)
        if held is not None:
            raise refused(
                HTTPStatus.CONFLICT,
                Code.NOT_ACTIVE,
                f"user {user} is held by agent {held}: release the assignment first",
            )
        reader = numbers_of(here.settings).reader
        known = person.find(connection, loaded(), number, reader)
        try:
            counts = person.forget(connection, loaded(), here.crm, number, reader)
        except UsageError as error:
            raise unavailable(str(error)) from error
        connection.commit()
    here.read_cache.forget()
    counts["results"] = forget_results_at(here.settings.redis_url, known)
    return Response(to_json(Done(counts=counts)), media_type="application/json")
