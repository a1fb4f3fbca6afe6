"""The copy of an external CRM's facts in our own database, for work on whole pools."""

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
"""Age of the mirror (our copy of the external CRM) below which a job does not renew the mirror."""
WAITED_FOR = timedelta(minutes=10)
"""Time that a job waits while another process renews the mirror, our copy of the external CRM."""
READING = "crm.mirror"
"""Name of the job that copies the whole external CRM into the mirror."""


def age(connection: Connection) -> timedelta | None:
    """Return the time since the last copying of the external CRM began; None if there was none."""
    found: timedelta | None = connection.execute(
        select(func.clock_timestamp() - CrmRead.read_at)
    ).scalar_one_or_none()
    return found


def forget(connection: Connection) -> None:
    """Delete the record of the last copying of an external CRM, which is not used any more."""
    connection.execute(delete(CrmRead))


def freshen(engine: Engine) -> None:
    """Copy all of an external CRM into the mirror, unless the mirror is younger than `FRESH`.

    Jobs that judge all users call this first. Raises `CrmUnavailable`. If another process is
    copying the CRM, the call waits for that process, at most `WAITED_FOR`.
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
    """Bring the mirror, our copy of the external CRM, up to date with the CRM as of one instant.

    The CRM is streamed into staging tables that nothing else reads, one batch per transaction. Then
    one transaction, that of the job, writes the differences and deletes the rows that are gone, so
    a reader sees the mirror either before or after. Rows that make no sense are left out and
    counted as `unreadable`. A table that has become empty is taken for a fault of the CRM. Raises
    `CrmUnavailable`; then the mirror is unchanged. Memory: one batch. Cost: one pass over the CRM,
    and one over the mirror.
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
    # Forgotten users are not brought back. Without its user, no query reads a claim.
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
    """Make a table of the mirror equal to its staging table; only rows that differ are written."""
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
