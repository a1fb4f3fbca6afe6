"""The format of messages to Celery workers over Redis, and of their results.

Celery's message protocol 2 in kombu's envelope for Redis, as `Celery.send_task` writes it. It is
built here because `send_task` subscribes to each result and takes ten times as long, while a
request waits.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from assignment_workers.client.commands import BY

Envelope = dict[str, Any]
"""A message with its properties, as kombu writes it to Redis."""

RESULT_PREFIX = "celery-task-meta-"
"""Prefix of the key of a task's result, and of the channel on which the result is announced."""

_ORIGIN = f"{os.getpid()}@{socket.gethostname()}"
DEAD_LETTER = "dead_letter"
"""Header: the number of the dead letter from which this message was sent again."""
COMMAND_ID = "command_id"
"""Header: the id that makes a command unique. If absent, the message's own id (the task id)."""
COMMAND_POSITION = "command_position"
"""Header: the command's position in the database's order, if it got one before it was sent."""
SIGNATURE = "signature"
"""Header: the proof that a trusted program, which knew the operator, sent a command with `by`."""
SENDERS = "senders"
"""Header: for each request of the message, the token that sent it for the agent, or null."""


def unsendable(args: Sequence[Any], arguments: Mapping[str, Any]) -> str | None:
    """Return what is wrong with arguments that JSON in UTF-8 has no form for; None if nothing is.

    Examples: a number of another library than Python's, half of a surrogate pair in a text.
    """
    for name, value in (*enumerate(args, 1), *arguments.items()):
        if value is None or isinstance(value, int) or (isinstance(value, str) and value.isascii()):
            continue
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            kind = type(value).__name__
            return f"{name}: a value of type {kind} that cannot be written as JSON in UTF-8"
    return None


@dataclass(frozen=True)
class Result:
    """The result of a task: its value, or the reason why there is none."""

    value: object
    failure: str | None = None


def message(
    task: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    task_id: str,
    celery_queue: str,
    expires: datetime | None,
    about: Sequence[str] = (),
    traced: Mapping[str, Any] | None = None,
    command_id: str | None = None,
    position: int | None = None,
    senders: Sequence[str | None] = (),
    key: str | None = None,
) -> Envelope:
    """Return the message; its JSON is the element of the Redis list `celery_queue`.

    A worker that reads the message after `expires` does not run it. `about` has the ids of its
    requests, for a person who inspects the queue in Redis; no program reads it. `traced` holds the
    headers of a trace. `command_id` is the id of the message that this one repeats. For `position`
    see `COMMAND_POSITION`, for `senders` see `SENDERS`. `key` makes the `SIGNATURE` of a message
    that names an operator or senders.
    """
    body = json.dumps(
        [args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    )
    named = senders if any(senders) else ()
    signed = kwargs.get(BY) is not None or named
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": expires.isoformat() if expires else None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": "",
            "kwargsrepr": "",
            "origin": _ORIGIN,
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
            "about": list(about),
            COMMAND_ID: command_id or task_id,
            COMMAND_POSITION: position,
            SENDERS: list(named) or None,
            SIGNATURE: signature(key, task, command_id or task_id, args, kwargs, senders=named)
            if key is not None and signed
            else None,
            **(traced or {}),
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": celery_queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": task_id,
        },
    }


def signature(
    key: str,
    task: str,
    command_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    senders: Sequence[str | None] = (),
) -> str:
    """Return the signature of a command: of its task, arguments, command id and `SENDERS`."""
    parts = [task, command_id, list(args), dict(kwargs), *([list(senders)] if senders else [])]
    said = json.dumps(parts, sort_keys=True)
    return hmac.new(key.encode(), f"a command\n{said}".encode(), hashlib.sha256).hexdigest()


def result(data: bytes | str) -> Result | None:
    """Return the result that a worker wrote; None if the task still runs or `data` is no result."""
    try:
        said = json.loads(data)
        status, value = said["status"], said["result"]
    except (ValueError, KeyError, TypeError):
        return None
    match status, value:
        case "SUCCESS", _:
            return Result(value)
        case "REVOKED", {"exc_message": ["revoked", *_] | "revoked"}:
            return Result(None, "an operator revoked the message before the sequencer came to it")
        case "REVOKED", _:
            return Result(None, "the message had expired when the sequencer came to it")
        case "FAILURE", {"exc_type": kind, "exc_message": [*words]}:
            return Result(None, f"{kind}: {' '.join(map(str, words))}")
        case "FAILURE", _:
            return Result(None, f"the task failed: {value}")
        case _:
            return None
