"""The Python clients: `Client` over Celery, `AsyncClient` for asyncio, `HttpClient` over HTTP.

with Client.connect(redis_url) as client:
    match client.request_next(agent_id=26, queue="unsigned_users"):
        case Assigned(assignment=held):
            client.complete(held.id, agent_id=26, outcome="no_answer", version=held.version)
        case Empty(retry_after=seconds):
            ...
"""

from __future__ import annotations

import logging

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
from assignment_workers.client.aio import AsyncClient
from assignment_workers.client.assignment_client import AssignmentClient, Hold
from assignment_workers.client.client import Client
from assignment_workers.client.http import HttpClient
from assignment_workers.client.reading import Built

# A program that configures no logging sees no log lines of this library.
logging.getLogger("assignment_workers").addHandler(logging.NullHandler())

Asking = AssignmentClient
"""The former name of `AssignmentClient`. The next release removes it."""

__all__ = [
    "Asking",
    "Assigned",
    "AssignmentClient",
    "AsyncClient",
    "Built",
    "Client",
    "Empty",
    "Finished",
    "Held",
    "Hold",
    "HttpClient",
    "Paused",
    "Refused",
    "TooLate",
    "Unavailable",
]
