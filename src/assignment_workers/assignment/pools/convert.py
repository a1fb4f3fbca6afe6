"""Conversions: users who reached the goal of their dialer queue leave it and are recorded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Connection,
    Integer,
    Interval,
    ScalarSelect,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSON, aggregate_order_by, array

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.answers import Done
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.queues import Policy, queue_of
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.bulk import rows as rows_of
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import Agent, Conversion, UserCallScore
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Assignment, AssignmentState

ATTRIBUTED_FOR = timedelta(days=30)
LONGER_THAN = timedelta(seconds=30)
"""Duration that a call must exceed for its agent to be credited with the user's conversion."""

AT_A_TIME = 1_000
"""Maximum number of converted users whom one command removes.

Other messages of the assignment queue wait for the command, for some tens of milliseconds.
"""

_NOT_HELD = ~exists(
    select(1)
    .select_from(Assignment)
    .where(Assignment.user_id == UserCallScore.user_id, Assignment.state == ACTIVE)
)


def converted(connection: Connection, policy: Policy, *, after: int, now: datetime) -> list[int]:
    """Return the ids of users of one dialer queue who have reached the queue's goal.

    `policy`: the rules of the dialer queue, and its goal. The ids are above `after` and ascending,
    at most `AT_A_TIME`; an empty list means that no more users follow. Users whom an agent holds
    are left out until their assignment ends.
    """
    return list(
        connection.execute(
            select(UserCallScore.user_id)
            .join(CrmUser, CrmUser.id == UserCallScore.user_id)
            .where(policy.converted(), _NOT_HELD, UserCallScore.user_id > after)
            .order_by(UserCallScore.user_id)
            .limit(AT_A_TIME),
            policy.building(now),
        ).scalars()
    )


def remove_converted(
    transaction: FencedTransaction,
    policy: Policy,
    users: Sequence[int],
    *,
    policies: Mapping[str, Policy],
) -> Done:
    """Remove users who have reached the goal of a dialer queue from that queue, and record them.

    `users`: the ids of the users who are checked and, if they have reached the goal, removed.
    `policy`: the rules of that dialer queue, and its goal. `policies`: the rules of all dialer
    queues; a user whom they place in another queue moves to that queue. The CRM facts are read in
    this transaction. Users whom an agent holds, and users who do not meet the goal now, are left
    alone.

    Each conversion is recorded once. A repeated command finds nothing to do, because the first one
    took the user's score row out of the queue. A unique index prevents a second record by another
    program; its columns are the user, the dialer queue and the number of the user's stay in that
    queue. The record has the score before the removal, and the agents who spoke to the user; the
    agent who spoke last is the primary agent. Hazards D12 and D13 in docs/hazards.md say more.
    """
    transaction.require_lanes(policy.queue)
    since = {"since": transaction.now - ATTRIBUTED_FOR}
    parameters = {"users": list(users), **policy.building(transaction.now), **since}
    statement = _before(transaction.dialer, policy, tuple(policies.values()))
    before = transaction.crm_reader.judge(statement, parameters, users=users)
    rows = [row._asdict() for row in before if row.user_id not in transaction.crm_reader.unknown]
    if rows:
        for row in rows:
            row |= {"id": transaction.new_id(), "at": transaction.now, "queue": policy.queue}
            row["agent"] = next(iter(row["agents"]), None)
        transaction.connection.execute(_MOVE, {"rows": rows})
        # The dialer's table has a column of its own for this one type of conversion.
        signed = policy.conversion_type == Conversion.signature_obtained.key
        kind = {"conversion_type": policy.conversion_type, "signature_obtained": signed}
        transaction.connection.execute(_RECORD, {"rows": [row | kind for row in rows]})
        entries.leave(transaction, [row["user_id"] for row in rows], "converted")
        transaction.record(
            *(
                {
                    "kind": EventKind.CONVERTED,
                    "queue": policy.queue,
                    "user_id": row["user_id"],
                    "details": {
                        "conversion_id": row["id"],
                        "moved_to": row["place"],
                        "primary_agent": row["agent"],
                    },
                }
                for row in rows
            )
        )
    return Done(counts={"converted": len(rows)})


