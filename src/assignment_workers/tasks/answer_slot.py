"""The answer of one execution, passed from the task to the worker's request.

Celery passes its own rendering of a result to the worker's request, and not the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NAME = "answer_slot"


@dataclass
class AnswerSlot:
    """Holds the answer of one run of a task.

    The worker's request creates the slot, the task fills it, and the request shows its content.
    """

    answer: object = None

    def put_into(self, headers: dict[str, Any]) -> None:
        """Add this slot to `headers`, the headers that the worker passes to the task."""
        headers[_NAME] = self


def fill(request: object, answer: object) -> None:
    """Put `answer` into the slot in the task's request; do nothing if no worker runs the task."""
    slot = getattr(request, _NAME, None)
    if isinstance(slot, AnswerSlot):
        slot.answer = answer
