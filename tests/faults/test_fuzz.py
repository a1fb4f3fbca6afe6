"""Messages by chance before real requests: each is carried out or a dead letter, none ends a worker.

`FUZZ_EXAMPLES` says how many lots of them: `make fuzz` sends thousands.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import struct
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from amqp.exceptions import FrameSyntaxError, InternalError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from assignment_workers.client import Assigned, Client, Finished
from tests.faults.test_poison import can_be_said, goes_on
from tests.support.poison import FORMS, TRUE, Envelope, envelope, publish
from tests.support.processes import Stack, running, wait_until

LOTS = int(os.environ.get("FUZZ_EXAMPLES", "3"))
IN_A_LOT = 60
UNSAYABLE = (
    *(AttributeError, KeyError, TypeError, ValueError, RecursionError, struct.error),
    FrameSyntaxError,
    InternalError,
)
"""Raised by the client for what it cannot write into a frame, or what RabbitMQ itself breaks at."""
MARK = re.compile(r'"message_id": "([^"]+)"')
"""By which a dead letter of RabbitMQ's names the message that it was."""
LETTERS = "SELECT task_id, body FROM assignment.dead_letters"


def nested(levels: int) -> Any:
    made: Any = 1
    for _ in range(levels):
        made = [made]
    return made


VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 2**31, 2**63, 2**64, 1e308, "", "x", "\0", "\ud800", "é" * 300]
    ),
    st.sampled_from(["x" * 5_000, [], {}, [[]], {"a": {}}, nested(30), nested(250), nested(800)]),
    st.sampled_from(["0001-01-01", "9999-12-31T23:59:59Z", "assignment.request", "celery.chain"]),
    st.sampled_from([{"__type__": "datetime", "__value__": 1}, {"__type__": "x", "__value__": 1}]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    ),
)
ADDED = st.sampled_from(
    [
        *("eta", "expires", "retries", "timelimit", "kwargsrepr", "argsrepr", "shadow", "root_id"),
        *("chain", "chord", "callbacks", "stamps", "stamped_headers", "compression", "traces"),
        *("ignore_result", "get", "update", "id", "task", "args", "kwargs", "priority", "reply_to"),
        *("command_id", "command_position", "dead_letter", "called_directly", "delivery_info"),
    ]
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, Envelope | bytes]:
    """A message that is wrong in some places, by its id where it was left as it was."""
    made = envelope(kwargs={"agent_id": draw(st.integers(1, 20))})
    name = made["headers"]["id"] = made["properties"]["correlation_id"] = str(uuid.uuid4())
    kind = draw(st.sampled_from(["form", "true", "field", "field", "field", "bytes"]))
    if kind in {"form", "true"}:
        forms = FORMS if kind == "form" else TRUE
        return name, forms[draw(st.sampled_from(sorted(forms)))](made)
    body: Any = [[], {"agent_id": draw(st.integers(1, 20)), "queue": None}, {"chain": None}]
    if draw(st.booleans()):
        body = {"task": "assignment.request", "id": name, "args": [3], "kwargs": {}}
        if draw(st.booleans()):
            made["headers"] = {}
    whole = {"envelope": made, "body": body}
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, whole)
    made = whole["envelope"]
    if kind == "bytes":
        data = bytearray(json.dumps(made).encode())
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return name, bytes(data[: draw(st.integers(0, len(data)))])
    if isinstance(made, dict) and made.get("body") is not None and draw(st.integers(0, 9)):
        said = json.dumps(whole["body"]).encode()
        made["body"] = base64.b64encode(said).decode()
    return name, made


def _change(draw: st.DrawFn, whole: dict[str, Any]) -> None:
    """Replace, add or take away something, anywhere."""
    at: Any = whole
    while True:
        inner = [key for key in _keys(at) if isinstance(at[key], dict | list) and at[key]]
        if not inner or (at is not whole and draw(st.booleans())):
            break
        at = at[draw(st.sampled_from(inner))]
    how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    keys = _keys(at)
    if at is whole:
        return
    if how == "add" or not keys:
        if isinstance(at, dict):
            at[draw(ADDED)] = copy.deepcopy(draw(VALUES))
        else:
            at.append(copy.deepcopy(draw(VALUES)))
    elif how == "remove":
        del at[draw(st.sampled_from(keys))]
    else:
        at[draw(st.sampled_from(keys))] = copy.deepcopy(draw(VALUES))


def _keys(at: Any) -> list[Any]:
    return list(at) if isinstance(at, dict) else list(range(len(at)))


class Lot(list[tuple[str, Envelope | bytes]]):
    """Messages sent together; a report of a failure counts them, a folder keeps them whole."""

    def __repr__(self) -> str:
        return f"<a lot of {len(self)} messages>"


