"""Redact messages for Flower and the log: show only ids, numbers, times and single words.

A value is shown only if the name of its argument or field is in `SHOWN`. A text with such a name is
shown only if it has the form of an id, a time or a single word. There are two additions. The counts
in a summary of an answer are shown under any name that is a single word. Of a batch message, the
number of requests and the request ids are shown.

The sender's own rendering of a message (`argsrepr`, `kwargsrepr`, `shadow`) is not used. Flower's
list shows the beginning of the arguments and of the result, so both begin with a summary, such as
`agent 12, sales` and `assigned user 3652`. A comma separates an agent or user in a summary from the
text after it, so that a search for `"agent 12,"` does not find agent 120.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import time
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from celery.worker.request import Request
from pydantic import BaseModel

from assignment_workers.tasks.answer_slot import AnswerSlot

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
"""The names of the facts that may be shown in Flower and the log.

A fact is an argument of a message or a field of an answer. Its value is shown if the value has the
form of an id, a number, a time or a word.
"""
_FORM = re.compile(
    r"[A-Za-z]+([_.][A-Za-z]+)*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?"
)
_USER = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The form that a text must have to be shown as a user's id of the CRM."""
_MANY = 4
"""The greatest number of items of a list that are shown in Flower and the log."""
_AGENTS = 100
"""The greatest number of agents or users that the summary of a batch message names."""
_REQUESTS = 16
"""The greatest number of request ids of a batch message that are shown in Flower and the log."""
_AT_MOST = 240
"""The greatest length, in characters, of the facts of a message or an answer as shown in Flower.

The facts stand after a summary in words, which is not counted.
"""
_AT_MOST_OF_MANY = 1_000
"""The greatest length, in characters, of the facts of a batch message as shown in Flower.

The facts are the number of requests and the request ids. They stand after a summary in words, which
is not counted.
"""
_SUMMARISED = (
    *(("agent_id", "agent "), ("agent", "agent "), ("user_id", "user "), ("user", "user ")),
    *(("move", ""), ("outcome", ""), ("code", ""), ("state", ""), ("kind", ""), ("queue", "")),
    *(("trigger", ""), ("generation_id", "generation "), ("generation", "generation ")),
    *(("size", "size "), ("assignment_id", "assignment ")),
)
"""The facts in a summary, in order: the name of each fact, and the words before its value."""
_UNREMARKABLE = frozenset({"checks", "kept"})
"""The names of counts in an answer that may be above zero although the task has changed nothing."""


class RedactedRequest(Request):
    """A Celery request that shows only permitted facts in events, the log and `inspect`.

    The permitted facts are the arguments and the fields of the answer whose names are in `SHOWN`;
    of a failure, only the exception's class. All events of a task that is marked `routine` are sent
    at its end, and only if the task did something or failed, so that Flower does not list the other
    runs.
    """

    _argsrepr: str
    _kwargsrepr: str
    _request_dict: dict[str, Any]
    _type: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.name = self._type  # type: ignore[misc]  # the stubs have it read-only
        self._received_at = self._started_at = time()
        self._slot = AnswerSlot()
        self._slot.put_into(self._request_dict)
        names = cast("HandledTask", self.task).parameters[1:]
        said = dict(zip(names, self.args, strict=False)) | self.kwargs
        self._argsrepr = summary_of_message(said)
        self._kwargsrepr = shown(said)

    def info(self, safe: bool = False) -> Any:  # noqa: FBT001, FBT002 - Celery's
        """Return the facts for `inspect active` and `inspect reserved`, with redacted arguments."""
        return super().info(safe=True)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's own name
        """Send a task event to Flower; `task-succeeded` has the task's answer in redacted form."""
        task = cast("HandledTask", self.task)
        if type == "task-succeeded":
            fields["result"] = shown_answer(self._slot.answer)
        if not task.routine:
            super().send_event(type, **fields)
        elif type == "task-started":
            self._started_at = time()
        elif type != "task-succeeded" or did_something(self._slot.answer):
            self._send_all(type, fields)

    def _send_all(self, ended: str, fields: dict[str, Any]) -> None:
        """Send all three events of a task after it has ended: received, started, and the last one.

        A routine task runs often and seldom changes anything. Flower is not to list the runs that
        did nothing, and only the end of a run shows that it did something. So no event is sent
        before the end. `ended`: the type of the last event; `fields`: its fields.
        """
        eventer = self.eventer
        if not (eventer and eventer.enabled):
            return
        eventer.send(
            "task-received",
            uuid=self.id,
            name=self.name,
            args=self._argsrepr,
            kwargs=self._kwargsrepr,
            retries=0,
            timestamp=self._received_at,
        )
        eventer.send("task-started", uuid=self.id, timestamp=self._started_at)
        eventer.send(ended, uuid=self.id, **fields)


def shown(value: object) -> str:
    """Return the facts of a message or an answer that Flower and the log may show.

    They are returned as the text of a Python literal, cut to a maximum length.
    """
    allowed = _allowed(value)
    return repr(allowed)[: _AT_MOST_OF_MANY if "request_ids" in _facts(allowed) else _AT_MOST]


def shown_answer(answer: object) -> str:
    """Return an answer's text for Flower: a summary, then the facts that may be shown."""
    summary = summary_of_answer(answer)
    return f"{summary}, {shown(answer)}" if summary else shown(answer)


