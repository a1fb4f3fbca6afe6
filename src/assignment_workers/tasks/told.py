"""What Flower is told of a message: ids and words of ours, and nothing that an agent wrote."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

NOT_SHOWN = "(not shown: there may be notes in it)"
NOTED = frozenset({"assignment.complete", "assignment.finish_many"})
"""Tasks whose messages may hold notes. Our clients leave them out of what they say of a message."""
_NAME = "notes"


class ToldRequest(Request):
    """Celery's own, but for what it says of messages that other programs sent with notes in them.

    Arguments by position are not told at all: what they say does not tell which are the notes.
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
