"""Errors as RFC 9457 problem details, and the HTTP status of refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from math import ceil
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from assignment_workers.assignment.answers import Code
from assignment_workers.errors import plain
from assignment_workers.gateway.bodies import RequestId

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "X-Request-Id"
ASKED_AT = "/v1/requests"


class Wrong(BaseModel):
    """One error in the data that the caller sent. The data itself is not repeated."""

    where: str
    message: str


class ProblemDetails(BaseModel):
    """A problem (RFC 9457).

    If `outcome` is `refused`, `code` names the reason. With `retry_after`, the same call may
    succeed after that number of seconds. Without `retry_after`, the same call is refused again as
    long as the reason lasts. When the reason has gone, the same call may succeed.

    A request for a user is an exception. A refusal without `retry_after` may be stored under the
    request's `request_id`. A later request with this `request_id` then gets the stored refusal,
    even if the reason has gone. Therefore, use a new `request_id` after such a refusal.

    If `outcome` is `unavailable`, the same call may succeed after `retry_after` seconds. Other
    problems, such as an unknown path, have no `outcome`.
    """

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="For a person: what was wrong and what is accepted.")
    outcome: Literal["refused", "unavailable"] | None = None
    code: Code | None = Field(None, description="Why it was refused, for programs.")
    request_id: str | None = Field(None, description="The id of a request for a user.")
    retry_after: float | None = Field(None, description="Seconds after which it may succeed.")
    errors: list[Wrong] | None = Field(None, description="All errors in the data that was sent.")


class Problem(Exception):
    """Ends the handling of a request with this HTTP status and problem details (RFC 9457)."""

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

    def response(self, **facts: object) -> JSONResponse:
        """Return the response for this problem, with `facts` added to its details."""
        return problem(self.status, self.detail, headers=self.headers, **self.facts, **facts)


def refused(
    status: HTTPStatus,
    code: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    retry_after: float | None = None,
) -> Problem:
    """Return the problem for a refusal.

    `retry_after`: the seconds after which the same call may succeed. None: no such time is known,
    because the call is refused as long as the reason lasts.
    """
    if retry_after is not None:
        headers = (headers or {}) | {"Retry-After": str(max(1, ceil(retry_after)))}
    facts = {"outcome": "refused", "code": code, "retry_after": retry_after}
    return Problem(status, detail, headers=headers, **facts)


def unavailable(
    detail: str,
    *,
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE,
    retry_after: float = 2.0,
) -> Problem:
    """Return the problem for a call that may succeed after `retry_after` seconds."""
    return Problem(
        status,
        detail,
        headers={"Retry-After": str(max(1, ceil(retry_after)))},
        outcome="unavailable",
        retry_after=retry_after,
    )


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, **facts: object
) -> JSONResponse:
    """Return a response with problem details (RFC 9457).

    `facts` are further fields of the details; a field that is None is left out.
    """
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
    Code.ON_BREAK: HTTPStatus.CONFLICT,
    Code.OFFLINE: HTTPStatus.CONFLICT,
    Code.SESSION_LIMIT: HTTPStatus.CONFLICT,
    Code.BREAK_DUE: HTTPStatus.CONFLICT,
    Code.CALL_GAP: HTTPStatus.CONFLICT,
    Code.REQUEST_ID_TAKEN: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNKNOWN_ASSIGNMENT: HTTPStatus.NOT_FOUND,
    Code.NOT_OWNER: HTTPStatus.CONFLICT,
    Code.NOT_ACTIVE: HTTPStatus.CONFLICT,
    Code.STALE_VERSION: HTTPStatus.CONFLICT,
    Code.UNKNOWN_OUTCOME: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.FORBIDDEN: HTTPStatus.FORBIDDEN,
}
"""The HTTP status of a refusal, by its code; 409 for any other code."""


def responses(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the problems with these statuses, for a route."""
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
                        **EXAMPLES.get(status, {"detail": status.description}),
                    },
                }
            },
        }
        for status in statuses
    }