LOT_OF_MESSAGES = st.lists(messages(), min_size=IN_A_LOT, max_size=IN_A_LOT).map(Lot)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def stack(
    request: pytest.FixtureRequest,
    module_database_url: str,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """A stack of which each lot leaves everything as it was, but for dead letters and holds."""
    folder: Path = tmp_path_factory.mktemp("fuzz")
    # Not 0 or 1: stacks that last for a whole run have those.
    address = f"{valkey_server.rpartition('/')[0]}/{4 if request.param == 'redis' else 5}"
    with ExitStack() as keep:
        with redis.Redis.from_url(address) as broker:
            broker.flushdb()
        made = keep.enter_context(running(module_database_url, address, folder))
        if request.param == "rabbitmq":
            rabbit = request.getfixturevalue("rabbit")
            made.broker_url = rabbit.url
            keep.enter_context(rabbit.queues())
        made.start("sequencer")
        if made.value("SELECT count(*) FROM public.user_call_scores") == 0:
            made.seed(users=1000)
        made.start("maintenance")
        made.wait_for_leader()
        made.regenerate(made.client())
        yield made


def lots() -> list[Lot]:
    """Generate the lots before any is sent: what a stack does is no part of an example."""
    made: list[Lot] = []

    @settings(
        max_examples=LOTS,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(LOT_OF_MESSAGES)
    def keep(lot: Lot) -> None:
        made.append(lot)

    keep()
    return made


def test_whatever_is_sent_the_request_behind_it_is_served(stack: Stack) -> None:
    client = stack.client()
    sequencer = stack.started[0]
    vanished: list[bytes] = []
    for number, lot in enumerate(lots()):
        (stack.folder / "sent").write_text("\n".join(map(repr, lot)), "utf-8", "backslashreplace")
        raw = _sent(stack, lot)
        asked = f"behind-{stack.folder.name}-{number}"
        wait_until(partial(_is_served, client, asked), "the request behind to be served")
        goes_on(sequencer)
        vanished += _vanished(stack, raw)
    (stack.folder / "vanished").write_bytes(b"\n".join(vanished))
    assert not vanished, f"of each nothing is known; they are in {stack.folder}"
    with redis.Redis.from_url(stack.redis_url) as broker:
        wait_until(lambda: not broker.llen("assignment"), "the line to be empty")
    stack.assert_healthy()


def _is_served(client: Client, request_id: str) -> bool:
    """Ask for an agent, and give the user back: offers that lapse would set the agent on break."""
    answer = client.request_next(90, request_id=request_id)
    return isinstance(answer, Assigned) and isinstance(
        client.release(answer.assignment.id, 90), Finished
    )


def _sent(stack: Stack, lot: Lot) -> list[tuple[str, bytes]]:
    """Send a lot; return what was sent, by its id."""
    if stack.broker_url is None:
        raw = [(name, _data(each)) for name, each in lot]
        with redis.Redis.from_url(stack.redis_url) as broker:
            broker.lpush("assignment", *(data for _, data in raw))
        return raw
    raw = [(name, _data(each)) for name, each in lot if _is_published(stack, name, each)]
    assert len(raw) > IN_A_LOT / 4
    return raw


def _vanished(stack: Stack, raw: list[tuple[str, bytes]]) -> Iterator[bytes]:
    """Messages that have neither an answer nor a dead letter."""
    letters = stack.rows(LETTERS)
    bodies, names = {row.body for row in letters}, {row.task_id for row in letters}
    marks = {mark for body in bodies for mark in MARK.findall(body)}
    with redis.Redis.from_url(stack.redis_url) as results:
        for name, data in raw:
            answered = results.exists(*(f"celery-task-meta-{each}" for each in _ids(name, data)))
            text = data.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
            stored = name in names or name in marks or text in bodies
            if not (answered or stored or b"ignore_result" in data):
                yield data


def _data(message: Envelope | bytes) -> bytes:
    return message if isinstance(message, bytes) else json.dumps(message).encode()


def _ids(name: str, data: bytes) -> set[str]:
    """The ids by which its answer may be stored: what was changed may be its id."""
    found = {name}
    try:
        sent = json.loads(data)
        for said in (sent["headers"], json.loads(base64.b64decode(sent["body"] + "=="))):
            if isinstance(said, dict) and isinstance(said.get("id"), str):
                said["id"].encode()
                found.add(said["id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return found
    return found


def _is_published(stack: Stack, name: str, message: Envelope | bytes) -> bool:
    """Publish it, if AMQP and its client have words for it."""
    if not isinstance(message, dict):
        return False
    try:
        if not can_be_said(message):
            return False
        publish(stack, "assignment", message, mark=name)
    except UNSAYABLE:
        return False
    return True
