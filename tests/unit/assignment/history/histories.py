"""Histories of a call centre that break nothing, told event by event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

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
