"""Asking from Python, over Celery: `Client.request_next` and what follows it.

with Client.connect(redis_url) as client:
    match client.request_next(agent_id=26, queue="unsigned_users"):
        case Assigned(assignment=held):
            client.complete(held.id, agent_id=26, outcome="no_answer", version=held.version)
        case Empty(retry_after=seconds):
            ...
"""

from __future__ import annotations

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
from assignment_workers.client.client import Client

__all__ = [
    "Assigned",
    "Client",
    "Empty",
    "Finished",
    "Held",
    "Paused",
    "Refused",
    "TooLate",
    "Unavailable",
]