_ONE = "01932c07-1f00-7000-8000-000000000000"
EXAMPLES: dict[HTTPStatus, dict[str, Any]] = {
    HTTPStatus.UNAUTHORIZED: {
        "detail": "a token is needed: Authorization: Bearer ...",
        "outcome": "refused",
        "code": "unauthenticated",
    },
    HTTPStatus.FORBIDDEN: {
        "detail": "this token acts for agent 26 alone",
        "outcome": "refused",
        "code": "forbidden",
    },
    HTTPStatus.NOT_FOUND: {
        "detail": f"no assignment {_ONE}",
        "outcome": "refused",
        "code": "unknown_assignment",
    },
    HTTPStatus.CONFLICT: {
        "detail": f"assignment {_ONE} is another agent's",
        "outcome": "refused",
        "code": "not_owner",
    },
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: {
        "detail": "a body may have 65536 bytes at the most",
    },
    HTTPStatus.UNPROCESSABLE_ENTITY: {
        "detail": "body.agent_id: Input should be greater than or equal to 1",
        "outcome": "refused",
        "code": "malformed",
        "errors": [
            {
                "where": "body.agent_id",
                "message": "Input should be greater than or equal to 1",
            }
        ],
    },
    HTTPStatus.TOO_MANY_REQUESTS: {
        "detail": "agent 26 asks too often",
        "outcome": "unavailable",
        "retry_after": 0.05,
    },
    HTTPStatus.SERVICE_UNAVAILABLE: {
        "detail": "no answer within 10 s",
        "outcome": "unavailable",
        "retry_after": 1.0,
    },
}


def _methods(request: Request) -> list[str]:
    """Return the HTTP methods of all routes that match the path of the request."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


def handle(app: FastAPI, authenticate: Callable[[Request], Awaitable[object]]) -> None:
    """Register handlers that answer each error of a caller with problem details (RFC 9457).

    `authenticate`: a function that raises `Problem` for a caller who may not call the gateway.
    FastAPI may parse the body before it checks the caller's token. Therefore the handlers call
    `authenticate` before they report errors in the data of a call. If `authenticate` raises
    `Problem`, that problem is the answer, and the errors are not reported.
    """

    @app.exception_handler(Problem)
    async def ours(request: Request, error: Problem) -> JSONResponse:
        return _identified(error, await _request_id(request))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.BAD_REQUEST:  # a body that is not text
            return await malformed(request, [Wrong(where="body", message=str(error.detail))])
        headers = error.headers
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {**(headers or {}), "Allow": ", ".join(_methods(request))}
        return problem(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(RecursionError)
    async def deep(request: Request, _: RecursionError) -> JSONResponse:
        return await malformed(request, [Wrong(where="body", message="nested too deep")])

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # The data is not repeated, because it may contain an agent's notes about a user.
        errors = [
            Wrong(where=".".join(map(str, each["loc"])), message=plain(each["msg"]))
            for each in error.errors()
        ]
        return await malformed(request, errors)

    async def malformed(request: Request, errors: list[Wrong]) -> JSONResponse:
        name = await _request_id(request)
        try:
            await authenticate(request)
        except Problem as refusal:
            return _identified(refusal, name)
        first = errors[0]
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        told = refused(status, Code.MALFORMED, f"{first.where}: {first.message}")
        told.facts["errors"] = [each.model_dump() for each in errors]
        return _identified(told, name)


def _identified(error: Problem, request_id: str | None) -> JSONResponse:
    response = error.response(request_id=request_id)
    if request_id is not None:
        response.headers[REQUEST_ID] = request_id
    return response


async def _request_id(request: Request) -> str | None:
    """Return the request id, if this HTTP request asks for a user to call.

    It is the id that the client sent or, without one, the id that the gateway made. None for other
    HTTP requests, and for an invalid id.
    """
    made: str | None = getattr(request.state, "request_id", None)
    if made is not None or request.url.path != ASKED_AT:
        return made
    try:
        body = await request.json()
        return _REQUEST_ID.validate_python(body["request_id"]) if isinstance(body, dict) else None
    except (KeyError, ValueError, ValidationError, RecursionError, ClientDisconnect):
        return None


_REQUEST_ID: TypeAdapter[str] = TypeAdapter(RequestId)
