"""Redaction of free text and phone numbers by role, for pages, streams and JSON answers.

Only operators may read free text and phone numbers. If the gateway requires no API tokens, every
caller may. The filter is an allow-list of texts. A text is shown if the name of its field is in the
list `_OF_OURS`. A text is also shown if it is a time or a UUID, or if `_passes` allows it for its
field, such as a single word in `outcome`. Any other text is hidden. So the texts of a new column
are hidden until the name of their field is listed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import date, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import to_json

from assignment_workers.assignment.operational_settings import OPERATIONAL
from assignment_workers.schema.tables import SuppressionKind

T = TypeVar("T")

HIDDEN = "(for operators)"
"""The text that replaces a hidden text."""
_JSON = "application/json"

_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)?")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WORD = re.compile(r"[A-Za-z][a-z]*(_[A-Za-z]+)*")
_COUNTED_WORD = re.compile(r"\d+ times [a-z_]+")
_TASK = re.compile(
    r"(agent|assignment|audit|callbacks?|crm|doctor|generation|history|missed_calls?|outbox|phones"
    r"|queue|scores|user)"
    r"\.[a-z_]+"
)
_ACTOR = re.compile(
    r"agent \d+|token [0-9a-f]+|anybody|claim|heartbeat|doctor|[a-z]+\.[a-z_]+|uid \d+"
)
_SUBJECT = re.compile(rf"\d{{1,18}}( [a-z_]+)?|[a-z]+(_[a-z]+)*|a phone number|{_ID.pattern}")

_OF_OURS = frozenset(
    {
        "action",
        "actions",
        "allowed_queues",
        "asked_queue",
        "broken",
        "callback_id",
        "celery_queue",
        "check",
        "code",
        "component",
        "constraint",
        "conversion",
        "conversion_id",
        "counts",
        "crm",
        "current_queue_type",
        "done",
        "error_code",
        "examples",
        "finding",
        "first_step",
        "headline",
        "health",
        "host",
        "id",
        "in_force",
        "interface",
        "job",
        "kind",
        "lane",
        "last_outcome",
        "live",
        "meaning",
        "means",
        "missed_call_id",
        "moved_from",
        "moved_to",
        "name",
        "others",
        "period",
        "queue",
        "queue_name",
        "queues",
        "reassigned_from",
        "replayed_as",
        "request_id",
        "role",
        "rule",
        "runbook",
        "runbook_path",
        "sent_by",
        "source",
        "source_id",
        "state",
        "status",
        "task_id",
        "team",
        "title",
        "trigger",
        "user",
        "user_id",
        "verdict",
        "version",
        "wrong",
    }
)
"""The names of the fields whose texts are shown to every caller.

The texts of these fields are ids, names (such as that of a team), or words and sentences of this
package. They are never free text.
"""
_TYPED_REASONS = frozenset({SuppressionKind.DO_NOT_CONTACT, SuppressionKind.CLOSED})


def redacted(value: T, *, sees_text: bool) -> T:
    """Return a copy of `value` in which free text and phone numbers are hidden.

    `sees_text`: True if the reader may read free text; then `value` itself is returned. Raises
    `TypeError` for objects other than plain values, mappings, lists, dataclasses and models.
    """
    return value if sees_text else cast(T, _redacted("", value, {}))


def _redacted(name: str, value: object, beside: Mapping[Any, Any]) -> object:
    match value:
        case str():
            return value if _passes(name, value, beside) else HIDDEN
        case None | bool() | int() | float() | date() | timedelta() | UUID():
            return value
        case Mapping():
            return {key: _redacted(str(key), each, value) for key, each in value.items()}
        case list() | tuple():
            return [_redacted(name, each, beside) for each in value]
        case BaseModel():
            # The fields, not a dump, because pages also read properties and nested models.
            said = {key: getattr(value, key) for key in type(value).model_fields}
            hidden = {key: _redacted(key, each, said) for key, each in said.items()}
            return value.model_copy(update=hidden)
        case _ if is_dataclass(value) and not isinstance(value, type):
            said = {each.name: getattr(value, each.name) for each in fields(value)}
            hidden = {key: _redacted(key, each, said) for key, each in said.items()}
            return replace(value, **hidden)
        case _:
            raise TypeError(f"{name}: a {type(value).__name__} cannot be redacted")


def _passes(name: str, text: str, beside: Mapping[str, Any]) -> bool:
    if not text or name in _OF_OURS or _INSTANT.fullmatch(text) or _ID.fullmatch(text):
        return True
    match name:
        case "reason":
            return beside.get("kind") not in _TYPED_REASONS and bool(
                _WORD.fullmatch(text) or _COUNTED_WORD.fullmatch(text)
            )
        case "why":  # of an explanation; elsewhere it is free text
            return "means" in beside and bool(_WORD.fullmatch(text))
        case "outcome":
            return bool(_WORD.fullmatch(text))
        case "by" | "who" | "paused_by":
            return bool(_ACTOR.fullmatch(text))
        case "subject":
            return bool(_SUBJECT.fullmatch(text))
        case "value" | "default" | "before" | "after" | "accepted" | "scope" | "team":
            # Of an operational setting: checked at the door, so no free text.
            return beside.get("name") in OPERATIONAL
        case "task" | "head_task":
            return bool(_TASK.fullmatch(text))
        case _:
            return False


class RedactedRoute(APIRoute):
    """A route whose JSON response is redacted according to the role of the caller.

    Problem details are not redacted, because the only free text in them is what the caller sent.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, wrapped so that its JSON is redacted for the caller."""
        usual = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return for_caller(request, await usual(request))

        return handle


def for_caller(request: Request, response: Response) -> Response:
    """Return the response, with its JSON redacted for the caller of the request.

    If the caller is not known, all free text is hidden.
    """
    caller = getattr(request.state, "caller", None)
    sees_text = caller is not None and caller.sees_text
    if sees_text or response.headers.get("content-type") != _JSON:
        return response
    body = to_json(redacted(json.loads(bytes(response.body)), sees_text=False))
    response.body = body
    response.headers["content-length"] = str(len(body))
    return response
