"""Validate the form of a message by one schema, and rebuild it, before Celery reads it.

Celery reads a message's fields one by one, long before the task's body runs, and ends the worker at
the first unexpected value. So no message of another program reaches Celery unchanged. A message
that matches the schema is passed on as a `TaskMessage` made of its validated fields. Any other
message raises `Malformed` and is stored as a dead letter.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from celery.app.task import Context
from celery.utils.time import maybe_iso8601
from kombu.message import Message
from kombu.utils.json import loads
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict

from assignment_workers.errors import Malformed, plain

Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A single line of text, such as a name or an id."""
Shown = Annotated[str, Field(max_length=100_000)]
Seconds = Annotated[float, Field(strict=True)]

_STRICTLY = ConfigDict(strict=True, extra="ignore")

SHOWN_AT_MOST = 1_024
"""The length in characters to which the headers `argsrepr` and `kwargsrepr` are cut for Celery.

The sender wrote into these headers a text of the task's arguments, for logs.
"""
PASSED_ON_AT_MOST = 1_024
"""The greatest length, in characters, of a header with an unknown name that is passed on to Celery.

An example is a trace header. A longer header is left out.
"""
_SHADOWED = frozenset(dir(Context))
_LINKS = ("callbacks", "errbacks", "chain", "chord")
_ENCODINGS = frozenset({"utf-8", "utf8", "us-ascii", "ascii", "binary"})


@with_config(_STRICTLY)
class _Properties(TypedDict):
    delivery_tag: Line
    delivery_info: dict[str, Any]
    body_encoding: NotRequired[Literal["base64"] | None]
    correlation_id: NotRequired[str | None]
    reply_to: NotRequired[str | None]
    priority: NotRequired[int | None]


# The functional notation, because some names are not Python identifiers.
_Envelope = TypedDict(
    "_Envelope",
    {
        "body": str,
        "content-type": str,
        "content-encoding": NotRequired[str | None],
        "headers": dict[str, Any],
        "properties": _Properties,
    },
)


@with_config(_STRICTLY)
class _Headers(TypedDict):
    task: Line
    id: Line
    lang: NotRequired[Line | None]
    root_id: NotRequired[Line | None]
    parent_id: NotRequired[Line | None]
    shadow: NotRequired[str | None]
    meth: NotRequired[str | None]
    origin: NotRequired[str | None]
    group: NotRequired[str | None]
    taskset: NotRequired[str | None]
    group_index: NotRequired[int | None]
    eta: NotRequired[None]
    expires: NotRequired[Line | None]
    retries: NotRequired[Annotated[int, Field(ge=0)] | None]
    timelimit: NotRequired[
        Annotated[list[Seconds | None], Field(min_length=2, max_length=2)] | None
    ]
    argsrepr: NotRequired[Shown | None]
    kwargsrepr: NotRequired[Shown | None]
    ignore_result: NotRequired[bool | None]
    replaced_task_nesting: NotRequired[int | None]
    stamped_headers: NotRequired[list[str] | None]
    stamps: NotRequired[dict[str, Any] | None]
    callbacks: NotRequired[Any]
    errbacks: NotRequired[Any]
    chain: NotRequired[Any]
    chord: NotRequired[Any]
    traces: NotRequired[Any]
    command_id: NotRequired[Line | None]
    dead_letter: NotRequired[Annotated[int, Field(ge=1, le=2**63 - 1)] | None]
    command_position: NotRequired[Annotated[int, Field(ge=0, le=2**63 - 1)] | None]
    signature: NotRequired[Line | None]
    senders: NotRequired[Any]
    compression: NotRequired[None]


_ENVELOPE: TypeAdapter[Any] = TypeAdapter(with_config(_STRICTLY)(_Envelope))
_HEADERS = TypeAdapter(_Headers)
_PASSED = (
    *("root_id", "parent_id", "origin", "expires", "ignore_result"),
    *("command_id", "command_position", "dead_letter", "signature"),
)


