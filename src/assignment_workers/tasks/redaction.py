"""Messages as shown in Flower and the log: only allowed ids, times and words of this package.

The sender's own rendering of a message (`argsrepr`, `kwargsrepr`, `shadow`) is not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from celery.worker.request import Request
from pydantic import BaseModel

if TYPE_CHECKING:
    from assignment_workers.tasks.task_handler import HandledTask

SHOWN = frozenset(
    {
        "accepted_at",
        "agent",
        "agent_id",
        "answer",
        "assignment",
        "assignment_id",
        "callback_at",
        "claimed_at",
        "code",
        "counts",
        "deadline",
        "generation",
        "generation_id",
        "id",
        "kind",
        "lane",
        "lease_expires_at",
        "move",
        "outcome",
        "queue",
        "rank",
        "released",
        "replayed",
        "request_id",
        "retry_after",
        "seconds",
        "sent_at",
        "since",
        "size",
        "source",
        "state",
        "trigger",
        "until",
        "user",
        "user_id",
        "users",
        "version",
    }
)
"""Names of arguments and facts whose values may be shown in Flower and the log, if the value has
the form of an id, a number, a time or a word.
"""
_FORM = re.compile(
    r"[A-Za-z]+([_.][A-Za-z]+)*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?"
)
_MANY = 4
"""Items of a list that are shown."""
_AT_MOST = 240
"""Characters of a rendering that are shown."""


class RedactedRequest(Request):
    """A Celery request with its own rendering of the message in events, the log and `inspect`.

    The rendering has the allowed arguments by name and the allowed facts of the answer. Of a
    failure it has the exception's class only.
    """

    _argsrepr: str
    _kwargsrepr: str
    _type: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.name = self._type  # type: ignore[misc]  # the stubs have it read-only
        names = cast("HandledTask", self.task).parameters[1:]
        self._argsrepr = ""
        self._kwargsrepr = shown(dict(zip(names, self.args, strict=False)) | self.kwargs)

    def info(self, safe: bool = False) -> Any:  # noqa: FBT001, FBT002 - Celery's
        """Return what `inspect active` and `inspect reserved` show, always in the safe form."""
        return super().info(safe=True)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's own name
        """Send an event, with the answer if the task has returned one."""
        if type == "task-succeeded":
            fields["result"] = shown(cast("HandledTask", self.task).answered)
        super().send_event(type, **fields)


def shown(value: object) -> str:
    """Return the allowed facts of a message or an answer, as a Python literal."""
    return repr(_allowed(value))[:_AT_MOST]


def _allowed(value: object) -> object:
    match value:
        case BaseModel():
            return _allowed({name: getattr(value, name) for name in type(value).model_fields})
        case Mapping():
            if isinstance(many := value.get("requests"), list) and many:
                return {"requests": len(many), "first": _allowed(many[0])}
            named = {name: value[name] for name in value if name in SHOWN}
            return {
                name: each for name, said in named.items() if (each := _allowed(said)) is not None
            }
        case list() | tuple():
            return [_allowed(each) for each in value[:_MANY]]
        case datetime() | UUID():
            return str(value)
        case str():
            return str(value) if _FORM.fullmatch(value) else "..."
        case bool() | int() | float():
            return value
        case _:
            return None
