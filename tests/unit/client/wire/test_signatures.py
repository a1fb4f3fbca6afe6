"""A command's signature holds for that command, under that id, and with that key alone."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assignment_workers.client.wire.message import COMMAND_ID, SIGNATURE, message, signature

KEY = "k" * 32
SAID = {"queue": "unsigned_users", "by": "token 0123", "why": "a test"}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    st.lists,
    max_leaves=4,
)


def sent(key: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    made = message(
        "queue.pause", [], kwargs, task_id="1", celery_queue="assignment", expires=None, key=key
    )
    headers: dict[str, Any] = made["headers"]
    return headers


def test_what_names_who_acts_is_signed_by_who_has_the_key() -> None:
    headers = sent(KEY, SAID)
    assert headers[SIGNATURE] == signature(KEY, "queue.pause", headers[COMMAND_ID], [], SAID)
    assert sent(None, SAID)[SIGNATURE] is None
    assert sent(KEY, {"queue": "unsigned_users"})[SIGNATURE] is None


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SAID)), values)
def test_of_anything_else_it_is_another(name: str, value: object) -> None:
    good = signature(KEY, "queue.pause", "1", [], SAID)
    changed = SAID | {name: value}
    assert (signature(KEY, "queue.pause", "1", [], changed) == good) == (changed == SAID)
    read = json.loads(json.dumps(changed))
    as_read = signature(KEY, "queue.pause", "1", [], read)
    assert as_read == signature(KEY, "queue.pause", "1", [], changed), "as the worker reads it"
    assert signature("another", "queue.pause", "1", [], SAID) != good
    assert signature(KEY, "queue.resume", "1", [], SAID) != good
    assert signature(KEY, "queue.pause", "2", [], SAID) != good
    assert signature(KEY, "queue.pause", "1", [value], SAID) != good
