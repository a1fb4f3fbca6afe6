"""Errors as RFC 9457 problem details, and what a refusal is in HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from assignment_workers.assignment.answers import Code

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457). `outcome`, `code` and `request_id` where there was an answer."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    outcome: str | None = None
    code: str | None = None
    request_id: str | None = None
    retry_after: float | None = Field(None, description="Seconds until it may be worth a try.")


class Problem(Exception):
    """A request ends here, with this status and these facts."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        **facts: object,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.facts = facts

    def response(self) -> JSONResponse:
        """As it is sent."""
        return problem(self.status, self.detail, headers=self.headers, **self.facts)


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, **facts: object
) -> JSONResponse:
    """A problem's response; facts that are None are left out."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        **{name: value for name, value in facts.items() if value is not None},
    }
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


STATUS_OF: dict[str, HTTPStatus] = {
    Code.MALFORMED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNKNOWN_AGENT: HTTPStatus.FORBIDDEN,
    Code.INACTIVE_AGENT: HTTPStatus.FORBIDDEN,
    Code.UNKNOWN_QUEUE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.QUEUE_NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    Code.REQUEST_ID_TAKEN: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNKNOWN_ASSIGNMENT: HTTPStatus.NOT_FOUND,
    Code.NOT_OWNER: HTTPStatus.CONFLICT,
    Code.NOT_ACTIVE: HTTPStatus.CONFLICT,
    Code.STALE_VERSION: HTTPStatus.CONFLICT,
    Code.UNKNOWN_OUTCOME: HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""What a refusal is in HTTP, by its code."""


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Problems that a route may answer with, for the OpenAPI document."""
    return {
        int(status): {
            "description": status.phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/ProblemDetails"},
                    "example": {
                        "type": "about:blank",
                        "title": status.phrase,
                        "status": int(status),
                        "detail": EXAMPLES.get(status, status.description),
                    },
                }
            },
        }
        for status in statuses
    }


EXAMPLES = {
    HTTPStatus.UNAUTHORIZED: "a token is needed: Authorization: Bearer ...",
    HTTPStatus.FORBIDDEN: "this token acts for agent 26 alone",
    HTTPStatus.NOT_FOUND: "no assignment 01932c07-1f00-7000-8000-000000000000",
    HTTPStatus.CONFLICT: "assignment 01932c07-1f00-7000-8000-000000000000 is another agent's",
    HTTPStatus.UNPROCESSABLE_ENTITY: "body.agent_id: Input should be greater than or equal to 1",
    HTTPStatus.TOO_MANY_REQUESTS: "agent 26 asks too often",
    HTTPStatus.SERVICE_UNAVAILABLE: "no answer within 10 s",
}


def handle(app: FastAPI) -> None:
    """Every error of `app` leaves as a problem."""

    @app.exception_handler(Problem)
    async def ours(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # What was given is not repeated: it may be what an agent wrote about a user.
        errors = [
            {"where": ".".join(map(str, each["loc"])), "message": each["msg"]}
            for each in error.errors()
        ]
        first = errors[0] if errors else {"where": "body", "message": "cannot be read"}
        return problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{first['where']}: {first['message']}",
            errors=jsonable_encoder(errors),
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> JSONResponse:
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the gateway failed; its log tells how")
