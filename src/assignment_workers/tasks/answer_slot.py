"""Passes the whole answer of a task to the worker's `Request` object, for the events in Flower.

Celery itself passes only a shortened text of the result to that object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NAME = "answer_slot"


@dataclass
class AnswerSlot:
    """Holds the answer of one run of a task.

    Our subclass of Celery's `Request` creates the slot, and the task fills it. Then the subclass
    sends the answer, in redacted form, in the event about the end of the task.
    """

    answer: object = None

    def put_into(self, headers: dict[str, Any]) -> None:
        """Add this slot to `headers`, the headers that the worker passes to the task."""
        headers[_NAME] = self


def fill(request: object, answer: object) -> None:
    """Put a task's answer into the slot that the worker has added to the task's headers.

    `request`: Celery's context of the running task, which has the headers. Does nothing if the task
    is called without a worker.
    """
    slot = getattr(request, _NAME, None)
    if isinstance(slot, AnswerSlot):
        slot.answer = answer
