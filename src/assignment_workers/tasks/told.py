"""What Flower is told of a message: ids and words of ours, and nothing that an agent wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from celery.worker.request import Request
from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from assignment_workers.tasks.door import DoorTask

NOT_SHOWN = "(not shown: there may be notes in it)"
NOTED = frozenset({"assignment.complete", "assignment.finish_many"})
"""Tasks whose messages may hold notes. Our clients leave them out of what they say of a message."""
ANSWERS_SHOWN_AT_MOST = 4
ANSWER_SHOWN_AT_MOST = 240
"""Characters."""
_NAME = "notes"


class ToldRequest(Request):
    """Celery's own, but for what it says of messages that other programs sent with notes in them.

    Arguments by position are not told at all: what they say does not tell which are the notes. Of
    an answer the beginning is told, as Python writes it: Celery's own way takes a tenth of a claim.
    """

    _argsrepr: str
    _kwargsrepr: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.name in NOTED:
            if self._argsrepr not in {"", "()", "[]"}:
                self._argsrepr = NOT_SHOWN
            if _NAME in self._kwargsrepr:
                self._kwargsrepr = NOT_SHOWN

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's own name
        """An event, with the answer where the task has given one."""
        if type == "task-succeeded":
            fields["result"] = _beginning(cast("DoorTask", self.task).answered)
        super().send_event(type, **fields)


def _beginning(answer: object) -> str:
    some = answer[:ANSWERS_SHOWN_AT_MOST] if isinstance(answer, list) else answer
    return repr(to_jsonable_python(some))[:ANSWER_SHOWN_AT_MOST]
