"""Restarts slow down, and a process that keeps failing at its start is given up."""

from __future__ import annotations

from assignment_workers.devstack.restart_policy import (
    LONGEST_PAUSE_SECONDS,
    START_SECONDS,
    RestartPolicy,
)


def test_the_first_restart_is_at_once_and_pauses_then_double_up_to_30_seconds() -> None:
    restart_policy = RestartPolicy()
    pauses = [restart_policy.after_end(now=n * 100.0, lived=15, failed=True) for n in range(9)]
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_five_failures_at_its_start_within_a_minute_are_too_many() -> None:
    restart_policy = RestartPolicy()
    pauses = [restart_policy.after_end(now=float(n), lived=0.1, failed=True) for n in range(5)]
    assert pauses == [0, 1, 2, 4, None]


def test_failures_further_apart_are_not() -> None:
    restart_policy = RestartPolicy()
    pauses = [restart_policy.after_end(now=n * 16.0, lived=0.1, failed=True) for n in range(20)]
    assert None not in pauses


def test_a_process_that_ends_on_purpose_is_never_given_up() -> None:
    restart_policy = RestartPolicy()
    pauses = [restart_policy.after_end(now=float(n), lived=0.1, failed=False) for n in range(50)]
    assert None not in pauses


def test_a_process_that_ran_for_a_minute_starts_afresh() -> None:
    restart_policy = RestartPolicy()
    for n in range(4):
        restart_policy.after_end(now=float(n), lived=0.1, failed=True)
    assert restart_policy.after_end(now=100, lived=60, failed=True) == 0


def test_a_process_that_has_run_is_never_given_up_for_what_is_sick_later() -> None:
    restart_policy = RestartPolicy()
    restart_policy.after_end(now=0.0, lived=START_SECONDS, failed=True)
    pauses = [restart_policy.after_end(now=float(n), lived=0.1, failed=True) for n in range(1, 50)]
    assert None not in pauses
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
