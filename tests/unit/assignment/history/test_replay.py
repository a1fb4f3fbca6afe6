"""The history checker takes good histories, and rejects each with one thing forged in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from assignment_workers.assignment.history.replay import Replay
from assignment_workers.assignment.transaction import EventKind
from tests.unit.assignment.history.forged_histories import FORGED
from tests.unit.assignment.history.histories import BOUND, GOOD, QUEUE, SETTINGS, Teller, name


@pytest.mark.parametrize("history", GOOD, ids=lambda each: each.__name__)
def test_a_good_history_is_taken(history: Callable[[Teller], None]) -> None:
    told = Teller()
    history(told)
    assert told.breaches() == []


@pytest.mark.parametrize(
    ("forge", "guarantees"), FORGED, ids=[forge.__name__ for forge, _ in FORGED]
)
def test_a_forged_history_is_rejected(
    forge: Callable[[Teller], None], guarantees: set[int]
) -> None:
    told = Teller()
    told.published(101, 102, 103)
    forge(told)
    assert set(told.breaches()) == guarantees


def test_a_forged_generation_leaves_the_next_ones_judged() -> None:
    told = Teller()
    told.published(101, 102)
    told.tell(EventKind.GENERATION_PUBLISHED, generation_id=2)
    told._generations[QUEUE] = 2
    told.published(101, 102)
    told.assigned(102, 1, rank=2)
    assert told.breaches() == [2, 4]


WHOLE = {
    EventKind.ASSIGNED: ("user_id", "agent_id", "assignment_id", "request_id"),
    EventKind.TAKEN_OUT: ("user_id", "generation_id"),
    EventKind.PUT_OFF: ("user_id", "generation_id", "until"),
    EventKind.CONVERTED: ("user_id",),
    EventKind.GENERATION_PUBLISHED: ("queue", "generation_id"),
    EventKind.GENERATION_FAILED: ("generation_id",),
}
"""By kind: what an event must name."""


@pytest.mark.parametrize(
    ("kind", "missing"), [(kind, each) for kind, names in WHOLE.items() for each in names]
)
def test_an_event_that_does_not_name_what_it_is_about_is_rejected(
    kind: EventKind, missing: str
) -> None:
    told = Teller()
    named = {
        "user_id": 101,
        "agent_id": 1,
        "assignment_id": name(1),
        "request_id": "request",
        "generation_id": 1,
        "until": told.now,
    }
    told.tell(kind, **(named | {missing: None}))
    assert told.breaches() == [11]


def test_every_kind_of_event_is_known() -> None:
    former = {"barred", "bar_lifted"}
    assert set(Replay(SETTINGS, bound=BOUND)._tellers) == set(EventKind) | former
