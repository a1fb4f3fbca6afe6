"""The facts of a CRM elsewhere in our own database, for whatever looks at whole pools."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import psycopg
from sqlalchemy import (
    Connection,
    Engine,
    Table,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from assignment_workers.assignment import jobs
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.reader import crm_of
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.errors import CrmUnavailable
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import FACTS, INCOMING, MIRROR, MIRROR_SCHEMA, Claim, CrmUser
from assignment_workers.schema.tables import CrmRead, Forgotten

FRESH = timedelta(seconds=60)
"""Facts of the mirror that are younger are not read again for a job."""
WAITED_FOR = timedelta(minutes=10)
"""How long a job waits for a reading that another process does."""
READING = "crm.mirror"
"""The job that reads the CRM whole."""


def age(connection: Connection) -> timedelta | None:
    """How long ago the mirror's reading began; None: it was never read."""
    found: timedelta | None = connection.execute(
        select(func.clock_timestamp() - CrmRead.read_at)
    ).scalar_one_or_none()
    return found


def forget(connection: Connection) -> None:
    """The CRM is in our own database now: what was read of another is of no age."""
    connection.execute(delete(CrmRead))


def freshen(engine: Engine) -> None:
    """Read a CRM elsewhere whole, unless the mirror is younger than `FRESH`.

    For a job on whole pools, before it looks. Raises `CrmUnavailable`. Where another process reads
    it just now, that is waited for.
    """
    crm = crm_of(engine)
    ends = time.monotonic() + WAITED_FOR.total_seconds()
    while crm is not None:
        with engine.connect() as connection:
            old = age(connection)
        if old is not None and old < FRESH:
            return
        ran = jobs.run(engine, Job(READING, "needed"), partial(read_whole, crm=crm))
        if ran.skipped is None:
            return
        if time.monotonic() > ends:
            raise CrmUnavailable("a reading of it does not come to an end", retry_after=30.0)
        time.sleep(0.2)


def read_whole(work: Work, crm: Crm) -> Counts:
    """Bring the mirror up to date: afterwards it is what the CRM was at one instant.

    The CRM is read as a stream into tables that nobody else looks at, a batch a transaction; then
    one transaction, that of the job, changes what differs and takes out what is no longer there, so
    a reader finds the mirror as it was before or as it is after. Rows that make no sense are left
    out and counted as `unreadable`. A table of the CRM that is empty and was not is taken for a
    sick CRM. Raises `CrmUnavailable`; then the mirror is as it was. Memory: one batch. Cost: one
    pass over the CRM, and one over the mirror.
    """
    began = work.side_connection.execute(select(func.clock_timestamp())).scalar_one()
    counts = _stage(work.side_connection, crm)
    for name in (model.__tablename__ for model in FACTS):
        if counts[name] == 0 and _has_rows(work.connection, _table(name)):
            raise CrmUnavailable(f"its {name} are all gone: it is taken for sick", retry_after=30.0)
    changed = sum(_merge(work.connection, model) for model in FACTS)
    _store_read(work.connection, began, counts)
    return {**counts, "changed": changed}


def _stage(side_connection: Connection, crm: Crm) -> Counter[str]:
    incoming = ", ".join(_table(INCOMING + model.__tablename__).fullname for model in FACTS)
    side_connection.execute(text(f"TRUNCATE {incoming}"))
    side_connection.commit()
    counts = Counter({model.__tablename__: 0 for model in FACTS} | {"unreadable": 0})
    for model, batch, unreadable in crm.everything():
        _copy(side_connection, model, batch)
        side_connection.commit()
        counts[model.__tablename__] += len(batch)
        counts["unreadable"] += unreadable
    users, claims = _table(INCOMING + CrmUser.__tablename__), _table(INCOMING + Claim.__tablename__)
    # Who was forgotten is not brought back; without their user a claim is read by nothing.
    forgotten = select(Forgotten.user_id)
    side_connection.execute(delete(claims).where(claims.c.user_id.in_(forgotten)))
    side_connection.execute(delete(users).where(users.c.id.in_(forgotten)))
    side_connection.execute(text(f"ANALYZE {incoming}"))
    side_connection.commit()
    return counts


def _copy(
    side_connection: Connection, model: type[CrmBase], batch: Sequence[tuple[Any, ...]]
) -> None:
    to = cast("psycopg.Connection[Any]", side_connection.connection.driver_connection)
    into = f"{_table(INCOMING + model.__tablename__).fullname} ({', '.join(FACTS[model])})"
    with to.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN".encode()) as copy:
        for row in batch:
            copy.write_row(row)


def _has_rows(connection: Connection, of: Table) -> bool:
    return connection.execute(select(1).select_from(of).limit(1)).first() is not None


def _table(name: str) -> Table:
    return MIRROR.tables[f"{MIRROR_SCHEMA}.{name}"]


def _merge(connection: Connection, model: type[CrmBase]) -> int:
    """Make the mirror's table what came in; only rows that differ are written."""
    mine, came = _table(model.__tablename__), _table(INCOMING + model.__tablename__)
    same = came.c.id == mine.c.id
    values = {each: came.c[each] for each in FACTS[model] if each != "id"}
    differs = or_(*(mine.c[each].is_distinct_from(of) for each, of in values.items()))
    statements = (
        delete(mine).where(~exists().where(same)),
        update(mine).where(same, differs).values(values),
        insert(mine).from_select(list(FACTS[model]), select(came).where(~exists().where(same))),
    )
    counted = {"preserve_rowcount": True}
    rows = sum(connection.execute(each, execution_options=counted).rowcount for each in statements)
    if rows:
        connection.execute(text(f"ANALYZE {mine.fullname}"))
    return rows


def _store_read(connection: Connection, began: datetime, counts: Counts) -> None:
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    row = {"read_at": began, "seconds": (now - began).total_seconds(), "counts": dict(counts)}
    statement = upsert(CrmRead).values(whole=True, **row)
    connection.execute(statement.on_conflict_do_update(index_elements=["whole"], set_=row))
