"""The success rate counts what callers got: unanswered requests too, each request once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.assignment import answer_counts
from assignment_workers.assignment.answer_counts import HOURS, AnswerTally, CountedHour
from assignment_workers.assignment.reports.report import report
from assignment_workers.assignment.reports.service_levels import (
    ServiceLevels,
    combined,
    service_levels,
    unseen,
)
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import AnswerKind
from tests.support.world import UNSIGNED, User, World

MINUTE = timedelta(minutes=1)


@pytest.fixture
def start(world: World) -> datetime:
    """A full minute half an hour ago, from which the tests count."""
    return world.now.replace(second=0, microsecond=0) - timedelta(minutes=30)


def counted(world: World, at: datetime, **kinds: int) -> None:
    """Store counts of one minute, as a gateway does."""
    counts = AnswerTally(lambda: at)
    for kind, number in kinds.items():
        for _ in range(number):
            counts.add(AnswerKind(kind))
    with world.engine.begin() as connection:
        answer_counts.store(connection, counts.take())


def recorded(world: World, at: datetime, outcome: str, number: int, **facts: str) -> None:
    """Store answers of one minute, as a sequencer does."""
    code = facts.get("code", "unknown_agent")
    world.execute(
        "INSERT INTO assignment.requests (request_id, agent_id, outcome, answer, term, answered_at,"
        " received_at, deadline) SELECT gen_random_uuid(), 1, :outcome,"
        " jsonb_build_object('code', cast(:code AS text)), 1, :at, :at, :deadline"
        " FROM generate_series(1, :number)",
        outcome=outcome,
        code=code,
        at=at,
        number=number,
        deadline=facts.get("deadline", at + MINUTE),
    )


def levels(world: World, since: datetime) -> ServiceLevels:
    with world.engine.connect() as connection:
        return service_levels(connection, since=since, until=world.now)


def test_unanswered_requests_count_against_us_and_mistakes_do_not(
    world: World, start: datetime
) -> None:
    counted(world, start, unavailable=100, mistake=4, empty=300)
    recorded(world, start + timedelta(seconds=5), "empty", 300)
    found = levels(world, start)
    assert (found.asked, found.useful, found.mistakes) == (400, 300, 4)
    assert found.unanswered == {"unavailable": 100}
    assert found.success_rate == 300 / 400
    with world.engine.connect() as connection:
        told = report(connection, loaded(), since=start)
    assert (told.success_rate, told.mistakes, told.interleavings) == (300 / 400, 4, 0)


def test_a_request_that_was_answered_too_late_is_one_request(world: World, start: datetime) -> None:
    """A frozen sequencer answers later what the gateway has given up."""
    counted(world, start, unavailable=45, left=5, paused=50)
    recorded(world, start, "paused", 50)
    recorded(world, start + 2 * MINUTE, "too_late", 45)
    recorded(world, start + 2 * MINUTE, "empty", 5)
    found = levels(world, start)
    assert (found.asked, found.useful) == (100, 50)
    assert found.unseen.requests == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["assigned", "empty", "paused", "too_late", "refused"]),
            st.sampled_from(["counted", "gave up", "counts nothing"]),
        ),
        max_size=12,
    )
)
def test_each_request_is_counted_once_whoever_saw_it(calls: list[tuple[str, str]]) -> None:
    """Where every caller counts, or none does, the figures are exact, whatever came late."""
    for counting in ({"counted", "gave up"}, {"counts nothing"}):
        seen = [call for call in calls if call[1] in counting]
        records = Counter(AnswerKind("ruled" if o == "refused" else o) for o, _ in seen)
        counts = Counter(
            AnswerKind.UNAVAILABLE
            if how == "gave up"
            else AnswerKind("ruled" if outcome == "refused" else outcome)
            for outcome, how in seen
            if how != "counts nothing"
        )
        found, _ = combined(records, counts)
        bad = sum(1 for outcome, how in seen if how == "gave up" or outcome == "too_late")
        assert sum(found.values()) == len(seen)
        assert found[AnswerKind.UNAVAILABLE] + found[AnswerKind.TOO_LATE] == bad


def test_a_refusal_by_a_rule_is_an_answer_and_a_past_deadline_a_mistake(
    world: World, start: datetime
) -> None:
    recorded(world, start, "refused", 3, code="on_break")
    recorded(world, start, "refused", 2, code="queue_not_allowed")
    recorded(world, start, "too_late", 7)
    recorded(world, start, "too_late", 1, deadline=str(start - MINUTE))
    found = levels(world, start)
    assert (found.useful, found.mistakes, found.unanswered) == (3, 3, {"too_late": 7})


def test_minutes_without_service_are_counted(world: World, start: datetime) -> None:
    for minute in range(10):
        if minute in {3, 4}:
            counted(world, start + minute * MINUTE, unavailable=9, empty=1)
        else:
            counted(world, start + minute * MINUTE, empty=10)
            recorded(world, start + minute * MINUTE + timedelta(seconds=59), "empty", 10)
    found = levels(world, start)
    assert (found.minutes, found.minutes_unavailable, found.availability) == (10, 2, 0.8)
    assert found.success_rate == 82 / 100


def test_counts_add_up_and_survive_an_outage_of_days() -> None:
    now = datetime(2026, 11, 28, 9, 5, tzinfo=UTC)
    counts = AnswerTally(lambda: now)
    counts.add(AnswerKind.UNAVAILABLE)
    waiting = counts.take()
    for _ in range(3):
        counts.add(AnswerKind.UNAVAILABLE)
    counts.put_back(waiting)
    old = now.replace(minute=0) - timedelta(hours=HOURS)
    counts.put_back([CountedHour(hour=old, kind=AnswerKind.ASSIGNED, by_minute=[2] * 60)])
    found = {each.kind: each.by_minute[5] for each in counts.take()}
    assert found == {AnswerKind.UNAVAILABLE: 4, AnswerKind.DROPPED: 120}
    assert counts.take() == []


def test_the_report_says_what_it_could_not_see(world: World, start: datetime) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    world.now = start - timedelta(days=20)
    world.complete(world.held(1))
    world.now = start + timedelta(minutes=30)
    world.execute("DELETE FROM assignment.requests")
    recorded(world, start, "empty", 5)
    found = levels(world, start - timedelta(hours=2))
    assert found.unseen.requests == 5
    assert found.unseen.records_from == start
    assert found.unseen.counted_from == world.now
    counted(world, start - timedelta(hours=3), dropped=2)
    counted(world, start, dropped=2)
    again = levels(world, start - timedelta(minutes=10))
    assert (again.unseen.dropped, again.unseen.counted_from) == (2, None)
    assert len(unseen(again.unseen)) == 3
