"""The answer of one execution, passed from the task to the worker's request.

Celery passes its own rendering of a result to the worker's request, and not the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NAME = "answer_slot"


@dataclass
class AnswerSlot:
    """A place for the answer of one execution. The worker's request makes it, the task fills it."""

    answer: object = None

    def put_into(self, headers: dict[str, Any]) -> None:
        """Add the slot to the headers that the worker passes to the task."""
        headers[_NAME] = self


def fill(request: object, answer: object) -> None:
    """Put the answer into the slot of the task's request, if a worker executes the task."""
    slot = getattr(request, _NAME, None)
    if isinstance(slot, AnswerSlot):
        slot.answer = answer