def _spoke(dialer: Dialer) -> ScalarSelect[Any]:
    """Select the agents who spoke to the user, the one with the latest call first.

    A call counts only if it meets four conditions. The agent completed it. The user was reached.
    The call ended after the SQL parameter `since`. The call was longer than `LONGER_THAN`. The
    telephony system alone knows the real length of a call. Therefore the time for which the agent
    held the user is taken as the length of the call.
    """
    unanswered = [sql_text(each.name) for each in dialer.outcomes if not each.keeps]
    calls = (
        select(Assignment.agent_id, func.max(Assignment.ended_at).label("last"))
        .join(Agent, Agent.id == Assignment.agent_id)
        .where(
            Assignment.user_id == UserCallScore.user_id,
            Assignment.state == sql_text(AssignmentState.COMPLETED),
            Assignment.outcome.not_in(unanswered),
            Assignment.ended_at > bindparam("since", type_=Instant),
            Assignment.ended_at - Assignment.claimed_at > literal(LONGER_THAN, Interval()),
        )
        .group_by(Assignment.agent_id)
        .correlate(UserCallScore)
        .subquery("calls")
    )
    return select(
        func.array_agg(aggregate_order_by(calls.c.agent_id, calls.c.last.desc()))
    ).scalar_subquery()


_episode = (
    select(func.count() + 1)
    .select_from(Conversion)
    .where(
        Conversion.user_id == UserCallScore.user_id,
        Conversion.previous_queue_type == UserCallScore.current_queue_type,
    )
    .scalar_subquery()
)


@expression_cache
def _before(
    dialer: Dialer, policy: Policy, policies: tuple[Policy, ...]
) -> Select[*tuple[Any, ...]]:
    return (
        select(
            UserCallScore.user_id,
            UserCallScore.current_score.label("score"),
            UserCallScore.total_attempts.label("attempts"),
            UserCallScore.last_call_at,
            queue_of(policies).label("place"),
            func.coalesce(_spoke(dialer), array([], type_=Integer)).label("agents"),
            _episode.label("episode"),
        )
        .join(CrmUser, CrmUser.id == UserCallScore.user_id)
        .where(
            UserCallScore.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
            policy.converted(),
            _NOT_HELD,
        )
        # By user, as every transaction that locks several score rows does, so that two never
        # deadlock.
        .order_by(UserCallScore.user_id)
        .with_for_update(of=UserCallScore)
    )


_moves = rows_of(user_id=BigInteger(), place=Text(), at=Instant)
_MOVE = (
    update(UserCallScore)
    .where(UserCallScore.user_id == _moves.c.user_id)
    .values(
        current_score=0,
        current_queue_type=_moves.c.place,
        updated_at=func.timezone("UTC", _moves.c.at),
    )
)

_records = rows_of(
    id=Uuid(),
    user_id=BigInteger(),
    queue=Text(),
    conversion_type=Text(),
    score=Integer(),
    attempts=Integer(),
    last_call_at=Instant,
    at=Instant,
    signature_obtained=Boolean(),
    agent=Integer(),
    agents=JSON(),
    episode=Integer(),
)
_at = func.timezone("UTC", _records.c.at)
_RECORD = insert(Conversion).from_select(
    [
        "id",
        "user_id",
        "previous_queue_type",
        "conversion_type",
        "conversion_reason",
        "final_score",
        "total_call_attempts",
        "last_call_at",
        "converted_at",
        "signature_obtained",
        "primary_agent_id",
        "contributing_agents",
        "episode",
        "created_at",
        "updated_at",
    ],
    select(
        _records.c.id,
        _records.c.user_id,
        _records.c.queue,
        _records.c.conversion_type,
        _records.c.conversion_type,
        _records.c.score,
        _records.c.attempts,
        func.timezone("UTC", _records.c.last_call_at),
        _at,
        _records.c.signature_obtained,
        _records.c.agent,
        _records.c.agents,
        _records.c.episode,
        _at,
        _at,
    ),
)
