"""Another Celery program and a task of ours: its answer, and no task that is sent when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import chain, chord, signature

from tests.support.celery_programs import celery_program
from tests.support.processes import running


def test_a_call_is_answered_and_one_with_a_link_a_chain_or_a_chord_is_refused(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with (
        running(database_url, redis_url, tmp_path) as stack,
        celery_program(redis_url, redis_url) as app,
    ):
        stack.start("sequencer")
        stack.built()
        told = signature("agent.tend", queue="maintenance", app=app)

        def asked(number: int) -> Any:
            return signature("assignment.request", [number], queue="assignment", app=app)

        assert asked(26).apply_async().get(timeout=20)["outcome"] == "assigned"
        chained = chain(asked(29), told, app=app).apply_async()
        counted: Any = chord([asked(30), asked(31)], told, app=app).apply_async()
        refused = {
            "callbacks": asked(27).apply_async(link=told),
            "errbacks": asked(28).apply_async(link_error=told),
            "chain": chained.parent,
            "chord": counted.parent.children[0],
        }
        for link, sent in refused.items():
            answer = sent.get(timeout=20)
            assert (answer["outcome"], answer["code"]) == ("refused", "malformed")
            assert answer["reason"].startswith(f"{link}: no other task is sent")
        assert stack.value("SELECT count(*) FROM assignment.assignments") == 1
