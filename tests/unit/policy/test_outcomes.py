"""What each outcome does to a user's score and delay: original-dialer section 4, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Connection, create_engine, literal, select, text

from assignment_workers.policy.outcomes import REVIEW, SCORE_CEILING, attempt_penalty, score_after
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.dialer import UserCallScore

HOUR = timedelta(hours=1)
SECTION_4 = {
    "completed_form": (0, 24),
    "going_to_complete": (0, 72),
    "might_complete": (2, 24),
    "call_back": (0, 24),
    "no_answer": (1, 4),
    "missed_call": (0, 0),
    "hung_up": (2, 4),
    "bad_number": (50, 672),
    "no_claim": (200, 0),
    "not_interested": (100, 672),
    "do_not_contact": (200, 0),
}
"""By outcome: what is added to the score, and the hours until the next call."""

CAPPED = {"completed_form", "no_claim", "do_not_contact"}
SCORES = (0, 1, 99, 199, 200, 350)
ATTEMPTS = tuple(range(13))


@pytest.fixture(scope="module")
def scores() -> Iterator[Connection]:
    """A row of `user_call_scores` for each score with each number of attempts so far."""
    engine = create_engine("sqlite://").execution_options(schema_translate_map={"public": None})
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.create_function("greatest", 2, max)
        driver.create_function("least", 2, min)
        connection.execute(
            text("CREATE TABLE user_call_scores (current_score INTEGER, total_attempts INTEGER)")
        )
        connection.execute(
            text("INSERT INTO user_call_scores VALUES (:score, :attempts)"),
            [{"score": each, "attempts": made} for each, made in product(SCORES, ATTEMPTS)],
        )
        connection.commit()
        yield connection
    engine.dispose()


def test_there_are_these_outcomes_with_these_scores_and_delays() -> None:
    assert {
        name: (each.score, each.delay / timedelta(hours=1))
        for name, each in loaded().outcomes_by_name.items()
    } == SECTION_4
    assert all(name == each.name for name, each in loaded().outcomes_by_name.items())


def test_two_outcomes_take_a_user_out_for_good() -> None:
    assert loaded().terminal == ("no_claim", "do_not_contact")


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("success", {"completed_form", "going_to_complete", "call_back"}),
        ("capped", CAPPED),
        ("callback", {"going_to_complete", "might_complete", "call_back", "missed_call"}),
        ("needs_callback", {"call_back", "missed_call"}),
        ("needs_notes", {"do_not_contact"}),
    ],
)
def test_what_is_so_of_some_outcomes_only(what: str, names: set[str]) -> None:
    assert {
        name for name, each in loaded().outcomes_by_name.items() if getattr(each, what)
    } == names


def test_the_penalty_is_each_call_s_own_step_and_never_falls() -> None:
    steps = [attempt_penalty(attempt) for attempt in range(1, 14)]
    assert steps == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 3, 3, 3]


def after(name: str) -> ColumnElement[int]:
    return score_after(
        literal(loaded().outcomes_by_name[name].score),
        literal(name),
        loaded().outcomes_by_name.values(),
    )


@pytest.mark.parametrize("name", loaded().outcomes_by_name)
def test_hazard_d5_the_score_grows_by_the_outcome_and_the_penalty_up_to_the_ceiling(
    scores: Connection, name: str
) -> None:
    before, made = UserCallScore.current_score, UserCallScore.total_attempts
    rows = scores.execute(select(before, made, after(name))).all()
    assert len(rows) == len(SCORES) * len(ATTEMPTS)
    for score, attempts, found in rows:
        grown = score + SECTION_4[name][0] + attempt_penalty(attempts + 1)
        assert found == (max(score, min(SCORE_CEILING, grown)) if name in CAPPED else grown)
        assert found >= score


def test_the_score_does_not_fall_below_zero(scores: Connection) -> None:
    scores.execute(text("INSERT INTO user_call_scores VALUES (-50, 0)"))
    below = select(after("no_answer")).where(UserCallScore.current_score < 0)
    assert scores.execute(below).scalar_one() == 0
    scores.rollback()


def test_an_outcome_that_is_overridden_keeps_what_is_not_named() -> None:
    changes: dict[str, dict[str, Any]] = {
        "no_answer": {"score": 2},
        "hung_up": {"delay_seconds": 60, "actions": ("send_sms",), "review_after": None},
    }
    found = loaded().overridden(changes)
    assert (found["no_answer"].score, found["no_answer"].delay) == (2, 4 * HOUR)
    assert (found["hung_up"].score, found["hung_up"].delay) == (2, timedelta(minutes=1))
    assert found["no_answer"].retried
    assert found["no_answer"].review_after == 2
    assert found["hung_up"].asks_for(earlier=2, promised=False) == ["send_sms"]
    assert {name: each for name, each in found.items() if name not in changes} == {
        name: each for name, each in loaded().outcomes_by_name.items() if name not in changes
    }


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("no_reply", {"score": 2}, "no outcome 'no_reply'; there are no_answer, call_b"),
        ("do_not_contact", {"delay_seconds": 60}, "do_not_contact takes no delay_secon"),
        ("hung_up", {"actions": ("phone",)}, "no action 'phone'; there are send_sms, se"),
    ],
)
def test_a_wrong_override_is_named(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loaded().overridden({name: change})


SECTION_4_ACTIONS = {
    "completed_form": ["send_sms"],
    "going_to_complete": ["send_magic_link", "send_sms", "review"],
    "might_complete": ["send_sms", "review"],
    "call_back": ["send_sms"],
    "no_answer": [],
    "missed_call": ["send_sms", "review"],
    "hung_up": [],
    "bad_number": ["flag_number", "review"],
    "no_claim": [],
    "not_interested": [],
    "do_not_contact": [],
}
"""What others are to do about a user's first call with an outcome, no callback promised.

What the table names besides, we do: callbacks, removal, opting out, conversions.
"""


@pytest.mark.parametrize("name", loaded().outcomes_by_name)
def test_an_outcome_asks_others_for_what_section_4_names(name: str) -> None:
    assert (
        loaded().outcomes_by_name[name].asks_for(earlier=0, promised=False)
        == SECTION_4_ACTIONS[name]
    )


@pytest.mark.parametrize(
    ("name", "earlier", "promised", "is_reviewed"),
    [
        ("no_answer", 1, False, False),
        ("no_answer", 2, False, True),
        ("hung_up", 1, False, False),
        ("hung_up", 2, False, True),
        ("not_interested", 1, False, True),
        ("going_to_complete", 5, True, False),
        ("might_complete", 0, True, False),
        ("missed_call", 0, True, True),
        ("completed_form", 9, False, False),
    ],
)
def test_a_review_is_asked_for_when_it_is_repeated_or_nothing_was_promised(
    name: str, earlier: int, *, promised: bool, is_reviewed: bool
) -> None:
    asked = loaded().outcomes_by_name[name].asks_for(earlier=earlier, promised=promised)
    assert (REVIEW.name in asked) == is_reviewed
