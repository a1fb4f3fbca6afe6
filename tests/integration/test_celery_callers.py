"""What any Celery program may do with a task of ours: link another to it, chain one behind it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import redis
from celery import Celery, chain, signature

from tests.processes import running, wait_until


def test_an_answer_is_handed_on_to_links_and_along_a_chain(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with running(database_url, redis_url, tmp_path) as stack:
        stack.start("sequencer")
        stack.built()
        (maintenance,) = (each for each in stack.started if each.name == "maintenance")
        maintenance.stop()  # what is sent there stays
        app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
        told = signature("dialer.told", queue="maintenance", app=app)
        asked = signature("assignment.request", [26], queue="assignment", app=app)
        linked = asked.apply_async(link=told)
        answer = linked.get(timeout=20)
        assert answer["outcome"] == "assigned"
        again = signature("assignment.request", [26], queue="assignment", app=app)
        chain(again, told, app=app).apply_async()
        with redis.Redis.from_url(redis_url) as broker:
            wait_until(lambda: broker.llen("maintenance") == 2, "both messages to be handed on")
            messages = [json.loads(each) for each in broker.lrange("maintenance", 0, -1)]
        app.close()
    handed = [json.loads(base64.b64decode(each["body"]))[0] for each in messages[::-1]]
    assert handed == [[answer], [answer | {"replayed": True}]]
