"""The copy of an external CRM's facts in our own database, for jobs that judge all users."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import psycopg
from sqlalchemy import (
    ColumnClause,
    Connection,
    Engine,
    Executable,
    Subquery,
    Table,
    Text,
    and_,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy import cast as cast_to
from sqlalchemy.dialects.postgresql import insert as upsert

from assignment_workers.assignment import jobs, user_ids
from assignment_workers.assignment.crm import mirror_tables
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.facts import USERS
from assignment_workers.assignment.crm.mirror_tables import quoted, table_of
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.errors import CrmUnavailable
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.facts import FactSource
from assignment_workers.schema.tables import CrmRead, Forgotten

FRESH = timedelta(seconds=60)
"""Age of the mirror below which a job uses the mirror without copying the CRM again.

The mirror is our copy of the external CRM.
"""
WAITED_FOR = timedelta(minutes=10)
"""Maximum time that a job waits while another process copies the external CRM into the mirror.

After this time, `freshen` raises `CrmUnavailable`.
"""
READING = "crm.mirror"
"""Name of the job that copies the whole external CRM into our database."""


def age(connection: Connection) -> timedelta | None:
    """Return the age of the mirror, our copy of the external CRM; None if the CRM was never copied.

    The age is counted from the beginning of the last copying.
    """
    found: timedelta | None = connection.execute(
        select(func.clock_timestamp() - CrmRead.read_at)
    ).scalar_one_or_none()
    return found


def forget(connection: Connection) -> None:
    """Delete the record of the last time that an external CRM was copied into our database.

    The mirror then counts as never filled; the copied rows stay. Call this when the external CRM is
    not used any more.
    """
    connection.execute(delete(CrmRead))


def freshen(engine: Engine, dialer: Dialer, crm: Crm | None) -> None:
    """Copy all of an external CRM into the mirror, unless the mirror is younger than `FRESH`.

    The mirror is our copy of the external CRM. No effect without an external CRM. Jobs that judge
    all users call this first. If another process is copying the CRM, the call waits for that
    process, at most `WAITED_FOR`; after this time, it raises `CrmUnavailable`. It also raises
    `CrmUnavailable` if the CRM cannot be read.
    """
    ends = time.monotonic() + WAITED_FOR.total_seconds()
    while crm is not None:
        with engine.connect() as connection:
            old = age(connection)
        if old is not None and old < FRESH:
            return
        ran = jobs.run(engine, Job(READING, "needed"), partial(read_whole, dialer=dialer, crm=crm))
        if ran.skipped is None:
            return
        if time.monotonic() > ends:
            raise CrmUnavailable("a reading of it does not come to an end", retry_after=30.0)
        time.sleep(0.2)


def read_whole(work: Work, dialer: Dialer, crm: Crm) -> Counts:
    """Bring the mirror, our copy of the external CRM, up to date with the CRM as of one instant.

    The CRM is streamed into staging tables that nothing else reads, one batch per transaction. Then
    the job's transaction writes the differences to the mirror and deletes the rows that are gone,
    so a reader sees either all of these changes or none. Rows that cannot be converted are left out
    and counted as `unreadable`. Raises `CrmUnavailable` if the CRM cannot be read, or if one of its
    tables has become empty, because this is probably a fault of the CRM; then the mirror is
    unchanged. Memory: one batch. Cost: one pass over the CRM, and one over the mirror.
    """
    mirror_tables.make(work.side_connection, crm.declared)
    work.side_connection.commit()
    began = work.side_connection.execute(select(func.clock_timestamp())).scalar_one()
    counts = _stage(work.side_connection, dialer, crm)
    sources = crm.declared.sources
    for source in sources:
        if counts[source.name] == 0 and _has_rows(work.connection, table_of(source)):
            raise CrmUnavailable(
                f"its {source.name} are all gone: it is taken for sick", retry_after=30.0
            )
    changed = sum(_merge(work.connection, source) for source in sources)
    _store_read(work.connection, began, counts)
    return {**counts, "changed": changed}


def _stage(side_connection: Connection, dialer: Dialer, crm: Crm) -> Counter[str]:
    tables = {each.name: table_of(each, incoming=True) for each in crm.declared.sources}
    incoming = ", ".join(quoted(each) for each in tables.values())
    side_connection.execute(text(f"TRUNCATE {incoming}"))
    side_connection.commit()
    counts = Counter(dict.fromkeys(tables, 0) | {"unreadable": 0})
    for name, batch, unreadable in crm.everything():
        rows = batch
        if crm.declared.numbered is not None:
            rows = _numbered(side_connection, dialer, crm, name, batch)
            if name == USERS:
                counts["unfit"] += len(batch) - len(rows)
        _copy(side_connection, tables[name], rows)
        side_connection.commit()
        counts[name] += len(rows)
        counts["unreadable"] += unreadable
    # Forgotten users are not brought back. Without its user, no query reads a row further away.
    forgotten = select(Forgotten.user_id)
    for source in reversed(crm.declared.sources):
        table = tables[source.name]
        for column in sorted(source.person_columns):
            side_connection.execute(delete(table).where(table.c[column].in_(forgotten)))
    side_connection.execute(text(f"ANALYZE {incoming}"))
    side_connection.commit()
    return counts


def _numbered(
    side_connection: Connection,
    dialer: Dialer,
    crm: Crm,
    name: str,
    batch: Sequence[tuple[Any, ...]],
) -> list[tuple[Any, ...]]:
    """Return the rows with internal integer ids in place of the CRM's ids of persons.

    The internal ids are those of `assignment.user_ids`. `batch`: rows of the CRM table `name`. If
    that is the table of persons, persons without an internal id get one, in the order in which the
    CRM created them, unless their CRM ids have an unusable form. Rows of persons without an
    internal id are left out.
    """
    reader = crm.reader(name)
    if name == USERS:
        number, made = (reader.columns.index(each) for each in ("id", "created_at"))
        ordered = sorted(batch, key=lambda row: (row[made] is not None, row[made], row[number]))
        ids = [row[number] for row in ordered]
        numbers = user_ids.number_in_order(dialer, side_connection, ids)
    else:
        numbers = user_ids.numbers_of(dialer, side_connection, reader.persons(batch))
    rows = (reader.with_numbers(row, numbers) for row in batch)
    return [row for row in rows if row is not None]


def _copy(side_connection: Connection, table: Table, batch: Sequence[tuple[Any, ...]]) -> None:
    to = cast("psycopg.Connection[Any]", side_connection.connection.driver_connection)
    into = f"{quoted(table)} ({', '.join(quoted(each) for each in table.columns)})"
    with to.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN".encode()) as copy:
        for row in batch:
            copy.write_row(row)


def _has_rows(connection: Connection, of: Table) -> bool:
    return connection.execute(select(1).select_from(of).limit(1)).first() is not None


def _merge(connection: Connection, source: FactSource) -> int:
    """Make a table of the mirror equal to its staging table; return the number of changed rows.

    The mirror is our copy of the external CRM. Only rows that differ are written.
    """
    mine, came = table_of(source), table_of(source, incoming=True)
    counted = {"preserve_rowcount": True}
    statements = _by_key(source, mine, came) if source.key else _by_row(mine, came)
    rows = sum(connection.execute(each, execution_options=counted).rowcount for each in statements)
    if rows:
        connection.execute(text(f"ANALYZE {quoted(mine)}"))
    return rows


def _by_key(source: FactSource, mine: Table, came: Table) -> list[Executable]:
    same = and_(*(came.c[each] == mine.c[each] for each in source.key))
    values = {each.name: each for each in came.columns if each.name not in source.key}
    differs = or_(*(mine.c[each].is_distinct_from(of) for each, of in values.items()))
    found: list[Executable] = [delete(mine).where(~exists().where(same))]
    if values:
        found.append(update(mine).where(same, differs).values(values))
    names = [each.name for each in came.columns]
    found.append(insert(mine).from_select(names, select(came).where(~exists().where(same))))
    return found


def _by_row(mine: Table, came: Table) -> list[Executable]:
    """Return the statements that give a table of the mirror the same rows as its staging table.

    The two tables have no primary key, so a row may occur several times. `mine`: the table of the
    mirror, which is changed. `came`: the staging table. In each table, equal rows are numbered 1, 2
    and so on. A row of `mine` is deleted if `came` has no equal row with the same number. A row of
    `came` is inserted if `mine` has no equal row with the same number. Afterwards, each row occurs
    as often in `mine` as in `came`.
    """
    old, new = _counted_off(mine), _counted_off(came)
    same = and_(old.c.said == new.c.said, old.c.number == new.c.number)
    names = [each.name for each in came.columns]
    gone = select(old.c.place).where(~exists().where(same))
    added = select(*(new.c[f"fact_{each}"] for each in names)).where(~exists().where(same))
    return [delete(mine).where(_PLACE.in_(gone)), insert(mine).from_select(names, added)]


def _counted_off(table: Table) -> Subquery:
    """Select the table's rows with a key by which they can be compared with another table's rows.

    The key is the text form of the row (`said`) and a number: equal rows are numbered from 1. The
    column `place` has the row's `ctid`, the physical position in the table.
    """
    said = cast_to(func.row(*table.columns), Text)
    number = func.row_number().over(partition_by=said)
    facts = (each.label(f"fact_{each.name}") for each in table.columns)
    return select(
        *facts, _PLACE.label("place"), said.label("said"), number.label("number")
    ).subquery()


_PLACE: ColumnClause[Any] = literal_column("ctid")
"""The physical position of a row in its table; it identifies a row of a table without a key."""


def _store_read(connection: Connection, began: datetime, counts: Counts) -> None:
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    row = {"read_at": began, "seconds": (now - began).total_seconds(), "counts": dict(counts)}
    statement = upsert(CrmRead).values(whole=True, **row)
    connection.execute(statement.on_conflict_do_update(index_elements=["whole"], set_=row))