class TaskMessage(Message):
    """A validated message in the form that Celery reads.

    It is built from a message that the broker delivered, and has the same delivery tag. So `ack`
    acknowledges the delivered message.
    """

    __slots__ = ("_payload", "unstored")

    def __init__(self, message: Any) -> None:
        """Validate `message`, a message as kombu delivered it.

        Raises `Malformed`, with a text of one line, if the message is not a valid Celery task
        message.
        """
        headers, args, kwargs = _read(message)
        properties = message.properties
        super().__init__(
            channel=message.channel,
            delivery_tag=message.delivery_tag,
            delivery_info=message.delivery_info,
            properties={name: properties.get(name) for name in ("correlation_id", "reply_to")},
            headers=headers,
            body=message.body,
        )
        self._payload = {"args": args, "kwargs": kwargs}
        self.unstored: list[Callable[[], object]] = []
        """Functions, each of which stores a dead letter that could not be written when the message
        was handled.

        While the list is not empty, `ack` and `reject` do nothing, so the message stays with the
        broker.
        """

    def ack(self, multiple: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Acknowledge the message, or do nothing while `unstored` is not empty.

        The list `unstored` is empty unless a dead letter of the message could not be written yet.
        """
        if not self.unstored:
            super().ack(multiple)

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Reject the message, or do nothing while `unstored` is not empty.

        The list `unstored` is empty unless a dead letter of the message could not be written yet.
        """
        if not self.unstored:
            super().reject(requeue)

    @property
    def payload(self) -> dict[str, Any]:
        """The validated arguments, under the keys `args` and `kwargs`.

        Because the key `args` is present, Celery takes the arguments from here, not from the body.
        """
        return self._payload


def envelope_of(item: bytes, queue: str) -> dict[str, Any]:
    """Return `item`, an element of a Redis list, as a message in kombu's form.

    Raises `Malformed` if `item` is not a valid message. `queue`: the Celery queue from which `item`
    was taken. The routing key becomes `queue`, whatever the sender wrote, because kombu puts an
    unacknowledged message back into the queue that its routing key names.
    """
    try:
        found: dict[str, Any] = _ENVELOPE.validate_python(from_json(item))
    except ValidationError as error:
        raise Malformed(f"not a message of Celery's: {_first(error)}") from None
    except ValueError as error:
        raise Malformed(f"not a message of Celery's: not JSON: {error}") from None
    headers, properties = found["headers"], found["properties"]
    if headers.get("compression") is not None:
        raise Malformed(COMPRESSED, **named(headers))
    if properties.get("body_encoding") == "base64":
        try:
            base64.b64decode(found["body"])
        except (binascii.Error, ValueError) as error:
            raise Malformed(f"body: not base64: {error}", **named(headers)) from None
    info: dict[str, Any] = {"exchange": "", "routing_key": queue}
    if headers.get("redelivered") is True:  # kombu's mark of a message that it has put back
        info["redelivered"] = True
    properties["delivery_info"] = info
    return found


def named(headers: object) -> dict[str, str | None]:
    """Return the task name and the task id in the headers, each None if it is missing or invalid.

    An answer to the sender is stored under this task id.
    """
    given = headers if isinstance(headers, Mapping) else {}
    return {"task": _line(given.get("task")), "task_id": _line(given.get("id"))}


_LINE = TypeAdapter(Line)
COMPRESSED = "compression: a compressed message is not read"
UNREADABLE = "unreadable"
"""The header that `RabbitChannel` adds to a message whose body must not be decoded, or whose
properties cannot be decoded. Its value is the reason.
"""


def _line(said: object) -> str | None:
    try:
        return _LINE.validate_python(said, strict=True)
    except ValidationError:
        return None


def _read(message: Any) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
    """Return the headers, arguments and named arguments of a Celery message of protocol 1 or 2."""
    headers = message.headers
    body = _body(message)
    embed: object = body
    if isinstance(body, dict):  # protocol 1, and what other programs make of it
        headers = body | headers
        args, kwargs = body.get("args", []), body.get("kwargs", {})
    elif isinstance(body, list) and len(body) == 3:  # noqa: PLR2004
        args, kwargs, embed = body
    else:
        raise Malformed("body: not a list of arguments, named arguments and {}", **named(headers))
    try:
        found = _HEADERS.validate_python(headers)
    except ValidationError as error:
        raise Malformed(f"headers: {_first(error)}", **named(headers)) from None
    known = {"task": found["task"], "task_id": found["id"]}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise Malformed("body: the arguments are no list, or the named ones no object", **known)
    if embed is not None and not isinstance(embed, dict):
        raise Malformed("body: its last part is no object", **known)
    for link in _LINKS:
        if found.get(link) or (embed and embed.get(link)):
            raise Malformed(
                f"{link}: no other task is sent when this one ends; send it on the answer", **known
            )
    if not _is_instant(found.get("expires")):
        raise Malformed("headers: expires: not an instant in ISO 8601", **known)
    return _passed(found, headers), args, kwargs


def _body(message: Any) -> Any:
    def wrong(why: str) -> Malformed:
        return Malformed(why, **named(message.headers))

    if UNREADABLE in message.headers:
        raise wrong(f"{message.headers[UNREADABLE]!s:.200}")
    body, kind = message.body, message.content_type
    if kind != "application/json":
        raise wrong(f"content type {kind!r:.80}: application/json is accepted")
    encoding = message.content_encoding
    if encoding is not None and str(encoding).lower() not in _ENCODINGS:
        raise wrong(f"content encoding {encoding!r:.80}: utf-8 is accepted")
    try:
        data = body.encode() if isinstance(body, str) else bytes(body)
        found = from_json(data)
        # kombu's notation for types that JSON lacks, such as instants. Only after the parser above,
        # which has refused nesting too deep for a parser in Python.
        if b"__type__" in data:
            found = loads(data)
    except Exception as error:  # noqa: BLE001 - a reader of such a form may raise anything
        raise wrong(f"body: not JSON that can be read: {error}") from None
    return found


def _passed(found: _Headers, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that are passed on to Celery.

    `found` has the known headers, those that `_Headers` names, with validated values. `headers` has
    all headers as they were received.

    Of the known headers, a fixed selection is passed on, such as `task` and `id`. The others, such
    as `retries` and `timelimit`, are left out. An unknown header is passed on if its value is a
    text of at most `PASSED_ON_AT_MOST` characters; otherwise it is left out. It is also left out if
    its name is an attribute of Celery's `Context`, because it would replace that attribute.
    """
    passed: dict[str, Any] = {
        name: said
        for name, said in headers.items()
        if isinstance(said, str)
        and len(said) <= PASSED_ON_AT_MOST
        and name not in _Headers.__annotations__
        and name not in _SHADOWED
    }
    passed |= {name: found.get(name) for name in _PASSED}
    passed["traces"] = _traces(found.get("traces"))
    passed["senders"] = found.get("senders")
    passed |= {"task": found["task"], "id": found["id"], "lang": found.get("lang")}
    for name in ("argsrepr", "kwargsrepr"):
        passed[name] = str(found.get(name) or "")[:SHOWN_AT_MOST]
    return passed


def _traces(said: object) -> list[str] | None:
    """Return the valid trace headers in the list `said`; None if it is no list.

    A message with the requests of several callers has one trace header for each caller.
    """
    if not isinstance(said, list):
        return None
    return [each for each in said if isinstance(each, str) and len(each) <= PASSED_ON_AT_MOST]


def _is_instant(said: str | None) -> bool:
    if said is None:
        return True
    try:
        found = maybe_iso8601(said)
        return isinstance(found, datetime) and 1970 <= found.year < 9999  # noqa: PLR2004
    except (ValueError, TypeError, OverflowError):
        return False


def _first(error: ValidationError) -> str:
    """Return the first error of a validation as one line: the field's name, then the error."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where or 'the whole'!s:.80}: {plain(first['msg'])}"


def described(message: Any) -> bytes:
    """Return a message's headers, properties and body as one JSON text, for a dead letter.

    Used for brokers that do not store a message as one text. If the message cannot be written as
    JSON, only the body is returned.
    """
    body = message.body
    text = body if isinstance(body, str) else bytes(body or b"").decode("utf-8", "backslashreplace")
    said = {"headers": message.headers, "properties": message.properties, "body": text}
    try:
        return json.dumps(said, default=repr).encode()
    except (RecursionError, TypeError, ValueError):  # nested too deep, or keys that are not text
        return text.encode("utf-8", "backslashreplace")
