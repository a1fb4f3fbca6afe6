"""The format of messages to Celery workers over Redis, and of their results.

A message has the form that `Celery.send_task` writes: Celery's message protocol 2 in kombu's
envelope for Redis. This module builds the message itself, because an agent waits for the answer and
`send_task` takes ten times as long: it subscribes to each result.
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
"""A message with its headers and properties, as kombu writes it to Redis."""

RESULT_PREFIX = "celery-task-meta-"
"""Prefix of the Redis key of a task's result, and of the channel on which the result is announced.
"""

_ORIGIN = f"{os.getpid()}@{socket.gethostname()}"
DEAD_LETTER = "dead_letter"
"""Header: the number of the dead letter from which this message was sent again."""
COMMAND_ID = "command_id"
"""Header: the id by which a repeated command is recognised. If absent, the task id is used."""
COMMAND_POSITION = "command_position"
"""Header: the command's number in the order of all operators' commands; null if it has none.

The number is taken from the database before the command is sent. The sequencer refuses the command
if a command with a higher number has already set the same state, such as the pause of the same
dialer queue. So a command that arrives late does not overwrite a newer state.
"""
SIGNATURE = "signature"
"""Header: an HMAC of the command, made with a key that only our own programs have.

It proves that one of these programs verified the operator or the senders named in the message.
"""
SENDERS = "senders"
"""Header: the name of the API token that sent each call of the message, in the order of the calls.

A call is a request or a command. The header is a list with one item for each call. An item is a
name, such as `token 0a12`, or null. The item is null if the agent's own token sent the call. It is
also null if the call was sent without a token, or if the call names an operator (`BY`). If no item
is a name, the whole header is null instead of a list.
"""


def unsendable(args: Sequence[Any], arguments: Mapping[str, Any]) -> str | None:
    """Return the reason why an argument cannot be sent; None if all arguments can be sent.

    An argument cannot be sent if JSON in UTF-8 cannot express it. Examples: a number type of
    another library, half of a surrogate pair in a text.
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
    """The result of a task: its value, or `failure`, the reason why there is no value."""

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
    """Return a message to the Celery queue `celery_queue`, in the form that kombu writes to Redis.

    A worker that reads the message after `expires` does not run it. `about` has the ids of the
    requests in the message, for a person who inspects the queue in Redis; no program reads it.
    `traced` has the headers that continue a trace. `command_id` is the id of the first message with
    this command, if this message repeats the command. `position` is the command's number in the
    order of all operators' commands. `senders` has the value of the header `SENDERS`. `key` signs a
    message that names an operator or a sender (see `SIGNATURE`).
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
    """Return an HMAC over a command's task, arguments, command id and senders (see `SENDERS`)."""
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
