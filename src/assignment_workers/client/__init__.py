"""The Python clients: `Client` over Celery and `HttpClient` over HTTP.

`AsyncClient` and `AsyncHttpClient` are the same for asyncio.

with Client.connect(redis_url) as client:
    match client.request_next(agent_id=26, queue="sales"):
        case Assigned(assignment=held):
            client.complete(held.id, agent_id=26, outcome="no_answer", version=held.version)
        case Empty(retry_after=seconds):
            ...
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from assignment_workers.assignment.answers import (
    Assigned,
    Empty,
    Finished,
    Held,
    Paused,
    Refused,
    TooLate,
    Unavailable,
)

if TYPE_CHECKING:
    from assignment_workers.client.aio import AsyncClient
    from assignment_workers.client.assignment_client import (
        AssignmentClient,
        AsyncAssignmentClient,
        Hold,
    )
    from assignment_workers.client.client import Client
    from assignment_workers.client.event_stream import EventsRefused, StreamedEvent
    from assignment_workers.client.http import HttpClient
    from assignment_workers.client.http_aio import AsyncHttpClient
    from assignment_workers.client.reading import Built

    Asking = AssignmentClient
    """The former name of `AssignmentClient`. The next release removes it."""

# A program that configures no logging sees no log lines of this library.
logging.getLogger("assignment_workers").addHandler(logging.NullHandler())

__all__ = [
    "Asking",
    "Assigned",
    "AssignmentClient",
    "AsyncAssignmentClient",
    "AsyncClient",
    "AsyncHttpClient",
    "Built",
    "Client",
    "Empty",
    "EventsRefused",
    "Finished",
    "Held",
    "Hold",
    "HttpClient",
    "Paused",
    "Refused",
    "StreamedEvent",
    "TooLate",
    "Unavailable",
]

_HOMES = {
    "Asking": ("assignment_client", "AssignmentClient"),
    "AssignmentClient": ("assignment_client", "AssignmentClient"),
    "AsyncAssignmentClient": ("assignment_client", "AsyncAssignmentClient"),
    "AsyncClient": ("aio", "AsyncClient"),
    "AsyncHttpClient": ("http_aio", "AsyncHttpClient"),
    "Built": ("reading", "Built"),
    "Client": ("client", "Client"),
    "EventsRefused": ("event_stream", "EventsRefused"),
    "Hold": ("assignment_client", "Hold"),
    "HttpClient": ("http", "HttpClient"),
    "StreamedEvent": ("event_stream", "StreamedEvent"),
}
"""Maps a public name to the module and the attribute that are imported on its first use.

So a program that uses only `HttpClient` does not import the Redis client, and a program that uses
only `Client` does not import the HTTP client.
"""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, public = _HOMES[name]
    found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), public)
    return found
