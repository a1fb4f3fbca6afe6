"""Routes of dead letters: list, read, send again, dismiss."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from assignment_workers.assignment.answers import Code, Done
from assignment_workers.assignment.dead_letters import Letter, letter, letters
from assignment_workers.assignment.operator_actions import WHY_AT_MOST, RequestedAction
from assignment_workers.client import Unavailable
from assignment_workers.gateway.bodies import Sent
from assignment_workers.gateway.command_dispatcher import response
from assignment_workers.gateway.dashboard.acts import dismissed, send_again
from assignment_workers.gateway.dependencies import (
    ALWAYS,
    WATCHED,
    Here,
    Operator,
    Said,
    reading,
    routes,
)
from assignment_workers.gateway.operator_actions import outcome_of, recorded
from assignment_workers.gateway.problems import refused, responses

ROUTES = routes()

NAMED_AT_MOST = 1_000
"""The greatest number of dead letters that one call may name. A request body with this many numbers
is smaller than the limit for bodies.
"""
LISTED_AT_MOST = 1_000

Number = Annotated[int, Path(ge=1, le=2**63 - 1, description="The dead letter's number.")]


class DeadLetterLine(BaseModel):
    """A dead letter without the text of its message, which may contain notes."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    at: datetime
    celery_queue: str | None
    task: str | None
    task_id: str | None
    state: str = Field(examples=["to_send_again"])
    replayable: bool = Field(description="Whether it can be sent again.")
    attempts: int = Field(description="How often it could not be handled.")
    replayed_at: datetime | None
    replayed_as: str | None
    dismissed_at: datetime | None
    dismissed_by: str | None


class DeadLetterWhole(DeadLetterLine):
    """A dead letter with the text of its message and the error."""

    body: str
    error: str
    dismissed_why: str | None


class DeadLettersQuery(BaseModel):
    """The query parameter of the list of dead letters: the greatest number to return."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=LISTED_AT_MOST)] = 100


class DismissBody(BaseModel):
    """The dead letters to dismiss, and the reason."""

    model_config = ConfigDict(extra="forbid")

    numbers: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=2**63 - 1)]],
            Field(min_length=1, max_length=NAMED_AT_MOST),
        ]
        | None
    ) = Field(
        None,
        description="Absent: the oldest 10,000 neither sent again nor dismissed.",
        examples=[[7, 8]],
    )
    why: Annotated[str, Field(min_length=1, max_length=WHY_AT_MOST, pattern=r"^[^\x00]*$")] = Field(
        description="The recorded reason.", examples=["a probe of the security team"]
    )


@ROUTES.get(
    "/v1/dead-letters",
    tags=["operators"],
    response_model=list[DeadLetterLine],
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
    dependencies=[WATCHED],
)
def dead_letters(here: Here, query: Annotated[DeadLettersQuery, Query()]) -> list[Letter]:
    """Return the newest dead letters, without the text of their messages."""
    with reading(here) as connection:
        return list(letters(connection, limit=query.limit))


# A separate path, because below `dead-letters` it would be read as a number.
@ROUTES.post(
    "/v1/dead-letter-dismissals",
    tags=["operators"],
    response_model=Done,
    responses=responses(*ALWAYS, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def dismiss(body: DismissBody, here: Here, who: Operator) -> Done:
    """Dismiss dead letters; they stay stored until their retention ends."""

    async def do(_: int) -> list[int]:
        return await dismissed(here.engine, body.numbers, who.name, body.why)

    subject = "all" if body.numbers is None else ", ".join(map(str, body.numbers))[:WHY_AT_MOST]
    action = RequestedAction("dismiss", subject, who.name, body.why)
    _number, taken = await recorded(here.engine, action, do, lambda _: "done")
    return Done(counts={"dismissed": len(taken)})


@ROUTES.get(
    "/v1/dead-letters/{number}",
    tags=["operators"],
    response_model=DeadLetterWhole,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
def dead_letter(number: Number, here: Here, _: Operator) -> Letter:
    """Return one dead letter with the text of its message."""
    return _found(here, number)


@ROUTES.post(
    "/v1/dead-letters/{number}/replay",
    tags=["operators"],
    status_code=HTTPStatus.ACCEPTED,
    response_model=Sent,
    responses=responses(*ALWAYS, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
async def replay(number: Number, here: Here, who: Operator, body: Said = None) -> Response:
    """Send the message of a dead letter again, under a new id."""

    async def do(_: int) -> Response:
        sent = await send_again(here.dispatcher.client, here.engine, number)
        if isinstance(sent, Unavailable):
            return response(sent.model_dump(mode="json"))
        return JSONResponse({"task_id": sent}, status_code=HTTPStatus.ACCEPTED)

    action = RequestedAction("replay", str(number), who.name, body.why if body else None)
    return (await recorded(here.engine, action, do, outcome_of))[1]


def _found(here: Here, number: int) -> Letter:
    with reading(here) as connection:
        found = letter(connection, number)
    if found is None:
        raise refused(HTTPStatus.NOT_FOUND, Code.MALFORMED, f"no dead letter {number}")
    return found
