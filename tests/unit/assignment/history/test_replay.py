"""The history checker takes good histories, and rejects each with one thing forged in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from assignment_workers.assignment.history.replay import Fact, Replay, ReplayedAssignment
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.settings import Settings

SETTINGS = Settings.from_environment({})
BEGAN = datetime(2026, 3, 2, 9, tzinfo=UTC)
QUEUE, OTHER = "unsigned_users", "outstanding_requests"
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
BOUND = timedelta(seconds=60)


def name(number: int) -> str:
    """The id of the assignment of this number."""
    return f"assignment-{number}"


class Teller:
    """Tells a history, fact by fact, a second apart unless it waits."""

    def __init__(self) -> None:
        self.replay = Replay(SETTINGS, bound=BOUND)
        self.now = BEGAN
        self.term = 1
        self._number = 0
        self._generations: dict[str, int] = {}

    def wait(self, time: timedelta) -> None:
        self.now += time

    def tell(self, kind: str, **said: Any) -> Fact:
        """One fact, with its columns as they are given."""
        fact = self._fact(kind, **said)
        self.replay.apply(fact)
        return fact

    def published(
        self,
        *users: int,
        queue: str = QUEUE,
        generation: int | None = None,
        missed: dict[int, int] | None = None,
    ) -> None:
        """The next generation, of these users in the order of their rank, replaces the last.

        `missed`: completed assignments that its build did not see, each with its user.
        """
        before = self._generations.get(queue)
        number = generation or max(self._generations.values(), default=0) + 1
        if before is not None:
            self.tell(EventKind.GENERATION_RETIRED, queue=queue, generation_id=before)
            self.now -= SECOND
        fact = self._fact(EventKind.GENERATION_PUBLISHED, queue=queue, generation_id=number)
        ranks = {user: rank for rank, user in reversed([*enumerate(users, start=1)])}
        self.replay.publish(
            fact, ranks, missed={name(number): user for number, user in (missed or {}).items()}
        )
        self._generations[queue] = number

    def assigned(self, user: int, agent: int, *, rank: int, **said: Any) -> int:
        """The number of the new assignment."""
        queue = said.get("queue", QUEUE)
        number = self._number + 1
        usual = {
            "queue": queue,
            "assignment_id": name(number),
            "request_id": f"request-{number}",
            "generation_id": self._generations.get(queue),
            "lease_expires_at": self.now + SECOND + SETTINGS.lease,
        }
        self.tell(EventKind.ASSIGNED, user_id=user, agent_id=agent, rank=rank, **(usual | said))
        return number

    def ended(self, kind: str, user: int, agent: int, number: int) -> None:
        """Any fact about an assignment that is there."""
        lease = self.now + SECOND + SETTINGS.lease if kind == EventKind.RENEWED else None
        self.tell(
            kind,
            user_id=user,
            agent_id=agent,
            assignment_id=name(number),
            lease_expires_at=lease,
        )

    def begin_term(self, term: int) -> None:
        self.term = term
        self.tell(EventKind.TERM_BEGUN, queue=None)

    def breaches(self) -> list[int]:
        """The guarantees that the history breaks."""
        self.replay.finish(self.now)
        return [each.guarantee for each in self.replay.breaches]

    def _fact(self, kind: str, **said: Any) -> Fact:
        self.now += SECOND
        self._number += 1
        columns: dict[str, Any] = dict.fromkeys(Fact._fields) | {
            "id": self._number,
            "at": self.now,
            "kind": kind,
            "term": self.term,
            "queue": QUEUE,
        }
        return Fact(**(columns | said))


def agents_ask_and_finish_while_everything_is_rebuilt(told: Teller) -> None:
    told.published(101, 102, 103, 104)
    first = told.assigned(101, 1, rank=1)
    second = told.assigned(102, 2, rank=2)
    told.published(101, 102, 103, 104)
    told.ended(EventKind.COMPLETED, 101, 1, first)
    told.ended(EventKind.SKIPPED, 102, 2, second)
    third = told.assigned(103, 1, rank=3)
    told.begin_term(2)
    told.ended(EventKind.RENEWED, 103, 1, third)
    told.wait(SETTINGS.lease - SECOND)
    told.ended(EventKind.EXPIRED, 103, 1, third)
    told.wait(SETTINGS.skip_everyone)
    fourth = told.assigned(103, 2, rank=3)  # 102 has a better rank, but this agent skipped them
    fifth = told.assigned(102, 1, rank=2)
    told.ended(EventKind.RELEASED, 103, 2, fourth)
    told.ended(EventKind.COMPLETED, 102, 1, fifth)
    told.tell(EventKind.TAKEN_OUT, user_id=103, generation_id=2)
    sixth = told.assigned(104, 1, rank=4)
    told.ended(EventKind.COMPLETED, 104, 1, sixth)


def one_who_rests_is_passed_over_and_then_given(told: Teller) -> None:
    told.published(101, 102, 103)
    told.tell(EventKind.PUT_OFF, user_id=101, generation_id=1, until=told.now + 5 * SECOND)
    first = told.assigned(102, 1, rank=2)
    told.wait(5 * SECOND)
    told.assigned(101, 2, rank=1)
    told.ended(EventKind.RELEASED, 102, 1, first)


def a_renewed_hold_outlasts_its_first_lease(told: Teller) -> None:
    told.published(101)
    number = told.assigned(101, 1, rank=1)
    for _ in range(5):
        told.wait(SETTINGS.lease - 2 * SECOND)
        told.ended(EventKind.RENEWED, 101, 1, number)
    told.wait(SETTINGS.lease + BOUND - 2 * SECOND)
    told.ended(EventKind.COMPLETED, 101, 1, number)  # late, and nothing had ended it before


def a_hold_stands_while_nobody_leads(told: Teller) -> None:
    told.published(101, 102)
    first = told.assigned(101, 1, rank=1)
    told.wait(8 * HOUR)
    told.begin_term(2)
    told.wait(BOUND - SECOND)
    told.ended(EventKind.EXPIRED, 101, 1, first)
    told.assigned(101, 2, rank=1)


def a_skipped_user_comes_back_to_others_and_then_to_the_agent(told: Teller) -> None:
    told.published(101, 102, 103)
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.wait(SETTINGS.skip_everyone - SECOND)
    told.ended(EventKind.RELEASED, 101, 2, told.assigned(101, 2, rank=1))
    told.ended(EventKind.RELEASED, 102, 1, told.assigned(102, 1, rank=2))
    told.wait(SETTINGS.skip_agent - SETTINGS.skip_everyone)
    told.assigned(101, 1, rank=1)


def users_who_rest_over_a_publication_come_back_one_by_one(told: Teller) -> None:
    told.published(101, 102, 103)
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.wait(SETTINGS.skip_everyone - 5 * SECOND)
    told.ended(EventKind.SKIPPED, 102, 1, told.assigned(102, 1, rank=2))
    told.wait(5 * SECOND)
    told.ended(EventKind.SKIPPED, 101, 2, told.assigned(101, 2, rank=1))
    told.published(101, 102, 103)
    told.wait(SETTINGS.skip_everyone - 9 * SECOND)
    told.ended(EventKind.RELEASED, 102, 3, told.assigned(102, 3, rank=2))
    told.wait(5 * SECOND)
    told.assigned(101, 3, rank=1)


def a_held_user_keeps_their_place_over_a_publication(told: Teller) -> None:
    told.published(101, 102, 103)
    first = told.assigned(101, 1, rank=1)
    second = told.assigned(102, 2, rank=2)
    told.published(101, 102, 103)
    told.published(102, 101, queue=OTHER)
    third = told.assigned(103, 3, rank=3)
    told.ended(EventKind.RELEASED, 101, 1, first)
    told.ended(EventKind.COMPLETED, 102, 2, second)
    told.assigned(101, 4, rank=2, queue=OTHER)
    told.ended(EventKind.RELEASED, 103, 3, third)
    told.assigned(103, 2, rank=3)


def a_build_brings_in_what_it_missed(told: Teller) -> None:
    """Completed and skipped while it was built: the one is out of it, the other waits."""
    told.published(101, 102, 103)
    first = told.assigned(101, 1, rank=1)
    second = told.assigned(102, 2, rank=2)
    told.ended(EventKind.COMPLETED, 101, 1, first)
    told.ended(EventKind.SKIPPED, 102, 2, second)
    told.published(101, 102, 103, missed={first: 101})
    told.ended(EventKind.RELEASED, 103, 1, told.assigned(103, 1, rank=3))
    told.wait(SETTINGS.skip_everyone)
    told.ended(EventKind.COMPLETED, 102, 3, told.assigned(102, 3, rank=2))
    told.published(101, 104)  # called again later, and the build has seen all
    told.assigned(101, 2, rank=1)


def a_user_whom_a_build_missed_is_held_again_when_it_is_published(told: Teller) -> None:
    told.published(101, 102)
    first = told.assigned(101, 1, rank=1)
    told.ended(EventKind.COMPLETED, 101, 1, first)
    told.published(101, queue=OTHER)
    second = told.assigned(101, 2, rank=1, queue=OTHER)
    told.published(101, 102, missed={first: 101, 77: 102})  # 77 ended at that instant, but after it
    told.ended(EventKind.RELEASED, 101, 2, second)
    told.ended(EventKind.COMPLETED, 101, 1, told.assigned(101, 1, rank=1))
    told.assigned(102, 2, rank=2)


def a_converted_user_is_offered_no_more(told: Teller) -> None:
    told.published(101, 102)
    told.published(101, 103, queue=OTHER)
    told.tell(EventKind.CONVERTED, user_id=101)
    told.assigned(102, 1, rank=2)
    told.assigned(103, 2, rank=2, queue=OTHER)


def a_paused_dialer_queue_is_resumed(told: Teller) -> None:
    told.published(101, 102)
    told.published(201, queue=OTHER)
    told.tell(EventKind.QUEUE_PAUSED)
    told.assigned(201, 1, rank=1, queue=OTHER)
    told.tell(EventKind.QUEUE_RESUMED)
    told.assigned(101, 2, rank=1)


def a_callback_is_promised_with_its_completion(told: Teller) -> None:
    told.published(101)
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.COMPLETED, 101, 1, number)
    told.ended(EventKind.CALLBACK_PROMISED, 101, 1, number)


def called_back(told: Teller, **said: Any) -> int:
    """User 102 is called as promised, from no generation."""
    usual = {
        "generation_id": None,
        "source": "callback",
        "source_id": "promise",
        "scheduled_for": told.now,
    }
    return told.assigned(102, 1, rank=0, **(usual | said))


def a_callback_comes_before_the_queue_and_is_kept(told: Teller) -> None:
    told.published(101)
    number = called_back(told)
    told.ended(EventKind.COMPLETED, 102, 1, number)
    told.tell(EventKind.CALLBACK_POSTPONED, user_id=102, source_id="promise")
    number = called_back(told, kept_for=1)
    told.ended(EventKind.COMPLETED, 102, 1, number)
    told.tell(EventKind.CALLBACK_KEPT, user_id=102, source_id="promise")
    told.assigned(101, 1, rank=1)


def what_is_recorded_outside_the_line_has_no_term(told: Teller) -> None:
    told.published(101, 102)
    told.tell(EventKind.RACE, term=None, queue=None)
    told.tell(EventKind.GENERATION_RETIRED, generation_id=1)
    told.tell(EventKind.GENERATION_FAILED, generation_id=2, term=None, at=BEGAN)
    told.now -= 2 * SECOND
    told.tell(EventKind.GENERATION_PUBLISHED, generation_id=3)
    told.tell(EventKind.RACE, user_id=101, agent_id=1)
    told.assigned(102, 1, rank=2, generation_id=3)  # its entries are gone: the order is not known


def what_stood_before_the_first_event_is_known(told: Teller) -> None:
    told.replay.stood(ReplayedAssignment(name(77), 7, 101, BEGAN + 10 * SECOND))
    told.replay.had_skipped(1, 102, BEGAN - SECOND)
    told.replay.had_published(QUEUE, 4)
    told.replay.had_paused(QUEUE)
    told.tell(EventKind.QUEUE_RESUMED)
    told.ended(EventKind.RELEASED, 999, 8, told.assigned(999, 8, rank=17, generation_id=4))
    told.tell(EventKind.GENERATION_RETIRED, generation_id=4)
    told.now -= SECOND
    told.published(101, 102, 103, 104, generation=5)
    told.ended(EventKind.COMPLETED, 103, 2, told.assigned(103, 2, rank=3))
    told.wait(10 * SECOND)
    told.ended(EventKind.EXPIRED, 101, 7, 77)
    told.ended(EventKind.RELEASED, 101, 3, told.assigned(101, 3, rank=1))
    told.wait(SETTINGS.skip_everyone)
    told.ended(EventKind.COMPLETED, 101, 3, told.assigned(101, 3, rank=1))
    told.assigned(104, 1, rank=4)  # 102 has a better rank, but this agent skipped them
    told.assigned(102, 3, rank=2)


GOOD = [
    agents_ask_and_finish_while_everything_is_rebuilt,
    one_who_rests_is_passed_over_and_then_given,
    a_renewed_hold_outlasts_its_first_lease,
    a_hold_stands_while_nobody_leads,
    a_skipped_user_comes_back_to_others_and_then_to_the_agent,
    users_who_rest_over_a_publication_come_back_one_by_one,
    a_held_user_keeps_their_place_over_a_publication,
    a_build_brings_in_what_it_missed,
    a_user_whom_a_build_missed_is_held_again_when_it_is_published,
    a_converted_user_is_offered_no_more,
    a_paused_dialer_queue_is_resumed,
    a_callback_is_promised_with_its_completion,
    a_callback_comes_before_the_queue_and_is_kept,
    what_is_recorded_outside_the_line_has_no_term,
    what_stood_before_the_first_event_is_known,
]


@pytest.mark.parametrize("history", GOOD, ids=lambda each: each.__name__)
def test_a_good_history_is_taken(history: Callable[[Teller], None]) -> None:
    told = Teller()
    history(told)
    assert told.breaches() == []


def user_held_twice(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.assigned(101, 2, rank=1)


def user_held_in_two_dialer_queues(told: Teller) -> None:
    told.published(101, queue=OTHER)
    told.assigned(101, 1, rank=1)
    told.assigned(101, 2, rank=1, queue=OTHER)


def user_who_stood_held_is_given_away(told: Teller) -> None:
    told.replay.stood(ReplayedAssignment(name(77), 7, 101, told.now + SETTINGS.lease))
    told.assigned(101, 1, rank=1)


def agent_holds_two(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.assigned(102, 1, rank=2)


def generation_goes_back(told: Teller) -> None:
    told.published(101, generation=5)
    told.published(101, generation=4)


def generation_published_twice(told: Teller) -> None:
    told.published(101, generation=1)


def generation_of_no_dialer_queue_hands_out(told: Teller) -> None:
    told.assigned(101, 1, rank=1, queue=OTHER, generation_id=1)


def granted_from_a_retired_generation(told: Teller) -> None:
    told.published(101, 102)
    told.assigned(101, 1, rank=1, generation_id=1)


def failed_generation_is_published(told: Teller) -> None:
    told.tell(EventKind.GENERATION_FAILED, generation_id=2, term=None)
    told.published(101)


def published_generation_fails(told: Teller) -> None:
    told.tell(EventKind.GENERATION_FAILED, generation_id=1, term=None)


def published_beside_the_last_one(told: Teller) -> None:
    told.tell(EventKind.GENERATION_PUBLISHED, generation_id=2)


def another_generation_is_retired(told: Teller) -> None:
    told.tell(EventKind.GENERATION_RETIRED, generation_id=7)
    told.now -= SECOND
    told.tell(EventKind.GENERATION_PUBLISHED, generation_id=8)


def generation_of_another_dialer_queue_is_retired(told: Teller) -> None:
    told.tell(EventKind.GENERATION_RETIRED, generation_id=1)
    told.now -= SECOND
    told.tell(EventKind.GENERATION_PUBLISHED, generation_id=2, queue=OTHER)


def published_after_a_while_without_any(told: Teller) -> None:
    told.tell(EventKind.GENERATION_RETIRED, generation_id=1)
    told.tell(EventKind.GENERATION_PUBLISHED, generation_id=2)


def retired_and_nothing_follows(told: Teller) -> None:
    told.tell(EventKind.GENERATION_RETIRED, generation_id=1)


def retired_and_the_line_goes_on(told: Teller) -> None:
    told.tell(EventKind.GENERATION_RETIRED, generation_id=1)
    told.assigned(101, 1, rank=1)


def a_rebuild_ends_a_hold(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.tell(EventKind.GENERATION_RETIRED, generation_id=1)
    told.now -= SECOND
    told.ended(EventKind.RELEASED, 101, 1, number)
    told.now -= SECOND
    told.tell(EventKind.GENERATION_PUBLISHED, generation_id=2)


def held_user_is_converted(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.tell(EventKind.CONVERTED, user_id=101)


def held_user_is_taken_out(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.tell(EventKind.TAKEN_OUT, user_id=101, generation_id=1)


def better_rank_passed_over(told: Teller) -> None:
    told.assigned(102, 1, rank=2)


def passed_over_once_more(told: Teller) -> None:
    """Who comes back to the head again and again is still at the head."""
    for agent in (1, 2, 3):
        told.ended(EventKind.RELEASED, 101, agent, told.assigned(101, agent, rank=1))
    told.assigned(102, 1, rank=2)


def passed_over_for_one_that_was_skipped(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.assigned(103, 1, rank=3)


def passed_over_though_it_was_another_who_skipped(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.wait(SETTINGS.skip_everyone)
    told.assigned(102, 1, rank=2)
    told.assigned(103, 2, rank=3)


def passed_over_after_a_rest(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.wait(SETTINGS.skip_everyone)
    told.assigned(102, 2, rank=2)


def passed_over_by_the_agent_as_soon_as_the_skip_is_over(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.wait(SETTINGS.skip_agent - SECOND)
    told.assigned(102, 1, rank=2)


def passed_over_after_a_hold_over_a_publication(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.published(101, 102)
    told.ended(EventKind.RELEASED, 101, 1, number)
    told.assigned(102, 2, rank=2)


def passed_over_after_expiry(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.wait(SETTINGS.lease)
    told.ended(EventKind.EXPIRED, 101, 1, number)
    told.assigned(102, 2, rank=2)


def nobody_of_the_generation(told: Teller) -> None:
    told.assigned(999, 1, rank=0)


def under_another_rank(told: Teller) -> None:
    told.assigned(101, 1, rank=2)


def offered_while_resting(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.wait(SETTINGS.skip_everyone - 2 * SECOND)
    told.assigned(101, 2, rank=1)


def offered_while_resting_over_a_publication(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.published(101, 102)
    told.assigned(101, 2, rank=1)


def offered_to_who_skipped_them(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.wait(SETTINGS.skip_everyone)
    told.assigned(101, 1, rank=1)


def offered_to_who_had_skipped_them(told: Teller) -> None:
    told.replay.had_skipped(1, 101, BEGAN - SETTINGS.skip_everyone)
    told.assigned(101, 1, rank=1)


def offered_after_completion(told: Teller) -> None:
    told.ended(EventKind.COMPLETED, 101, 1, told.assigned(101, 1, rank=1))
    told.assigned(101, 2, rank=1)


def offered_after_a_completion_that_the_build_missed(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.COMPLETED, 101, 1, number)
    told.published(101, 102, missed={number: 101})
    told.assigned(101, 2, rank=1)


def offered_after_a_hold_over_a_publication_was_completed(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.published(101, 102)
    told.ended(EventKind.COMPLETED, 101, 1, number)
    told.assigned(101, 2, rank=1)


def offered_after_it_was_taken_out(told: Teller) -> None:
    told.tell(EventKind.TAKEN_OUT, user_id=101, generation_id=1)
    told.assigned(101, 1, rank=1)


def offered_before_the_rest_was_over(told: Teller) -> None:
    until = told.now + SETTINGS.lease
    told.tell(EventKind.PUT_OFF, user_id=101, generation_id=1, until=until)
    told.wait(SETTINGS.lease - 3 * SECOND)
    told.assigned(101, 1, rank=1)


def passed_over_when_the_rest_was_over(told: Teller) -> None:
    until = told.now + SECOND
    told.tell(EventKind.PUT_OFF, user_id=101, generation_id=1, until=until)
    told.wait(2 * SECOND)
    told.assigned(102, 1, rank=2)


def held_user_is_put_off(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.tell(EventKind.PUT_OFF, user_id=101, generation_id=1, until=told.now)


def offered_after_conversion(told: Teller) -> None:
    told.tell(EventKind.CONVERTED, user_id=101)
    told.assigned(101, 1, rank=1)


def offered_after_conversion_while_resting(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, told.assigned(101, 1, rank=1))
    told.tell(EventKind.CONVERTED, user_id=101)
    told.wait(SETTINGS.skip_everyone)
    told.assigned(101, 2, rank=1)


def request_answered_twice(told: Teller) -> None:
    told.ended(EventKind.COMPLETED, 101, 1, told.assigned(101, 1, rank=1, request_id="same"))
    told.assigned(102, 1, rank=2, request_id="same")


def handed_out_while_paused(told: Teller) -> None:
    told.tell(EventKind.QUEUE_PAUSED)
    told.assigned(101, 1, rank=1)


def handed_out_while_paused_since_long(told: Teller) -> None:
    told.replay.had_paused(QUEUE)
    told.assigned(101, 1, rank=1)


def hold_outlives_its_lease(told: Teller) -> None:
    told.assigned(101, 1, rank=1)
    told.wait(SETTINGS.lease + BOUND + SECOND)


def expired_too_early(told: Teller) -> None:
    told.ended(EventKind.EXPIRED, 101, 1, told.assigned(101, 1, rank=1))


def expired_before_its_renewed_lease(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.wait(SETTINGS.lease - 5 * SECOND)
    told.ended(EventKind.RENEWED, 101, 1, number)
    told.wait(10 * SECOND)
    told.ended(EventKind.EXPIRED, 101, 1, number)


def ended_long_after_its_lease(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.wait(SETTINGS.lease + BOUND)
    told.ended(EventKind.EXPIRED, 101, 1, number)


def ended_long_after_its_lease_though_the_line_went_on(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.wait(SETTINGS.lease + BOUND)
    told.tell(EventKind.RACE)
    told.wait(8 * HOUR)
    told.begin_term(2)
    told.ended(EventKind.EXPIRED, 101, 1, number)


def ended_long_after_somebody_led_again(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.wait(8 * HOUR)
    told.begin_term(2)
    told.wait(BOUND)
    told.ended(EventKind.EXPIRED, 101, 1, number)


def renewed_long_after_its_lease(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.wait(SETTINGS.lease + BOUND)
    told.ended(EventKind.RENEWED, 101, 1, number)


def leased_for_too_long(told: Teller) -> None:
    until = told.now + SETTINGS.lease + 2 * SECOND
    told.assigned(101, 1, rank=1, lease_expires_at=until)


def ended_by_another_agent(told: Teller) -> None:
    told.ended(EventKind.COMPLETED, 101, 2, told.assigned(101, 1, rank=1))


def renewed_by_another_agent(told: Teller) -> None:
    told.ended(EventKind.RENEWED, 101, 2, told.assigned(101, 1, rank=1))


def ended_twice(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.COMPLETED, 101, 1, number)
    told.ended(EventKind.RELEASED, 101, 1, number)


def renewed_after_its_end(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.RELEASED, 101, 1, number)
    told.ended(EventKind.RENEWED, 101, 1, number)


def ended_without_a_beginning(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 101, 1, 77)


def stale_term_commits(told: Teller) -> None:
    told.begin_term(2)
    number = told.assigned(101, 1, rank=1)
    told.term = 1
    told.ended(EventKind.COMPLETED, 101, 1, number)


def term_that_has_not_begun(told: Teller) -> None:
    told.term = 2
    told.assigned(101, 1, rank=1)


def term_begins_twice(told: Teller) -> None:
    told.begin_term(1)


def term_is_left_out(told: Teller) -> None:
    told.begin_term(3)


def turns_overlap(told: Teller) -> None:
    told.now -= 10 * SECOND
    told.assigned(101, 1, rank=1)


def changed_under_no_term(told: Teller) -> None:
    told.assigned(101, 1, rank=1, term=None)


def callback_without_completion(told: Teller) -> None:
    told.ended(EventKind.CALLBACK_PROMISED, 101, 1, told.assigned(101, 1, rank=1))


def callback_for_an_earlier_assignment(told: Teller) -> None:
    number = told.assigned(101, 1, rank=1)
    told.ended(EventKind.RELEASED, 101, 1, number)
    told.ended(EventKind.COMPLETED, 101, 1, told.assigned(101, 1, rank=1))
    told.ended(EventKind.CALLBACK_PROMISED, 101, 1, number)


def callback_comes_early(told: Teller) -> None:
    called_back(told, scheduled_for=told.now + HOUR)


def callback_that_is_kept_for_another_agent(told: Teller) -> None:
    called_back(told, kept_for=2)


def callback_after_it_was_kept(told: Teller) -> None:
    told.tell(EventKind.CALLBACK_KEPT, user_id=102, source_id="promise")
    called_back(told)


def callback_ends_twice(told: Teller) -> None:
    told.tell(EventKind.CALLBACK_KEPT, user_id=102, source_id="promise")
    told.tell(EventKind.CALLBACK_CANCELLED, user_id=102, source_id="promise")


def callback_that_is_not_named(told: Teller) -> None:
    told.tell(EventKind.CALLBACK_KEPT, user_id=102)


def callback_for_whom_the_agent_skipped(told: Teller) -> None:
    told.ended(EventKind.SKIPPED, 102, 1, called_back(told))
    called_back(told)


def unknown_kind(told: Teller) -> None:
    told.tell("hand_over", user_id=101)


def end_that_tells_of_another_user(told: Teller) -> None:
    told.ended(EventKind.COMPLETED, 102, 1, told.assigned(101, 1, rank=1))


def lease_is_not_named(told: Teller) -> None:
    told.assigned(101, 1, rank=1, lease_expires_at=None)


FORGED: list[tuple[Callable[[Teller], None], set[int]]] = [
    (user_held_twice, {1}),
    (user_held_in_two_dialer_queues, {1}),
    (user_who_stood_held_is_given_away, {1}),
    (agent_holds_two, {1}),
    (generation_goes_back, {2}),
    (generation_published_twice, {2}),
    (generation_of_no_dialer_queue_hands_out, {2}),
    (granted_from_a_retired_generation, {2}),
    (failed_generation_is_published, {2}),
    (published_generation_fails, {2}),
    (published_beside_the_last_one, {2}),
    (another_generation_is_retired, {2}),
    (generation_of_another_dialer_queue_is_retired, {2}),
    (published_after_a_while_without_any, {2}),
    (retired_and_nothing_follows, {2}),
    (retired_and_the_line_goes_on, {2}),
    (a_rebuild_ends_a_hold, {2}),
    (held_user_is_converted, {2}),
    (held_user_is_taken_out, {2}),
    (better_rank_passed_over, {4}),
    (passed_over_once_more, {4}),
    (passed_over_for_one_that_was_skipped, {4}),
    (passed_over_though_it_was_another_who_skipped, {4}),
    (passed_over_after_a_rest, {4}),
    (passed_over_by_the_agent_as_soon_as_the_skip_is_over, {4}),
    (passed_over_after_a_hold_over_a_publication, {4}),
    (passed_over_after_expiry, {4}),
    (nobody_of_the_generation, {4}),
    (under_another_rank, {4}),
    (offered_while_resting, {4}),
    (offered_while_resting_over_a_publication, {4}),
    (offered_to_who_skipped_them, {4}),
    (offered_to_who_had_skipped_them, {4}),
    (offered_after_completion, {4}),
    (offered_after_a_completion_that_the_build_missed, {4}),
    (offered_after_a_hold_over_a_publication_was_completed, {4}),
    (offered_after_it_was_taken_out, {4}),
    (offered_before_the_rest_was_over, {4}),
    (passed_over_when_the_rest_was_over, {4}),
    (held_user_is_put_off, {2}),
    (offered_after_conversion, {4}),
    (offered_after_conversion_while_resting, {4}),
    (request_answered_twice, {5}),
    (handed_out_while_paused, {6}),
    (handed_out_while_paused_since_long, {6}),
    (hold_outlives_its_lease, {7}),
    (expired_too_early, {7}),
    (expired_before_its_renewed_lease, {7}),
    (ended_long_after_its_lease, {7}),
    (ended_long_after_its_lease_though_the_line_went_on, {7}),
    (ended_long_after_somebody_led_again, {7}),
    (renewed_long_after_its_lease, {7}),
    (leased_for_too_long, {7}),
    (ended_by_another_agent, {8}),
    (renewed_by_another_agent, {8}),
    (ended_twice, {8}),
    (renewed_after_its_end, {8}),
    (ended_without_a_beginning, {8}),
    (stale_term_commits, {9}),
    (term_that_has_not_begun, {9}),
    (term_begins_twice, {9}),
    (term_is_left_out, {9}),
    (turns_overlap, {9}),
    (changed_under_no_term, {9}),
    (callback_without_completion, {10}),
    (callback_for_an_earlier_assignment, {10}),
    (callback_comes_early, {10}),
    (callback_that_is_kept_for_another_agent, {10}),
    (callback_after_it_was_kept, {10}),
    (callback_ends_twice, {10}),
    (callback_that_is_not_named, {11}),
    (callback_for_whom_the_agent_skipped, {4}),
    (unknown_kind, {11}),
    (end_that_tells_of_another_user, {11}),
    (lease_is_not_named, {11}),
]


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
