"""The history checker takes good histories, and rejects each with one thing forged in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from assignment_workers.assignment.history import Fact, History
from assignment_workers.assignment.turn import EventKind
from assignment_workers.settings import Settings

SETTINGS = Settings.from_environment({})
BEGAN = datetime(2026, 3, 2, 9, tzinfo=UTC)
QUEUE = "unsigned_users"
SECOND = timedelta(seconds=1)


class Teller:
    """Tells a history, fact by fact, a second apart unless it waits."""

    def __init__(self) -> None:
        self.history = History(SETTINGS)
        self.now = BEGAN
        self.term = 1
        self._number = 0
        self._generation = 0

    def wait(self, time: timedelta) -> None:
        self.now += time

    def published(self, ranks: dict[int, int], *, generation: int | None = None) -> None:
        self._generation = generation or self._generation + 1
        fact = self._fact(EventKind.GENERATION_PUBLISHED)
        self.history.publish(fact, ranks, began=self.now - SECOND)
        self.history.tell(fact)

    def assigned(
        self, user: int, agent: int, *, rank: int, request: str | None = None, of: int | None = None
    ) -> int:
        """The number of the new assignment."""
        number = self._number + 1
        fact = self._fact(EventKind.ASSIGNED, user, agent, number)
        self.history.tell(
            fact._replace(
                request_id=request or f"request-{number}",
                generation_id=of or self._generation,
                rank=rank,
            )
        )
        return number

    def ended(self, kind: EventKind, user: int, agent: int, number: int) -> None:
        self.history.tell(self._fact(kind, user, agent, number))

    def taken_out(self, user: int) -> None:
        self.history.tell(self._fact(EventKind.TAKEN_OUT, user))

    def breaches(self) -> list[int]:
        """The guarantees that the history breaks."""
        self.history.finish(self.now, bound=timedelta(seconds=60))
        return [each.guarantee for each in self.history.breaches]

    def _fact(
        self, kind: EventKind, user: int | None = None, agent: int | None = None, number: int = 0
    ) -> Fact:
        self.now += SECOND
        self._number += 1
        return Fact(
            id=self._number,
            at=self.now,
            kind=kind,
            term=self.term,
            queue=QUEUE,
            user_id=user,
            agent_id=agent,
            assignment_id=UUID(int=number) if number else None,
            request_id=None,
            generation_id=self._generation,
        )


def test_a_good_history_is_taken() -> None:
    told = Teller()
    told.published({101: 1, 102: 2, 103: 3, 104: 4})
    first = told.assigned(101, 1, rank=1)
    second = told.assigned(102, 2, rank=2)
    told.published({101: 1, 102: 2, 103: 3, 104: 4})
    told.ended(EventKind.COMPLETED, 101, 1, first)
    told.ended(EventKind.SKIPPED, 102, 2, second)
    third = told.assigned(103, 1, rank=3)
    told.term = 2
    told.ended(EventKind.RENEWED, 103, 1, third)
    told.wait(SETTINGS.lease)
    told.ended(EventKind.EXPIRED, 103, 1, third)
    told.wait(SETTINGS.skip_everyone)
    fourth = told.assigned(103, 2, rank=3)  # 102 has a better rank, but this agent skipped them
    fifth = told.assigned(102, 1, rank=2)
    told.ended(EventKind.RELEASED, 103, 2, fourth)
    told.ended(EventKind.COMPLETED, 102, 1, fifth)
    told.taken_out(103)
    sixth = told.assigned(104, 1, rank=4)
    told.ended(EventKind.COMPLETED, 104, 1, sixth)
    assert told.breaches() == []


def user_held_twice(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.assigned(101, 2, rank=1)


def agent_holds_two(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.assigned(102, 1, rank=2)


def generation_goes_back(told: Teller) -> None:
    told.published({101: 1}, generation=5)
    told.published({101: 1}, generation=4)


def granted_from_a_retired_generation(told: Teller) -> None:
    told.published({101: 1, 102: 2})
    told.assigned(101, 1, rank=1, of=1)


def better_rank_passed_over(told: Teller) -> None:
    told.assigned(102, 1, rank=2)


def nobody_of_the_generation(told: Teller) -> None:
    told.assigned(999, 1, rank=0)


def offered_while_resting(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.SKIPPED, 101, 1, number)
    told.assigned(101, 2, rank=1)


def offered_after_completion(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.COMPLETED, 101, 1, number)
    told.assigned(101, 2, rank=1)


def offered_after_it_was_taken_out(told: Teller) -> None:
    told.taken_out(101)
    told.assigned(101, 1, rank=1)


def request_answered_twice(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1, request="same")
    told.ended(EventKind.COMPLETED, 101, 1, number)
    told.assigned(102, 1, rank=2, request="same")


def hold_outlives_its_lease(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.wait(SETTINGS.lease + timedelta(seconds=61))


def expired_too_early(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.EXPIRED, 101, 1, number)


def ended_by_another_agent(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.COMPLETED, 101, 2, number)


def ended_twice(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.COMPLETED, 101, 1, number)
    told.ended(EventKind.RELEASED, 101, 1, number)


def renewed_after_its_end(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.RELEASED, 101, 1, number)
    told.ended(EventKind.RENEWED, 101, 1, number)


def stale_term_commits(told: Teller) -> None:
    told.term = 3
    number = told.assigned(101, 1, rank=1)
    told.term = 2
    told.ended(EventKind.COMPLETED, 101, 1, number)


@pytest.mark.parametrize(
    ("forge", "guarantees"),
    [
        (user_held_twice, {1, 4}),
        (agent_holds_two, {1}),
        (generation_goes_back, {2}),
        (granted_from_a_retired_generation, {2}),
        (better_rank_passed_over, {4}),
        (nobody_of_the_generation, {4}),
        (offered_while_resting, {4}),
        (offered_after_completion, {4}),
        (offered_after_it_was_taken_out, {4}),
        (request_answered_twice, {5}),
        (hold_outlives_its_lease, {7}),
        (expired_too_early, {7}),
        (ended_by_another_agent, {8}),
        (ended_twice, {8}),
        (renewed_after_its_end, {8}),
        (stale_term_commits, {9}),
    ],
)
def test_a_forged_history_is_rejected(
    forge: Callable[[Teller], None], guarantees: set[int]
) -> None:
    told = Teller()
    told.published({101: 1, 102: 2, 103: 3})
    forge(told)
    assert set(told.breaches()) == guarantees
