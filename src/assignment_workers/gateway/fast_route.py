"""Routes that pass well-formed HTTP calls directly to their functions.

A call is here an HTTP request to the gateway, not a phone call. Agents' programs call these routes
for every user who is handed out. For each HTTP call, FastAPI resolves all arguments of the route's
function. If the call asks for a user, resolving the arguments costs as much as all other work of
the gateway for that call. Therefore these routes parse well-formed HTTP calls themselves.

The answers are not redacted: they are for agents, have only the types in `assignment.answers`, and
contain no text that a person typed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from assignment_workers.gateway.auth.callers import ACTING
from assignment_workers.gateway.dependencies import Actor, Gateway

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class FastRoute(APIRoute):
    """A FastAPI route that parses well-formed JSON calls faster than FastAPI does.

    Its endpoint must need an `Actor` (a token that may send agents' commands) and take only a body
    and path parameters. A malformed call is passed to FastAPI, so its error is the usual one.
    """

    def get_route_handler(self) -> Handler:
        """Return a handler that parses well-formed calls itself and passes others to FastAPI."""
        usual = super().get_route_handler()
        takes = get_type_hints(self.endpoint, include_extras=True)
        body: type[BaseModel] = takes["body"]
        path = {name: TypeAdapter[Any](takes[name]) for name in self.param_convertors}
        read = {"request", "here", "who", "body", "return", *path}
        if takes.keys() != read or takes["who"] != Actor or self.dependencies:
            raise TypeError(f"{self.path} takes what is not read here: it is no quick route")
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            said = await _understood(request, body, path)
            if said is None:
                return await usual(request)
            here: Gateway = request.app.state.gateway
            who = await here.callers.caller(request)
            who.must_be(ACTING)
            return await endpoint(request=request, here=here, who=who, **said)

        return handle


async def _understood(
    request: Request, body: type[BaseModel], path: Mapping[str, TypeAdapter[Any]]
) -> dict[str, Any] | None:
    """Return the validated arguments of the endpoint: the body and the path parameters.

    `body` is the body's model; `path` has a validator for each parameter. None if the call is
    malformed or incomplete.
    """
    if request.headers.get("content-type") != "application/json":
        return None
    try:
        said: dict[str, Any] = {
            name: kind.validate_python(request.path_params[name]) for name, kind in path.items()
        }
        said["body"] = body.model_validate_json(await request.body())
    except (ValidationError, ClientDisconnect):
        return None
    return said
