"""Answers: what is written is read again as it was, and nothing else is taken for an answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import to_json

from assignment_workers.assignment import answers
from assignment_workers.assignment.answers import (
    Answer,
    Assigned,
    Code,
    Done,
    Empty,
    Ended,
    Finished,
    Held,
    Noted,
    Paused,
    Refused,
    Stated,
    TooLate,
    Unavailable,
    from_json,
)

NOW = datetime(2026, 11, 23, 9, 30, 15, 250_000, tzinfo=UTC)
HELD = Held(
    id=UUID("019ab000-0000-7000-8000-000000000001"),
    user_id=2064,
    agent_id=26,
    queue="unsigned_users",
    source="queue",
    reason="new",
    rank=1,
    claimed_at=NOW,
    lease_expires_at=NOW,
    version=1,
    state="active",
)

instants = st.datetimes(timezones=st.just(UTC))
seconds = st.floats(min_value=0, allow_infinity=False)
numbers = st.integers(0, 2**63 - 1)
texts = st.text()
held = st.builds(
    Held,
    id=st.uuids(),
    user_id=numbers,
    agent_id=numbers,
    rank=numbers,
    version=numbers,
    claimed_at=instants,
    lease_expires_at=instants,
    accepted_at=st.none() | instants,
)
every_answer: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Assigned, assignment=held, replayed=st.booleans()),
    st.builds(
        Empty, queue=st.none() | texts, retry_after=seconds, why=st.dictionaries(texts, texts)
    ),
    st.builds(Paused, queue=st.none() | texts),
    st.builds(Unavailable, retry_after=seconds, reason=texts),
    st.builds(TooLate),
    st.builds(Refused, code=st.sampled_from(Code), reason=texts, retry_after=st.none() | seconds),
    st.builds(
        Finished,
        outcome=st.sampled_from(get_args(Ended)),
        assignment=held,
        replayed=st.booleans(),
    ),
    st.builds(
        Stated,
        agent_id=numbers,
        state=texts,
        since=instants,
        released=st.none() | st.uuids(),
        replayed=st.booleans(),
    ),
    st.builds(
        Noted,
        agent_id=numbers,
        state=st.none() | texts,
        assignment_id=st.none() | st.uuids(),
        lease_expires_at=st.none() | instants,
    ),
    st.builds(Done, replayed=st.booleans(), counts=st.dictionaries(texts, numbers)),
)


@given(every_answer)
def test_an_answer_comes_back_as_it_was(answer: Answer) -> None:
    assert from_json(json.loads(to_json(answer), parse_constant=pytest.fail)) == answer


def test_each_answer_has_words_of_its_own() -> None:
    outcomes = [
        word
        for member in get_args(Answer)
        for word in get_args(member.model_fields["outcome"].annotation)
    ]
    assert sorted(outcomes) == [
        "accepted",
        "assigned",
        "closed",
        "completed",
        "deferred",
        "done",
        "empty",
        "noted",
        "paused",
        "refused",
        "released",
        "renewed",
        "skipped",
        "stated",
        "too_late",
        "unavailable",
    ]


def test_every_answer_is_one_that_can_be_read() -> None:
    written = {
        each
        for each in vars(answers).values()
        if isinstance(each, type) and "outcome" in getattr(each, "model_fields", {})
    }
    assert written == set(get_args(Answer))


def test_an_assignment_s_times_are_utc_with_z_and_its_id_is_text() -> None:
    said = json.loads(to_json(Assigned(assignment=HELD)))
    assert said["outcome"] == "assigned"
    assert said["assignment"]["id"] == "019ab000-0000-7000-8000-000000000001"
    assert said["assignment"]["claimed_at"] == "2026-11-23T09:30:15.250000Z"


def test_an_answer_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        HELD.version = 2


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "assigned",
        {},
        {"outcome": "lost"},
        {"outcome": "assigned"},
        {"outcome": "refused", "code": "because", "reason": "no"},
        {"outcome": "empty", "queue": None, "retry_after": "soon", "why": {}},
    ],
)
def test_what_is_not_an_answer_is_not_taken_for_one(value: Any) -> None:
    with pytest.raises(ValidationError):
        from_json(value)
