"""Release an assignment whose agent may not know of it, because the answer was lost."""

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
    """Release an assignment whose answer may not have reached its agent.

    `owner`: the assignment and the agent. `lease_expires_at`: the end of the lease as assigned. The
    assignment stays as it is if its lease was renewed, if it has ended, or if the agent has made a
    request since the claim. The check and the release are one transaction: an agent whose next
    request comes before this transaction keeps the assignment, and an agent whose next request
    comes later gets another assignment. The count `released` is 1 or 0.
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
"""Select true if the assignment is unchanged and its agent has made no request since the claim.

Cost: lookups by primary keys, and a read of the requests that got their answer after the claim. The
requests of all agents are read, by the index on `answered_at` of the table `requests`.
"""
