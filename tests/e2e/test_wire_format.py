"""Requests as raw Celery messages: what docs/wire-format.md says, and what celery-node writes."""

from __future__ import annotations

import base64
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from tests.e2e.node import Node
from tests.gateway.stage import Gateway
from tests.support.processes import wait_until
from tests.support.root import ROOT

EXAMPLE = ROOT / "examples/celery-node"
DOCUMENT = (ROOT / "docs/wire-format.md").read_text()


def documented(number: int) -> Any:
    """One of the JSON blocks of the document."""
    blocks: list[str] = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    return json.loads(blocks[number])


def enqueue(node: Node, gateway: Gateway, *words: str) -> tuple[int, Any, str]:
    """What the example prints: its exit code, the answer and what it complains of."""
    variables = {"REDIS_URL": gateway.stack.redis_url, "BROKER_URL": gateway.stack.redis_url}
    said = node.run("enqueue.mjs", *words, folder=EXAMPLE, variables=variables)
    return said.returncode, json.loads(said.stdout) if said.stdout else None, said.stderr


def test_celery_node_is_answered_and_again_the_same(node: Node, gateway: Gateway) -> None:
    name = str(uuid.uuid4())
    code, first, complaint = enqueue(node, gateway, "70", "unsigned_users", name)
    assert (code, complaint) == (0, "")
    assert first["outcome"] == "assigned"
    assert first["assignment"]["agent_id"] == 70
    assert first["replayed"] is False
    _, again, _ = enqueue(node, gateway, "70", "unsigned_users", name)
    assert again["assignment"]["id"] == first["assignment"]["id"]
    assert again["replayed"] is True
    shown = gateway.get("/v1/agents/70/assignment").json
    assert shown["id"] == first["assignment"]["id"]


def test_celery_node_is_refused_like_everybody(node: Node, gateway: Gateway) -> None:
    assert enqueue(node, gateway, "999999")[1]["code"] == "unknown_agent"
    code, answer, complaint = enqueue(node, gateway, "nobody")
    assert (code, answer) == (2, None)
    assert len(complaint.splitlines()) == 1


def test_a_message_as_the_document_has_it_is_answered_as_the_document_says(
    gateway: Gateway,
) -> None:
    body, envelope, result = (documented(number) for number in range(3))
    assert json.loads(base64.b64decode(envelope["body"])) == body
    body[1]["request_id"] = str(uuid.uuid4())
    body[1]["agent_id"] = 71
    body[1]["deadline"] = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
    task = str(uuid.uuid4())
    envelope["body"] = base64.b64encode(json.dumps(body).encode()).decode()
    envelope["headers"]["id"] = envelope["properties"]["delivery_tag"] = task
    envelope["properties"]["correlation_id"] = task
    key = f"celery-task-meta-{task}"
    with redis.Redis.from_url(gateway.stack.redis_url) as there, there.pubsub() as heard:
        heard.subscribe(key)
        there.lpush("assignment", json.dumps(envelope))
        stored = json.loads(wait_until(lambda: there.get(key), "the result"))
        assert 3500 < there.ttl(key) <= 3600
        said = wait_until(
            lambda: heard.get_message(ignore_subscribe_messages=True), "the announcement"
        )
    assert json.loads(said["data"]) == stored
    assert stored["status"] == result["status"] == "SUCCESS"
    assert stored["task_id"] == task
    assert stored.keys() >= result.keys()
    assert stored["result"].keys() == result["result"].keys()
    assert stored["result"]["outcome"] == "assigned"
    assert stored["result"]["assignment"].keys() == result["result"]["assignment"].keys()
    assert stored["result"]["assignment"]["agent_id"] == 71
