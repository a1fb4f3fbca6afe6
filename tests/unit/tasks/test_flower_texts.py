"""The texts of Flower begin with what matters, and the documented searches find it by Flower's own engine."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from flower.utils.search import TaskSearchEngine
from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Done,
    Empty,
    Finished,
    Held,
    Refused,
)
from assignment_workers.tasks.redaction import (
    did_something,
    shown,
    shown_answer,
    summary_of_message,
)
from tests.support.root import ROOT

AT = datetime(2026, 11, 28, tzinfo=UTC)
PAGE = (ROOT / "docs" / "flower.md").read_text()


def held(user: int, agent: int) -> Held:
    return Held(
        id=UUID(int=user),
        user_id=user,
        agent_id=agent,
        queue="unsigned_users",
        source="queue",
        reason="first by rank",
        rank=1,
        claimed_at=AT,
        lease_expires_at=AT,
        version=1,
        state="active",
    )


def ask(agent: int, queue: str | None = "unsigned_users") -> dict[str, Any]:
    name = f"01932c07-1f00-7000-8000-{agent:012d}"
    return {"agent_id": agent, "queue": queue, "request_id": name, "sent_at": str(AT)}


def test_the_first_words_say_what_matters() -> None:
    one = {"requests": [ask(12)]}
    assert summary_of_message(one) == "agent 12, unsigned_users"
    assert shown_answer([Assigned(assignment=held(3652, 12))]).startswith("assigned user 3652, ")
    three = {"requests": [ask(12, None), ask(14, None), ask(15, None)]}
    assert summary_of_message(three) == "3 requests: agent 12, agent 14, agent 15, any queue"
    empty = Empty(queue=None, retry_after=1, why={})
    answers = [Assigned(assignment=held(3652, 12)), Assigned(assignment=held(41, 14)), empty]
    assert shown_answer(answers)[:40] == "2 assigned, 1 empty: user 3652, user 41,"
    move = {"move": "complete", "agent_id": 12, "outcome": "no_answer", "notes": "hello"}
    assert summary_of_message({"requests": [move]}) == "1 move: agent 12, complete, no_answer"
    done = Finished(outcome="completed", assignment=held(3652, 12))
    assert shown_answer([done]).startswith("completed user 3652, agent 12, ")
    refused = Refused(code=Code.NOT_OWNER, reason="another agent's: SECRET")
    assert shown_answer([refused]).startswith("refused, not_owner, ")
    assert shown_answer(Done(counts={"expired": 2, "kept": 1})).startswith(
        "done: expired 2, kept 1"
    )
    built = {"unsigned_users": {"generation": 7, "size": 500}}
    assert shown_answer(built).startswith("unsigned_users: generation 7, size 500")
    assert summary_of_message({"queue": "unsigned_users", "trigger": "hourly"}) == (
        "unsigned_users, hourly"
    )


@given(
    st.recursive(
        st.sampled_from(["Ann 7", "+44 7700 900123", "call him", 5, None, True]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "requests",
                        "notes",
                        "why",
                        "reason",
                        "queue",
                        "agent_id",
                        "user_id",
                        "Ann 7",
                        "move",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_nothing_that_was_typed_is_shown_whatever_the_message(value: Any) -> None:
    said = value if isinstance(value, dict) else {"requests": value}
    for text in (summary_of_message(said), shown(said), shown_answer(value)):
        for secret in ("Ann", "7700", "call"):
            assert secret not in text


def test_the_searches_of_the_page_find_what_they_say() -> None:
    tasks: dict[str, tuple[str, dict[str, Any], Any]] = {
        "wanted": (
            "assignment.request_many",
            {"requests": [ask(12), ask(14)]},
            [Assigned(assignment=held(3652, 12)), Assigned(assignment=held(41, 14))],
        ),
        "other": (
            "assignment.request_many",
            {"requests": [ask(120)]},
            [Assigned(assignment=held(36521, 120))],
        ),
        "ended": (
            "assignment.finish_many",
            {"requests": [{"move": "complete", "agent_id": 120, "outcome": "no_answer"}]},
            [Finished(outcome="completed", assignment=held(36521, 120))],
        ),
        "paused": ("queue.pause", {"queue": "unsigned_users"}, Done()),
        "failed": ("user.place", {}, None),
    }
    engine = TaskSearchEngine()
    engine.rebuild(
        (name, listed(name, task, said, answer)) for name, (task, said, answer) in tasks.items()
    )
    expected = {
        '"agent 12,"': {"wanted"},
        '"user 3652,"': {"wanted"},
        '"no_answer"': {"ended"},
        "name:assignment.request_many": {"wanted", "other"},
        "state:FAILURE": {"failed"},
        "kwargs:queue=unsigned_users": {"paused", "other"},
    }
    table = PAGE.partition("| search | finds |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)) == expected.keys()
    for query, found in expected.items():
        assert set(engine.matching_ids(query)) == found, query
    assert set(engine.matching_ids(str(ask(14)["request_id"]))) == {"wanted"}


def listed(name: str, task: str, said: dict[str, Any], answer: Any) -> Any:
    return SimpleNamespace(
        uuid=name,
        name=task,
        state="FAILURE" if answer is None else "SUCCESS",
        worker="sequencer-1",
        args=summary_of_message(said),
        kwargs=shown(said),
        result="" if answer is None else shown_answer(answer),
    )


@pytest.mark.parametrize(
    ("answer", "something"),
    [
        (Done(counts={"expired": 0, "kept": 5}), False),
        (Done(counts={"expired": 1, "kept": 5}), True),
        ({"checks": 20, "broken": 0}, False),
        ({"checks": 20, "broken": 1}, True),
        ({"skipped": "locked"}, False),
        ({"low": 0, "built": {}}, False),
        ({"low": 0, "built": {"unsigned_users": {"size": 3}}}, True),
        (Refused(code=Code.MALFORMED, reason="x"), True),
    ],
)
def test_a_routine_task_is_listed_if_it_did_something(answer: object, something: bool) -> None:
    assert did_something(answer) is something
