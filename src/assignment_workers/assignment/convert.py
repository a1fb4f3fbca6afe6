"""Users who reached what their dialer queue is for leave it, each with one conversion record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Connection,
    Integer,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    exists,
    func,
    insert,
    select,
    update,
)

from assignment_workers.assignment import entries
from assignment_workers.assignment.answers import Done
from assignment_workers.assignment.holds import ACTIVE
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.policy.queues import Policy, place_of
from assignment_workers.schema.base import Instant
from assignment_workers.schema.bulk import rows as rows_of
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import Conversion, UserCallScore
from assignment_workers.schema.tables import Assignment

AT_A_TIME = 1_000
"""Users whom one command takes out: the line waits for it some tens of milliseconds."""

_NOT_HELD = ~exists(
    select(1)
    .select_from(Assignment)
    .where(Assignment.user_id == UserCallScore.user_id, Assignment.state == ACTIVE)
)


def converted(connection: Connection, policy: Policy, *, after: int, now: datetime) -> list[int]:
    """The next users of this pool, by id beyond `after`, whose facts say that they converted.

    Held ones are left alone until their hold ends. At most `AT_A_TIME`; an empty list is the end.
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
    turn: Turn, policy: Policy, users: Sequence[int], *, policies: Mapping[str, Policy]
) -> Done:
    """Take those of `users` out of the dialer queue who have converted by facts read here.

    The score row's change of queue guards the record: it happens once, so there is one conversion
    for each, however often the command comes (hazard D13). The score before it is what is recorded
    (D12). Who now belongs to another dialer queue moves there. Held users, and those whose facts
    changed back, are left alone.
    """
    before = turn.connection.execute(
        _before(policy, policies), {"users": list(users), **policy.building(turn.now)}
    )
    rows = [dict(row) for row in before.mappings()]
    if rows:
        for row in rows:
            row |= {"id": turn.new_id(), "at": turn.now, "queue": policy.queue}
        turn.connection.execute(_MOVE, {"rows": rows})
        signed = policy.conversion_type == "signature_obtained"
        kind = {"conversion_type": policy.conversion_type, "signature_obtained": signed}
        turn.connection.execute(_RECORD, {"rows": [row | kind for row in rows]})
        entries.leave(turn, [row["user_id"] for row in rows], "converted")
        turn.record(
            *(
                {
                    "kind": EventKind.CONVERTED,
                    "queue": policy.queue,
                    "user_id": row["user_id"],
                    "details": {"conversion_id": row["id"], "moved_to": row["place"]},
                }
                for row in rows
            )
        )
    return Done(counts={"converted": len(rows)})


def _before(policy: Policy, policies: Mapping[str, Policy]) -> Select[*tuple[Any, ...]]:
    return (
        select(
            UserCallScore.user_id,
            UserCallScore.current_score.label("score"),
            UserCallScore.total_attempts.label("attempts"),
            UserCallScore.last_call_at,
            place_of(list(policies.values())).label("place"),
        )
        .join(CrmUser, CrmUser.id == UserCallScore.user_id)
        .where(
            UserCallScore.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
            policy.converted(),
            _NOT_HELD,
        )
        # By user, as whoever locks several score rows does: two of them never wait in a ring.
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
)
_at = func.timezone("UTC", _records.c.at)
_RECORD = insert(Conversion).from_select(
    [
        "id",
        "user_id",
        "previous_queue_type",
        "conversion_type",
        "reason",
        "final_score",
        "total_call_attempts",
        "last_call_at",
        "converted_at",
        "signature_obtained",
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
        _at,
        _at,
    ),
)