def summary_of_message(said: Mapping[str, Any]) -> str:
    """Return a summary of a message's arguments.

    For a batch of moves (agents' commands, such as completions): the number of moves, then a
    summary of each of the first 100 moves (`_AGENTS`). For a batch of several requests: the number
    of requests, then the agents of the first 100 requests, then the first 4 dialer queues
    (`_MANY`). For a batch of one request: the same without the number. For any other message: the
    facts in `_SUMMARISED`.
    """
    many = said.get("requests")
    if not isinstance(many, list):
        return _summary(said)
    each = [one if isinstance(one, Mapping) else {} for one in many]
    if any("move" in one for one in each):
        moves = [_summary(one) for one in each[:_AGENTS]]
        return f"{_number(len(each), 'move')}: {'; '.join(filter(None, moves))}"
    agents = [f"agent {one['agent_id']}" for one in each[:_AGENTS] if _is_id(one.get("agent_id"))]
    queues = dict.fromkeys(_word(one.get("queue")) or "any queue" for one in each)
    told = ", ".join([*agents, *list(queues)[:_MANY]])
    return told if len(each) == 1 else f"{_number(len(each), 'request')}: {told}"


def summary_of_answer(answer: object) -> str:
    """Return a summary of an answer, such as `assigned user 3652`.

    The summary of a list of several answers has the number of answers of each outcome. Then it has
    the users in the first `_AGENTS` answers. An example is `2 assigned: user 3652, user 3660`.
    """
    if isinstance(answer, list):
        if len(answer) == 1:
            return summary_of_answer(answer[0])
        counts = Counter(_word(_fact(each, "outcome")) or "answered" for each in answer)
        users = [f"user {user}" for each in answer[:_AGENTS] if _is_user(user := _user(each))]
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"{told}: {', '.join(users)}" if users else told
    outcome, user = _word(_fact(answer, "outcome")), _user(answer)
    if outcome and _is_user(user):
        agent = _fact(_fact(answer, "assignment"), "agent_id")
        by = f", agent {agent}" if _is_id(agent) else ""
        return f"{outcome} user {user}{by}"
    facts = _facts(answer)
    counts_of = facts.get("counts", facts)
    counted = {name: each for name, each in _facts(counts_of).items() if _is_count(name, each)}
    told = ", ".join(f"{name} {each}" for name, each in counted.items())
    if outcome == "done" or (not outcome and told):
        return f"done: {told}" if told else "done"
    parts = {name: _summary(each) for name, each in facts.items() if isinstance(each, Mapping)}
    named = [f"{name}: {each}" for name, each in parts.items() if each and _FORM.fullmatch(name)]
    return "; ".join(filter(None, [_summary(facts), *named]))


def did_something(answer: object) -> bool:
    """Return True if the answer of a routine task shows that the task changed something.

    A routine task runs often and seldom changes anything, so Flower lists only the runs that did.
    Also True if the task was refused or the database was unavailable.
    """
    facts = _facts(answer)
    if facts.get("outcome", "done") != "done":
        return True
    return _is_remarkable(facts.get("counts", facts))


def _is_remarkable(facts: object) -> bool:
    return any(
        _is_remarkable(each) if isinstance(each, Mapping) else isinstance(each, int) and each > 0
        for name, each in _facts(facts).items()
        if name not in _UNREMARKABLE
    )


def _summary(facts: Mapping[str, Any]) -> str:
    told = []
    for name, words in _SUMMARISED:
        value = facts.get(name)
        is_shown = (
            _is_id(value) or isinstance(value, UUID) or (name == "user_id" and _is_user(value))
        )
        text = str(value) if is_shown else _word(value)
        if text:
            told.append(f"{words}{text}")
    return ", ".join(told)


def _facts(value: object) -> Mapping[str, Any]:
    match value:
        case BaseModel():
            return {name: getattr(value, name) for name in type(value).model_fields}
        case Mapping():
            return value
        case _:
            return {}


def _fact(value: object, name: str) -> object:
    """Return the field `name` of an answer; None if the answer has no such field."""
    if isinstance(value, BaseModel):
        return getattr(value, name, None)
    return value.get(name) if isinstance(value, Mapping) else None


def _user(answer: object) -> object:
    return _fact(_fact(answer, "assignment"), "user_id")


def _word(value: object) -> str:
    return str(value) if isinstance(value, str) and _FORM.fullmatch(value) else ""


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_user(value: object) -> bool:
    """Return True for a number, or a text that has the form of a user's id of the CRM."""
    return _is_id(value) or (isinstance(value, str) and bool(_USER.fullmatch(value)))


def _is_count(name: str, value: object) -> bool:
    return _is_id(value) and bool(_FORM.fullmatch(name))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _allowed(value: object) -> object:
    match value:
        case BaseModel():
            return _allowed(_facts(value))
        case Mapping():
            if isinstance(many := value.get("requests"), list) and many:
                return _allowed_of_many(many)
            named = {name: value[name] for name in value if name in SHOWN}
            return {
                name: each
                for name, said in named.items()
                if (each := said if name == "user_id" and _is_user(said) else _allowed(said))
                is not None
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


def _allowed_of_many(many: Sequence[object]) -> object:
    if len(many) == 1:
        return _allowed(many[0])
    named = [_facts(each).get("request_id") for each in many[:_REQUESTS]]
    return {"requests": len(many), "request_ids": [_allowed(each) for each in named if each]}
