"""The protocol breaks nothing in any state that it can reach, and no safeguard of it is idle."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.model.protocol import Protocol
from tests.model.protocol_search import Search, search
from tests.model.protocol_state import Budget, State


def taken_over_in_a_turn(state: State) -> bool:
    """A sequencer whose term is over has a message in its hands."""
    return any(each.does == "has" and each.term < state.db.term for each in state.sequencers)


def redelivered(state: State) -> bool:
    """An ask that was answered waits again."""
    answered = dict(state.db.answers)
    return any(each.task == "ask" and each.key in answered for each in state.waiting)


def published_while_held(state: State) -> bool:
    return state.db.published.id > 1 and bool(state.db.holds)


def expired(state: State) -> bool:
    return any(how == "expired" for _, how in state.db.ended)


def begun_twice(state: State) -> bool:
    """Two sequencers believe in one number of a term."""
    first, second = state.sequencers
    return first.term == second.term > 0 and first.mark != second.mark


BUDGETS: dict[str, tuple[Budget, int, Callable[[State], bool]]] = {
    "a sequencer is killed twice": (
        Budget(crashes=2, cuts=1, repeats=1, builds=1),
        70_000,
        redelivered,
    ),
    "a leader freezes and wakes": (
        Budget(freezes=1, repeats=1, builds=1),
        100_000,
        taken_over_in_a_turn,
    ),
    "a leader freezes and one is killed": (
        Budget(freezes=1, crashes=1, builds=1),
        110_000,
        published_while_held,
    ),
    "a leader freezes and a lease lapses": (
        Budget(freezes=1, lapses=1, repeats=1),
        100_000,
        expired,
    ),
    "two leaders freeze": (Budget(freezes=2, cuts=1), 20_000, taken_over_in_a_turn),
    "the database moves back": (Budget(returns=1), 15_000, taken_over_in_a_turn),
    "the database moves back and one is killed": (
        Budget(returns=1, crashes=1),
        100_000,
        begun_twice,
    ),
    "a lease lapses": (Budget(lapses=1, crashes=1, builds=1), 20_000, expired),
    "Redis loses its data": (Budget(losses=1, crashes=1, builds=1), 20_000, redelivered),
}


@pytest.mark.parametrize("what", BUDGETS)
def test_nothing_is_broken_and_everybody_is_answered(what: str) -> None:
    budget, at_least, interesting = BUDGETS[what]
    found = search(Protocol(budget), {"interesting": interesting})
    assert found.breaches == {}
    assert found.stuck is None
    assert found.states > at_least, "the search is not empty"
    assert found.reached["interesting"] > 100


def broken(protocol: Protocol) -> Search:
    return search(protocol, {})


def test_find_then_update_is_found_out_by_the_incident_s_trace() -> None:
    """Original-dialer section 0, in seven steps."""
    found = broken(Protocol(Budget(builds=1), finds_then_updates=True))
    assert found.breaches["2: the row of user 1 is gone"] == [
        "A leads in term 1",
        "A is ready",
        "agent 1 asks",
        "A takes ask 1",
        "A finds user 1",
        "a rebuild replaces all rows",
        "A updates the row of user 1: not found",
    ]
    assert "2: the hold on user 1 is deleted" in found.breaches


@pytest.mark.parametrize(
    ("without", "breach"),
    [
        (
            Protocol(Budget(freezes=1), fenced=False),
            "9: term 1 commits in term 2",
        ),
        (
            Protocol(Budget(freezes=1, repeats=1), keeps_requests=False),
            "5: request 1 hands out a second user",
        ),
        (
            Protocol(Budget(builds=1), brings_in=False),
            "2: user 1 is handed out after a build that had not seen their completion",
        ),
        (
            Protocol(Budget(builds=1), brings_in=False, looks_at_holds=False),
            "1: user 1 is handed out while held",
        ),
        (
            Protocol(Budget(crashes=1), puts_back="tail"),
            "order: request 2 is served before request 1",
        ),
        (
            Protocol(Budget(), commits_first=False),
            "5: agent 1 is told of assignment 1, which is not committed",
        ),
    ],
    ids=["term", "request id", "bringing in", "either look at holds", "order", "commit first"],
)
def test_each_safeguard_left_out_is_found_out(without: Protocol, breach: str) -> None:
    assert breach in broken(without).breaches


@pytest.mark.parametrize(
    "without",
    [
        Protocol(Budget(crashes=1), acknowledges_late=False),
        Protocol(Budget(crashes=1), puts_back="nowhere"),
    ],
    ids=["acknowledged when taken", "not put back"],
)
def test_a_message_in_the_hands_of_a_killed_sequencer_would_be_lost(without: Protocol) -> None:
    found = broken(without)
    assert found.stuck is not None
    assert found.stuck[-1] == "A is killed"


def test_terms_known_by_their_number_alone_would_be_begun_twice() -> None:
    """The protocol of release 0.1, with a database that moves back and a leader that wakes."""
    found = broken(Protocol(Budget(returns=1), marked=False))
    begun = ["A leads in term 1", "A is ready", "A takes ask 1", "the standby is promoted"]
    before = ["agent 1 asks", "a standby falls behind", *begun]
    assert found.breaches["9: term 1 commits in the term 1 of another"] == [
        *before,
        "B leads in term 1",
        "A commits ask 1: assignment 1",
    ]
    assert found.stuck == [*before, "A sees that its place is gone"]
    assert broken(Protocol(Budget(returns=1))).breaches == {}


def test_a_claim_s_look_at_holds_is_a_second_line_of_defence() -> None:
    """With one lane, what a publication brings in is enough; the constraint is there for others."""
    budget = Budget(builds=1, crashes=1, cuts=1)
    assert broken(Protocol(budget, looks_at_holds=False)).breaches == {}
