"""The release of an assignment whose answer reached nobody."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, exists, select

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.answers import Done, Finished
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Owner, Release
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.schema.tables import Assignment, Request


def release_unclaimed(
    transaction: FencedTransaction, owner: Owner, *, lease_expires_at: datetime
) -> Done:
    """Release the assignment if it is unchanged and its agent has made no request since.

    It stays if it was renewed or finished, or if the agent made a request again, with the same
    request id or another. The transaction that releases also decides: an agent whose next request
    comes before it keeps the assignment; an agent whose next request comes after it gets another.
    `released` counts 1 or 0.
    """
    parameters = {
        "assignment": owner.assignment_id,
        "agent": owner.agent_id,
        "version": owner.version,
        "until": lease_expires_at,
    }
    unclaimed = transaction.connection.execute(_UNCLAIMED, parameters).scalar_one()
    done = finish(transaction, [Release(owner)]) if unclaimed else []
    return Done(counts={"released": sum(isinstance(each, Finished) for each in done)})


_UNCLAIMED = select(
    exists().where(
        Assignment.id == bindparam("assignment"),
        Assignment.agent_id == bindparam("agent"),
        Assignment.state == ACTIVE,
        Assignment.version == bindparam("version"),
        Assignment.lease_expires_at == bindparam("until"),
        ~exists().where(
            Request.request_id == Assignment.request_id, Request.asked_again_at.is_not(None)
        ),
        ~exists().where(
            Request.answered_at > Assignment.claimed_at, Request.agent_id == bindparam("agent")
        ),
    )
)
"""Uses primary keys, and the index on `answered_at` over the seconds since the claim."""
