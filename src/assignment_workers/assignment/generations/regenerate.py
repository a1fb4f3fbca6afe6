"""Build a generation beside the published one; `publish` is a separate command.

A build delays no claim: it fills a table that nothing reads yet. Only attaching the table as a
partition locks the table `entries`, with a lock that blocks neither reads nor writes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Insert,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    insert,
    select,
    table,
    text,
    update,
)

from assignment_workers.assignment import phones
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.mirror import freshen
from assignment_workers.assignment.generations.entries import READY, WAITING
from assignment_workers.assignment.jobs import Work
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.queues import BUILD_INTERVAL, Policy
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.tables import (
    Assignment,
    Event,
    Generation,
    GenerationState,
    Phone,
)


def regenerate(
    work: Work,
    dialer: Dialer,
    crm: Crm | None,
    policy: Policy,
    *,
    trigger: str,
    settings_version: int | None = None,
) -> tuple[int, int]:
    """Build a generation of the dialer queue of `policy`; return its number and its size.

    `policy`: the rules of the dialer queue. `trigger`: the cause of the build. `settings_version`:
    the version of the settings that the policy was made from. The trigger and the version are only
    recorded.

    The generation has all users who meet the rules now, ranked, including users whom an agent
    holds. The entries of users who were deferred, or skipped lately, get the state `waiting`. If
    the dialer queue has a size limit, users who can be called before the next build are chosen
    first, by rank. If the limit is not reached, other users are chosen too, by rank. The chosen
    users are then numbered again from 1, all together, in the order of their ranks.

    A failure leaves the published generation unchanged and marks the new one failed; if the process
    dies, the next build marks it. Cost: one statement over all users of the dialer queue, in the
    database; the rows stay there. The generation's row is committed at once, on
    `work.side_connection`. An external CRM is read first: if it is unavailable, the build fails,
    and no user is removed. Changed phone numbers are parsed first too, at most
    `phones.BEFORE_A_BUILD` batches; claims parse the remaining numbers.
    """
    _fail_abandoned(work.side_connection, policy.queue)
    number = _begin(work, policy.queue, trigger, settings_version)
    try:
        freshen(work.connection.engine, dialer, crm)
        phones.read(work, policy.numbers, batches=phones.BEFORE_A_BUILD)
        size = _build(work.connection, policy, number, work.now)
    except BaseException as error:
        work.connection.rollback()
        work.side_connection.rollback()
        fail(
            work.side_connection,
            number,
            policy.queue,
            work.now,
            f"{type(error).__name__}: {error}"[:500],
        )
        work.side_connection.commit()
        raise
    return number, size


def _begin(work: Work, queue: str, trigger: str, version: int | None) -> int:
    number = work.side_connection.execute(
        insert(Generation)
        .values(queue=queue, trigger=trigger, started_at=work.now, settings_version=version)
        .returning(Generation.id)
    ).scalar_one()
    work.side_connection.commit()
    return number


def _build(connection: Connection, policy: Policy, number: int, now: datetime) -> int:
    name = partition(number)
    # The constraint saves a scan at the attachment; indexes are built faster at the end.
    connection.execute(
        text(
            f"CREATE TABLE {name} (LIKE assignment.entries"
            " INCLUDING DEFAULTS INCLUDING CONSTRAINTS,"
            f" CONSTRAINT bound CHECK (generation_id = {number}))"
        )
    )
    # Before the fill, so that anything the fill may have missed is outside this snapshot.
    snapshot = connection.execute(_SNAPSHOT).scalar_one()
    size = _filled(connection, policy, name, number, now)
    connection.execute(text(f"ALTER TABLE {name} ADD PRIMARY KEY (generation_id, user_id)"))
    connection.execute(text(f"CREATE INDEX ON {name} (generation_id, rank) WHERE state = 'ready'"))
    connection.execute(
        text(f"CREATE INDEX ON {name} (generation_id, available_from) WHERE state = 'waiting'")
    )
    connection.execute(
        text(f"CREATE INDEX ON {name} (generation_id, user_id) WHERE state = 'held'")
    )
    connection.execute(text(f"ANALYZE {name}"))
    connection.execute(
        text(f"ALTER TABLE assignment.entries ATTACH PARTITION {name} FOR VALUES IN ({number})")
    )
    connection.execute(
        update(Generation)
        .where(Generation.id == number)
        .values(size=size, snapshot=snapshot, built_at=func.clock_timestamp())
    )
    return size


def _filled(
    connection: Connection, policy: Policy, table_name: str, number: int, now: datetime
) -> int:
    """Insert the generation's entries (its users with their positions); return their number."""
    parameters = {"generation": number, **policy.building(now), "instant": now}
    chosen = _eligible(policy)
    if policy.limit is not None:
        zones = phones.zones(connection) if policy.hours is not None else ()
        parameters |= {"limit": policy.limit, "soon": now + BUILD_INTERVAL}
        parameters |= policy.soon(now, zones)
        chosen = _limited(policy, chosen)
    fill = _fill(chosen, table_name).execution_options(preserve_rowcount=True)
    return connection.execute(fill, parameters).rowcount


