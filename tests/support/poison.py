"""Messages that are not as `docs/wire-format.md` says: each form that once ended a sequencer."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from typing import Any

import amqp
import redis
from kombu import Connection

from tests.support.processes import Stack

Envelope = dict[str, Any]
MISSING: Any = object()


def envelope(
    task: str = "assignment.request", kwargs: Any = None, *, queue: str = "assignment"
) -> Envelope:
    """A true message, as another program writes it."""
    name = str(uuid.uuid4())
    return {
        "body": encoded([[], {"agent_id": 26} if kwargs is None else kwargs, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "js", "task": task, "id": name},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": name,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_mode": 2,
            "delivery_tag": name,
        },
    }


def encoded(body: Any) -> str:
    """The body of a message, in JSON and base64."""
    said = body if isinstance(body, bytes) else json.dumps(body).encode()
    return base64.b64encode(said).decode()


def changed(*path: str, to: Any = MISSING) -> Callable[[Envelope], Envelope]:
    """A form with the value at `path` replaced, or left out."""

    def change(message: Envelope) -> Envelope:
        at = message
        for name in path[:-1]:
            at = at[name]
        if to is MISSING:
            del at[path[-1]]
        else:
            at[path[-1]] = to
        return message

    return change


def body(said: Any) -> Callable[[Envelope], Envelope]:
    """A form with another body."""
    return changed("body", to=encoded(said))


def deep(levels: int) -> bytes:
    """Lists in lists."""
    return b"[" * levels + b"]" * levels


ASKED = {"agent_id": 26}
NESTED = b'[[],{"agent_id":26,"queue":' + deep(900) + b"},{}]"

FORMS: dict[str, Callable[[Envelope], Envelope]] = {
    "a body of two": body([[], ASKED]),
    "a body of four": body([[], ASKED, {}, {}]),
    "a body that is a number": body(26),
    "a body that is null": body(None),
    "a body that is text": body("abc"),
    "no body": changed("body"),
    "no id": changed("headers", "id"),
    "a null id": changed("headers", "id", to=None),
    "an empty id": changed("headers", "id", to=""),
    "a null body": changed("body", to=None),
    "an empty body": changed("body", to=""),
    "headers that are null": changed("headers", to=None),
    "no content type": changed("content-type"),
    "an id that is a list": changed("headers", "id", to=["a"]),
    "an id with half a character": changed("headers", "id", to="\ud800"),
    "bad base64": changed("body", to="W1tdLCB7"[:-1]),
    "a body that is a list": changed("body", to=[1]),
    "an unknown body encoding": changed("properties", "body_encoding", to="base85"),
    "a body encoding that is a list": changed("properties", "body_encoding", to=["base64"]),
    "a delivery info that is a list": changed("properties", "delivery_info", to=["x"]),
    "a delivery info that is text": changed("properties", "delivery_info", to="assignment"),
    "a delivery tag that is a list": changed("properties", "delivery_tag", to=["a"]),
    "a time limit that is a word": changed("headers", "timelimit", to="soon"),
    "a time limit of one": changed("headers", "timelimit", to=[1]),
    "a list as task": changed("headers", "task", to=["assignment.request"]),
    "headers that are text": changed("headers", to="task"),
    "an embed that is a list": body([[], ASKED, ["x"]]),
    "a chain of a word": body([[], ASKED, {"chain": ["x"]}]),
    "a chord of a word": body([[], ASKED, {"chord": "x"}]),
    "a callback that is a word": body([[], ASKED, {"callbacks": ["x"]}]),
    "JSON nested deep": changed("body", to=base64.b64encode(NESTED).decode()),
    "headers nested deep": changed("headers", "origin", to=json.loads(deep(900))),
    "a date that is too late": changed("headers", "eta", to="9999-12-31T23:59:59+00:00"),
    "an expiry before all time": changed("headers", "expires", to="0001-01-01T00:00:00"),
    "a retry count that is text": changed("headers", "retries", to="x"),
    "compression by a list": changed("headers", "compression", to=["x"]),
    "a Celery type of no date": body(
        [[], {"agent_id": {"__type__": "datetime", "__value__": 1}}, {}]
    ),
}
"""By their names; each makes of a true message one that cannot be handled."""

OLD_PROTOCOL = {"task": "assignment.request", "args": [26], "kwargs": {}, "retries": 0, "utc": True}


def of_protocol_1(message: Envelope) -> Envelope:
    """The same in Celery's older form, which has everything in its body."""
    said = OLD_PROTOCOL | {"id": message["headers"]["id"]}
    return body(said)(message) | {"headers": {}}


TRUE: dict[str, Callable[[Envelope], Envelope]] = {
    "as it is": lambda message: message,
    "what the sender shows is null": changed("headers", "kwargsrepr", to=None),
    "a header of the sender's own": changed("headers", "x-sender", to="crm"),
    "a header with a name of Celery's inside": changed("headers", "update", to="x"),
    "a long header": changed("headers", "x-sender", to="x" * 100_000),
    "another name to be shown by": changed("headers", "shadow", to="assignment.other"),
    "a time limit": changed("headers", "timelimit", to=[10, 20.5]),
    "stamps": changed("headers", "stamps", to={"a": ["b"]}),
    "an expiry to come": changed("headers", "expires", to="2999-01-01T00:00:00Z"),
    "no links": body([[], ASKED, {"callbacks": None, "chain": [], "chord": None}]),
    "a null embed": body([[], ASKED, None]),
    "arguments by position": body([[26], {}, {}]),
    "a body in plain text": lambda message: changed("body", to=json.dumps([[], ASKED, {}]))(
        changed("properties", "body_encoding")(message)
    ),
    "protocol 1": of_protocol_1,
    "an instant of Celery's": body(
        [
            [],
            ASKED
            | {"deadline": {"__type__": "datetime", "__value__": "2999-01-01T00:00:00+00:00"}},
            {},
        ]
    ),
    "a delivery tag that was there before": changed("properties", "delivery_tag", to="again"),
}
"""Forms that differ from a true message, and are carried out all the same."""


def push(stack: Stack, queue: str, message: Envelope) -> None:
    """Send a message by Redis."""
    with redis.Redis.from_url(stack.redis_url) as broker:
        broker.lpush(queue, json.dumps(message))


def publish(stack: Stack, queue: str, message: Envelope, *, mark: str | None = None) -> None:
    """Send the same by RabbitMQ, as near as AMQP can say it; fails where it cannot.

    `mark`: its message id, which this project's messages have not.
    """
    said = message.get("body") or ""
    encoding = message["properties"].get("body_encoding")
    body = base64.b64decode(said + "==") if encoding == "base64" else said.encode()
    assert stack.broker_url is not None
    with Connection(stack.broker_url, transport_options={"confirm_publish": True}) as connection:
        sent = amqp.Message(
            body,
            application_headers=message["headers"],
            correlation_id=message["properties"]["correlation_id"],
            **({} if mark is None else {"message_id": mark}),
            **{
                name.replace("-", "_"): message[name]
                for name in ("content-type", "content-encoding")
                if name in message
            },
        )
        channel: Any = connection.channel()
        channel.basic_publish(sent, routing_key=queue)
