"""Build a generation beside the published one; `publish` is a separate command.

The build delays nothing: it fills a table that nothing reads yet. Only attaching the table as a
partition locks `entries`, with a lock that neither reads nor writes wait for.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Connection,
    Insert,
    Text,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    select,
    table,
    text,
    update,
)

from assignment_workers.assignment import phones
from assignment_workers.assignment.crm.mirror import freshen
from assignment_workers.assignment.generations.entries import READY, WAITING
from assignment_workers.assignment.jobs import Work
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.policy.queues import Policy
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
from assignment_workers.settings import Settings


def regenerate(work: Work, policy: Policy, *, trigger: str, settings: Settings) -> tuple[int, int]:
    """Build a generation of the policy's dialer queue; return its number and its size.

    `trigger`: the cause of the build, for the record. All users who meet the policy now are in the
    generation, ranked, those whom an agent holds included; users who were skipped lately or
    deferred wait. A failure leaves the published generation unchanged and marks the new one failed;
    if the process dies, the next build marks it. Cost: one statement over the pool, in the
    database; this process holds no row. The generation's row is committed at once, on
    `work.side_connection`. An external CRM is read first: if it is away, the build fails, and
    nobody is removed. Changed phone numbers are read first too, at most `phones.BEFORE_A_BUILD`
    batches; a claim reads the remaining ones before it judges these users.
    """
    _fail_abandoned(work.side_connection, policy.queue)
    number = _begin(work, policy.queue, trigger)
    try:
        freshen(work.connection.engine)
        phones.read(work, policy.numbers, batches=phones.BEFORE_A_BUILD)
        size = _build(work.connection, policy, number, work.now, settings)
    except BaseException as error:
        work.connection.rollback()
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


def _begin(work: Work, queue: str, trigger: str) -> int:
    number = work.side_connection.execute(
        insert(Generation)
        .values(queue=queue, trigger=trigger, started_at=work.now)
        .returning(Generation.id)
    ).scalar_one()
    work.side_connection.commit()
    return number


def _build(
    connection: Connection, policy: Policy, number: int, now: datetime, settings: Settings
) -> int:
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
    size = connection.execute(
        _fill(policy, name).execution_options(preserve_rowcount=True),
        {
            "generation": number,
            **policy.building(now),
            "instant": now,
            "size": settings.queue_limit,
        },
    ).rowcount
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


def partition(number: int) -> str:
    """Return the name of the table with this generation's entries."""
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
    """Mark generations of this dialer queue that are still being built as failed.

    The processes that built them are dead, because the caller holds the lock of the job.
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


def _fill(policy: Policy, table_name: str) -> Insert:
    """Build the statement that inserts a ranked entry for every user who meets the policy.

    Users who were skipped lately or deferred wait. The statement takes one pass over the pool and
    one sort.
    """
    put_off = (
        select(Assignment.user_id, func.max(Assignment.put_off_until).label("until"))
        .where(Assignment.put_off_until > bindparam("instant", type_=Instant))
        .group_by(Assignment.user_id)
        .cte("put_off")
    )
    chosen = (
        select(
            bindparam("generation", type_=BigInteger),
            UserCallScore.user_id,
            func.row_number().over(order_by=policy.order).label("rank"),
            UserCallScore.current_score,
            case((put_off.c.until.is_(None), READY), else_=WAITING),
            put_off.c.until,
        )
        .join(CrmUser, CrmUser.id == UserCallScore.user_id)
        .outerjoin(Phone, Phone.user_id == UserCallScore.user_id)
        .outerjoin(put_off, put_off.c.user_id == UserCallScore.user_id)
        .where(policy.eligible())
        .order_by(text("rank"))
        .limit(bindparam("size", type_=BigInteger))
    )
    schema, _, name = table_name.partition(".")
    names = ["generation_id", "user_id", "rank", "score", "state", "available_from"]
    target = table(name, *(column(each) for each in names), schema=schema)
    return insert(target).from_select(names, chosen)


_SNAPSHOT = select(cast(func.pg_current_snapshot(), Text))