def partition(number: int) -> str:
    """Return the name, with schema, of the table with the users of generation `number`."""
    return f"assignment.entries_{number:d}"


def fail(connection: Connection, number: int, queue: str, now: datetime, error: str) -> None:
    """Mark a generation as failed, so that it cannot be published, and record the event."""
    connection.execute(
        update(Generation)
        .where(Generation.id == number)
        .values(state=sql_text(GenerationState.FAILED), error=error)
    )
    connection.execute(
        insert(Event).values(
            at=now,
            kind=EventKind.GENERATION_FAILED,
            queue=queue,
            generation_id=number,
            details={"error": error},
        )
    )


def _fail_abandoned(side_connection: Connection, queue: str) -> None:
    """Mark the unfinished generations of this dialer queue as failed.

    The connection of a build holds the lock of the build job until the build ends. The caller holds
    this lock now. Therefore, no earlier build is still running: if its generation is unfinished,
    its process has died, or has lost the connection.
    """
    dead = side_connection.execute(
        select(Generation.id, func.clock_timestamp()).where(
            Generation.queue == queue,
            Generation.state == sql_text(GenerationState.BUILDING),
            Generation.built_at.is_(None),
        )
    ).all()
    for number, now in dead:
        fail(side_connection, number, queue, now, "its process ended before it was built")
    side_connection.commit()


def _fill(chosen: Select[*tuple[Any, ...]], table_name: str) -> Insert:
    """Build the INSERT that copies the rows of the query `chosen` into the table `table_name`.

    The table is the partition of one generation. Each row is an entry: a user and the user's
    position in the generation.
    """
    schema, _, name = table_name.partition(".")
    names = ["generation_id", "user_id", "rank", "score", "state", "available_from"]
    target = table(name, *(column(each) for each in names), schema=schema)
    return insert(target).from_select(names, chosen)


def _eligible(policy: Policy) -> Select[*tuple[Any, ...]]:
    """Select a ranked entry for every user who meets the rules of `policy`, in the order of rank.

    An entry is the position of a user in a generation. Entries of users who were skipped lately or
    deferred are waiting. The query reads the users of the dialer queue once and sorts them once.
    """
    put_off = (
        select(Assignment.user_id, func.max(Assignment.put_off_until).label("until"))
        .where(Assignment.put_off_until > bindparam("instant", type_=Instant))
        .group_by(Assignment.user_id)
        .cte("put_off")
    )
    return (
        select(
            bindparam("generation", type_=BigInteger).label("generation_id"),
            UserCallScore.user_id,
            func.row_number().over(order_by=policy.order).label("rank"),
            UserCallScore.current_score.label("score"),
            case((put_off.c.until.is_(None), READY), else_=WAITING).label("state"),
            put_off.c.until.label("available_from"),
        )
        .join(CrmUser, CrmUser.id == UserCallScore.user_id)
        .outerjoin(Phone, Phone.user_id == UserCallScore.user_id)
        .outerjoin(put_off, put_off.c.user_id == UserCallScore.user_id)
        .where(policy.eligible())
        .order_by(text("rank"))
    )


def _limited(policy: Policy, eligible: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Select the entries of `eligible` that a generation with a size limit gets.

    An entry is the position of a user in a generation. The SQL parameter `limit` is the maximum
    number of entries that are chosen. The chosen entries stay in their order, and their ranks are
    numbered from 1 again. Users who can be called before the next build are chosen first, so that
    users who cannot be called for hours do not fill the generation. Cost: one more sort of the
    eligible users.
    """
    each = eligible.order_by(None).add_columns(policy.callable_soon().label("in_hours")).subquery()
    found = each.c
    waits = found.available_from >= bindparam("soon", type_=Instant)
    is_soon = and_(found.in_hours, func.coalesce(waits, false()).is_(False))
    chosen = (
        select(each)
        .order_by(is_soon.desc(), found.rank)
        .limit(bindparam("limit", type_=BigInteger))
        .subquery()
    )
    rank = func.row_number().over(order_by=chosen.c.rank).label("rank")
    names = ("generation_id", "user_id", "rank", "score", "state", "available_from")
    return select(*(rank if name == "rank" else chosen.c[name] for name in names)).order_by(
        text("rank")
    )


_SNAPSHOT = select(cast(func.pg_current_snapshot(), Text))
