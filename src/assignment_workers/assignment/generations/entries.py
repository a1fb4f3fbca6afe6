"""Changes of users' entries in the published generations as assignments begin and end.

An entry is the position of a user in a generation. Every statement uses the primary key
(generation, user). The cost depends on the users named, not on the size of the dialer queue.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    exists,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    update,
)

from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.policy.rules import is_put_off
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.tables import (
    Entry,
    EntryState,
    Generation,
    GenerationState,
)

PUBLISHED_STATE = sql_text(GenerationState.PUBLISHED)
PUBLISHED = select(Generation.id).where(Generation.state == PUBLISHED_STATE)

READY = sql_text(EntryState.READY)
WAITING = sql_text(EntryState.WAITING)
HELD = sql_text(EntryState.HELD)
OUT = sql_text(EntryState.OUT)
DRAINED_REASON = "drained"
"""The reason stored with each user whom an operator's drain removed from a dialer queue."""


def _still(state: EntryState) -> ColumnElement[bool]:
    """Return a SQL condition `the entry is in this state`, which no index on the states can serve.

    So the planner has to find each entry by its primary key. A condition that can use an index on
    the states would be a risk. If few entries had the state when the table's statistics were
    gathered, the planner expects a scan of that index to be cheap, and chooses such a scan for each
    user. By now, many entries may have the state, and each scan would then read them all.
    """
    return Entry.state.not_in([sql_text(other) for other in EntryState if other != state])


def holding(user: ColumnElement[int]) -> Update:
    """Build the UPDATE that marks the ready and waiting entries of users as held.

    An entry is the position of a user in a generation. `user`: the column of a table or CTE that
    has the users' ids.
    """
    return (
        update(Entry)
        .where(
            Entry.generation_id.in_(PUBLISHED),
            Entry.user_id == user,
            Entry.state.in_([READY, WAITING]),
        )
        .values(state=HELD, available_from=null())
    )


_HOLD = holding(rows("held", user_id=BigInteger()).c.user_id)
_given = rows(user_id=BigInteger())
_RETURN = (
    update(Entry)
    .where(
        Entry.generation_id.in_(PUBLISHED),
        Entry.user_id == _given.c.user_id,
        _still(EntryState.HELD),
    )
    .values(state=READY)
)

_settled = rows("settled", user_id=BigInteger(), state=Text(), until=Instant, reason=Text())
SETTLE = (
    update(Entry)
    .where(
        Entry.generation_id.in_(PUBLISHED),
        Entry.user_id == _settled.c.user_id,
        or_(Entry.state == HELD, and_(Entry.state != OUT, _settled.c.state == OUT)),
    )
    .values(
        state=_settled.c.state,
        available_from=_settled.c.until,
        reason=func.coalesce(_settled.c.reason, Entry.reason),
    )
)
"""Update the entries (positions in published generations) of users whose assignments have ended.

The SQL parameter `settled` has a row for each user, with the new state. An entry that is held gets
the new state. An entry that is ready or waiting gets the new state only if the new state is `out`;
otherwise the entry is not changed. An entry that is out already is not changed.
"""

_leaves = rows(user_id=BigInteger(), reason=Text())
_LEAVE = (
    update(Entry)
    .where(
        Entry.generation_id.in_(PUBLISHED),
        Entry.user_id == _leaves.c.user_id,
        Entry.state != OUT,
    )
    .values(state=OUT, available_from=null(), reason=_leaves.c.reason)
)

PROMOTED_AT_MOST = 5_000
"""Maximum number of waiting users whom one transaction makes claimable: about 50 ms of work."""


def promotion(at_most: int) -> Update:
    """Build the UPDATE that makes users of a generation ready once their waiting time is over.

    It changes at most `at_most` users, beginning with those whose waiting time ended first. SQL
    parameters: `generation` and `instant`, the present time.
    """
    due = (
        select(Entry.user_id)
        .where(
            Entry.generation_id == bindparam("generation"),
            Entry.state == WAITING,
            Entry.available_from <= bindparam("instant", type_=Instant),
        )
        .order_by(Entry.available_from)
        .limit(literal_column(str(at_most)))
    )
    return (
        update(Entry)
        .where(Entry.generation_id == bindparam("generation"), Entry.user_id.in_(due))
        .values(state=READY, available_from=null())
    )


_PROMOTE = promotion(PROMOTED_AT_MOST)

_taken = rows(user_id=BigInteger(), reason=Text())
_TAKE_OUT = (
    update(Entry)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.user_id == _taken.c.user_id,
        _still(EntryState.READY),
    )
    .values(state=OUT, reason=_taken.c.reason)
)

_put_off = rows(user_id=BigInteger(), until=Instant)
_PUT_OFF = (
    update(Entry)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.user_id == _put_off.c.user_id,
        _still(EntryState.READY),
    )
    .values(state=WAITING, available_from=_put_off.c.until)
)


_waiting = (
    select(Entry.generation_id, Entry.user_id)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.state == WAITING,
        not_(is_put_off(Entry.__table__.c.user_id)),
    )
    .order_by(Entry.available_from)
    .limit(literal_column(str(PROMOTED_AT_MOST)))
    .cte("waiting")
)
_JUDGE_ANEW = (
    update(Entry)
    .where(
        Entry.generation_id == _waiting.c.generation_id,
        Entry.user_id == _waiting.c.user_id,
        _still(EntryState.WAITING),
    )
    .values(state=READY, available_from=null())
    .returning(Entry.user_id)
)


