"""Good histories, each with one thing forged in it, by the guarantee that it breaks."""

from __future__ import annotations

from collections.abc import Callable

from assignment_workers.assignment.history.replay import ReplayedAssignment
from assignment_workers.assignment.transaction import EventKind
from tests.unit.assignment.history.histories import (
    BEGAN,
    BOUND,
    HOUR,
    OTHER,
    QUEUE,
    SECOND,
    SETTINGS,
    Teller,
    called_back,
    name,
)


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
