"""Commands of operators that end an assignment or give its user to another agent.

Each command records the operator and the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Select, bindparam, select

from assignment_workers.assignment.active_assignments import NAMED, held
from assignment_workers.assignment.agents.sessions import turned_away
from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Finished,
    Held,
    Refused,
    RequestAnswer,
    Unavailable,
)
from assignment_workers.assignment.claims import idempotency, new_assignments
from assignment_workers.assignment.claims.new_assignments import NewAssignment
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Owner, Release
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Assignment, AssignmentState, Phone
from assignment_workers.settings import Settings

UNKNOWN_SECONDS = 30.0


def take_back(
    transaction: FencedTransaction, assignment_id: UUID, *, by: str, why: str
) -> Finished | Refused:
    """End an assignment of any agent; its user is claimable at once, at the same position.

    `by`: the operator; `why`: the reason. Repeating the command gets the same answer. Refused: an
    unknown assignment, and one that has ended in another way.
    """
    found = (
        transaction.connection.execute(NAMED, {"named": [assignment_id]}).mappings().one_or_none()
    )
    if found is None:
        return _unknown(assignment_id)
    owner = Owner(assignment_id, found["agent_id"])
    return finish(transaction, [Release(owner, by=by, why=why)])[0]


def reassign(
    transaction: FencedTransaction,
    assignment_id: UUID,
    agent_id: int,
    *,
    by: str,
    why: str,
    policies: Mapping[str, Policy],
    settings: Settings,
) -> RequestAnswer:
    """End an assignment and assign its user to the agent `agent_id`, in one transaction.

    `by`: the operator; `why`: the reason.

    The request id of the new assignment is `reassigned-` and the id of the assignment that ended,
    so repeating the command gets the same answer. Refused, with nothing changed: an assignment that
    is unknown or not active; an agent who is unknown, inactive, not allowed the dialer queue, on
    break, offline, at a limit of the session, or who holds a user; and a user who may not be called
    any more by the current facts (guarantee 3 in docs/how-it-works.md). The user's rank, a pause of
    the dialer queue, and rules that exclude the user only for a time are ignored, because the user
    is held already.
    """
    request = ClaimRequest(agent_id, f"reassigned-{assignment_id}", None, None, None)
    match idempotency.look_up(transaction, [request], settings)[request.request_id]:
        case idempotency.Requester() as requester:
            if requester.hold is not None:
                transaction.require_lanes(requester.hold.queue)
        case answer:
            return answer
    row = transaction.connection.execute(NAMED, {"named": [assignment_id]}).mappings().one_or_none()
    if row is None:
        return _unknown(assignment_id)
    hold = held(row)
    transaction.require_lanes(hold.queue)
    if hold.state != AssignmentState.ACTIVE:
        return Refused(code=Code.NOT_ACTIVE, reason=f"assignment {hold.id} is {hold.state}")
    away = turned_away(requester.session, settings, transaction.now)
    if (
        wrong := _unfit(requester, agent_id, hold)
        or away
        or _stale(transaction, hold, policies[hold.queue])
    ):
        return wrong
    finish(transaction, [Release(Owner(hold.id, hold.agent_id), by=by, why=why)])
    made = hold.model_copy(
        update={
            "id": transaction.new_id(),
            "agent_id": agent_id,
            "claimed_at": transaction.now,
            "lease_expires_at": transaction.now + settings.of(hold.queue).first_lease,
            "accepted_at": None,
            "version": 1,
        }
    )
    _store(transaction, request, made, reassigned_from=hold.id, by=by, why=why)
    return Assigned(assignment=made)


def _unknown(assignment_id: UUID) -> Refused:
    return Refused(code=Code.UNKNOWN_ASSIGNMENT, reason=f"no assignment {assignment_id}")


def _unfit(requester: idempotency.Requester, agent_id: int, hold: Held) -> Refused | None:
    if not requester.known:
        return Refused(code=Code.UNKNOWN_AGENT, reason=f"no agent {agent_id}")
    if not requester.is_active:
        return Refused(code=Code.INACTIVE_AGENT, reason=f"agent {agent_id} is not active")
    if not isinstance(requester.allowed, list) or hold.queue not in requester.allowed:
        return Refused(
            code=Code.QUEUE_NOT_ALLOWED, reason=f"agent {agent_id} is not allowed {hold.queue}"
        )
    if requester.hold is not None:
        return Refused(
            code=Code.MALFORMED,
            reason=f"agent {agent_id} holds user {requester.hold.user_id} already",
        )
    return None


def _stale(
    transaction: FencedTransaction, hold: Held, policy: Policy
) -> Refused | Unavailable | None:
    found = transaction.crm_reader.judge_for_claim(
        _blocking_rule(policy),
        {"user": hold.user_id},
        users=[hold.user_number],
        policy=policy,
        now=transaction.now,
    )
    if hold.user_id in transaction.crm_reader.unknown:
        reason = f"what the CRM says of user {hold.user_id} makes no sense"
        return Unavailable(retry_after=UNKNOWN_SECONDS, reason=reason)
    rule = found[0].broken if found else "not_in_crm"
    if rule is None:
        return None
    return Refused(
        code=Code.MALFORMED, reason=f"user {hold.user_id} may not be handed out any more: {rule}"
    )


@expression_cache
def _blocking_rule(policy: Policy) -> Select[*tuple[Any, ...]]:
    return (
        select(CrmUser.id.label("user_id"), policy.blocking_rule().label("broken"))
        .select_from(CrmUser)
        .outerjoin(Phone, Phone.user_id == CrmUser.id)
        .outerjoin(UserCallScore, UserCallScore.user_id == CrmUser.id)
        .where(CrmUser.id == bindparam("user", type_=BigInteger))
    )


def _store(
    transaction: FencedTransaction, request: ClaimRequest, hold: Held, **details: object
) -> None:
    generation, score, source_id = transaction.connection.execute(
        select(Assignment.generation_id, Assignment.score, Assignment.source_id).where(
            Assignment.id == details["reassigned_from"]
        )
    ).one()
    if source_id is not None:
        details |= {"source": hold.source, "source_id": source_id}
    new_assignments.store(
        transaction, {request: NewAssignment(hold, score, generation, source_id, details)}, {}
    )