def judge_waiting_anew(transaction: FencedTransaction) -> None:
    """End the wait of users who wait because of a rule, after a change of the rules.

    These users are claimable again, and the next claim judges them by the new rules. Users whom an
    agent skipped or deferred continue to wait. At most `PROMOTED_AT_MOST` users of each dialer
    queue are changed, beginning with those whose waiting time ends first. An event records the end
    of each wait.
    """
    transaction.require_all_lanes()
    at = {"now": transaction.now}
    for generation, queue in transaction.connection.execute(_ALL_PUBLISHED).all():
        users = transaction.connection.execute(_JUDGE_ANEW, at | {"generation": generation})
        transaction.record(
            *(
                {
                    "kind": EventKind.WAIT_ENDED,
                    "queue": queue,
                    "user_id": user,
                    "generation_id": generation,
                }
                for user in sorted(users.scalars())
            )
        )


_ALL_PUBLISHED = (
    select(Generation.id, Generation.queue)
    .where(Generation.state == PUBLISHED_STATE)
    .order_by(Generation.queue)
)


def need_places(transaction: FencedTransaction, users: Collection[int]) -> None:
    """Ensure that this transaction has locked every lane in which these users have entries.

    An entry is the position of a user in a published generation. A lane is a group of dialer queues
    with a lock of its own. Raises `OtherLanes` if one of these lanes is not locked; the caller's
    transaction is then run again with that lane locked, too. After a successful check, the users
    get no entries in unlocked lanes before this transaction ends. The reason is that a new entry
    appears only when a generation is published. A publication locks every lane, including those
    that this transaction has locked, so the publication waits until this transaction has ended.
    Cost: nothing with one lane; otherwise a primary-key lookup for each user in each published
    generation of the lanes that are not locked.
    """
    others = transaction.queues_of_other_lanes
    if others and users:
        parameters = {"queues": others, "users": list(users)}
        transaction.require_lanes(*transaction.connection.execute(_PLACED, parameters).scalars())


_PLACED = select(Generation.queue).where(
    Generation.state == PUBLISHED_STATE,
    Generation.queue == any_(bindparam("queues", type_=ARRAY(Text))),
    exists().where(
        Entry.generation_id == Generation.id,
        Entry.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
    ),
)


def hold(transaction: FencedTransaction, users: Collection[int]) -> None:
    """Mark the entries of these users as held in every published generation.

    An entry is the position of a user in a generation. No claim takes a user whose entry is held.
    """
    need_places(transaction, users)
    transaction.connection.execute(_HOLD, {"held": [{"user_id": user} for user in users]})


def give_back(transaction: FencedTransaction, users: Collection[int]) -> None:
    """Make these users, whose entries are held, claimable again at their former positions."""
    if users:
        need_places(transaction, users)
        transaction.connection.execute(_RETURN, {"rows": [{"user_id": user} for user in users]})


def leave(transaction: FencedTransaction, users: Collection[int], reason: str) -> int:
    """Remove these users from all published generations; return the number of removals.

    A user in two generations counts twice. `reason` is stored with each removal.
    """
    need_places(transaction, users)
    given = [{"user_id": user, "reason": reason} for user in users]
    return transaction.connection.execute(_LEAVE, {"rows": given}).rowcount if given else 0


def promote(transaction: FencedTransaction, generation: int) -> bool:
    """Make waiting users of the generation claimable again if their waiting time is over.

    At most `PROMOTED_AT_MOST` users are changed, beginning with those whose waiting time ended
    first. Returns True if more such users may remain. The caller, a claim, then answers no request
    in this transaction, and continues in another transaction.
    """
    parameters = {"generation": generation, "instant": transaction.now}
    return transaction.connection.execute(_PROMOTE, parameters).rowcount >= PROMOTED_AT_MOST


def take_out(
    transaction: FencedTransaction, queue: str, generation: int, reasons: dict[int, str]
) -> None:
    """Remove ineligible users from this generation, and record an event for each.

    `reasons` maps a user to the name of the rule that the user breaks.
    """
    if not reasons:
        return
    given = [{"user_id": user, "reason": reason} for user, reason in reasons.items()]
    transaction.connection.execute(_TAKE_OUT, {"rows": given, "generation": generation})
    transaction.record(
        *(
            {
                "kind": EventKind.TAKEN_OUT,
                "queue": queue,
                "user_id": user,
                "generation_id": generation,
                "details": {"reason": reason},
            }
            for user, reason in reasons.items()
        )
    )


def put_off(
    transaction: FencedTransaction,
    queue: str,
    generation: int,
    resting: dict[int, tuple[str, datetime]],
) -> None:
    """Make these users of the generation wait at their positions, and record an event for each.

    `resting` maps a user to the rule that the user breaks and the time until which the user waits.
    Claims do not read waiting users.
    """
    if not resting:
        return
    given = [{"user_id": user, "until": until} for user, (_, until) in resting.items()]
    transaction.connection.execute(_PUT_OFF, {"rows": given, "generation": generation})
    transaction.record(
        *(
            {
                "kind": EventKind.PUT_OFF,
                "queue": queue,
                "user_id": user,
                "generation_id": generation,
                "details": {"reason": reason, "until": until},
            }
            for user, (reason, until) in resting.items()
        )
    )
