"""Effects of a call's outcome: the user's score, and a callback if one was promised."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import null
from sqlalchemy.dialects.postgresql import Insert

from assignment_workers.assignment.answers import Held
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.outcomes import Outcome, raised, score_after
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.dialer import Callback, UserCallScore


def score_row(
    transaction: FencedTransaction, hold: Held, outcome: Outcome, callback_at: datetime | None
) -> dict[str, Any]:
    """Return the parameters with which the statement `score` updates a user's score after a call.

    `hold`: the assignment of the call. `callback_at`: the time of a promised callback, if any. A
    user without a score row gets one, with the score of a first call (original-dialer section 4 in
    docs/).
    """
    return {
        "id": transaction.new_id(),
        "user_id": hold.user_id,
        "current_score": outcome.first_score,
        "total_attempts": 1,
        "successful_calls": int(outcome.success),
        "current_queue_type": hold.queue,
        "created_at": transaction.now,
        "next_call_after": callback_at
        or (transaction.now + outcome.delay if outcome.delay else None),
        "last_call_at": transaction.now,
        "last_outcome": outcome.name,
        "updated_at": transaction.now,
    }


def callback_row(
    transaction: FencedTransaction, hold: Held, outcome: Outcome, callback_at: datetime
) -> dict[str, Any]:
    """Return the parameters with which the statement `PROMISE` stores a promised callback.

    `hold`: the assignment of the call. The assignment's id is stored as the id of the call session,
    a column that the dialer's table requires.
    """
    return {
        "id": transaction.new_id(),
        "user_id": hold.user_id,
        "scheduled_for": callback_at,
        "callback_reason": outcome.name,
        "preferred_agent_id": hold.agent_id,
        "original_call_session_id": hold.id,
        "queue_type": hold.queue,
        "created_by_agent_id": hold.agent_id,
        "created_at": transaction.now,
        "updated_at": transaction.now,
    }


_called = insert_rows(
    UserCallScore,
    UserCallScore.id,
    UserCallScore.user_id,
    UserCallScore.current_score,
    UserCallScore.total_attempts,
    UserCallScore.successful_calls,
    UserCallScore.current_queue_type,
    UserCallScore.created_at,
    UserCallScore.next_call_after,
    UserCallScore.last_call_at,
    UserCallScore.last_outcome,
    UserCallScore.updated_at,
    parameter="scores",
)


def score(outcomes: Sequence[Outcome]) -> Insert:
    """Return the statement that inserts or updates the score rows of users after calls.

    The statement itself computes the new score from the stored one, by the dialer's `outcomes`; the
    stored score is not read before (hazard D5 in docs/hazards.md). The rows to insert or update are
    the SQL parameter `scores`, in the form that `score_row` returns. The caller must order them by
    user id: every job locks score rows in this order, so that no two transactions deadlock.
    """
    return _called.on_conflict_do_update(
        index_elements=[UserCallScore.user_id],
        set_={
            "current_score": score_after(
                _called.excluded.current_score, _called.excluded.last_outcome, outcomes
            ),
            "total_attempts": raised(UserCallScore.total_attempts, 1),
            "successful_calls": raised(
                UserCallScore.successful_calls, _called.excluded.successful_calls
            ),
            "next_call_after": _called.excluded.next_call_after,
            "last_call_at": _called.excluded.last_call_at,
            "last_outcome": _called.excluded.last_outcome,
            "updated_at": _called.excluded.updated_at,
        },
    )


_promised = insert_rows(
    Callback,
    Callback.id,
    Callback.user_id,
    Callback.scheduled_for,
    Callback.callback_reason,
    Callback.preferred_agent_id,
    Callback.original_call_session_id,
    Callback.queue_type,
    Callback.created_by_agent_id,
    Callback.created_at,
    Callback.updated_at,
    parameter="callbacks",
)
PROMISE = _promised.on_conflict_do_update(
    index_elements=[Callback.user_id],
    index_where=Callback.status == sql_text("pending"),
    set_={
        "scheduled_for": _promised.excluded.scheduled_for,
        "callback_reason": _promised.excluded.callback_reason,
        "preferred_agent_id": _promised.excluded.preferred_agent_id,
        "original_call_session_id": _promised.excluded.original_call_session_id,
        "queue_type": _promised.excluded.queue_type,
        "available_from": null(),
        "retry_count": 0,
        "updated_at": _promised.excluded.updated_at,
    },
)
"""Insert a promised callback for each user, or replace the user's pending callback.

A unique index allows each user one pending callback. Another program may have inserted a callback
of the user since this transaction began; it is replaced too.
"""
