"""The plan of `schema migrate`: every statement, its number of rows and its lock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import Connection, text

from assignment_workers.adoption import changes, guards, views
from assignment_workers.adoption.backfill import copy_statement, duplicates_statement
from assignment_workers.adoption.findings import TableVerdict
from assignment_workers.adoption.holds import JUDGE_HOLDS, holds_statement
from assignment_workers.adoption.inspect import inspect
from assignment_workers.adoption.migrate import (
    BATCH,
    BOOKS,
    LOCK_AT_MOST,
    SWITCH_AT_LAST,
    SWITCH_AT_MOST,
    SWITCH_TRIES,
    additions,
    refuse,
    renaming,
    renewal,
)
from assignment_workers.adoption.shapes import KEPT
from assignment_workers.adoption.sources import SourceTable, found_sources
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.generations.regenerate import partition
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.dialer_schema import in_schema, schema_of


def plan(connection: Connection, crm: Crm | None, database_url: str) -> str:
    """Return the steps of a migration as SQL with comments. Empty if there is nothing to do.

    Nothing is changed. To count rows, each queue table is read twice, besides the reads of
    `inspect`. The plan assumes the next free number for a generation (build). Raises
    `SchemaMismatch` for a needed table of unknown form.
    """
    report = inspect(connection, crm)
    if any(each.needed and each.verdict is TableVerdict.UNKNOWN for each in report.tables):
        refuse(report)
    lines = list(_expand(connection, database_url))
    sources = found_sources(connection)
    if sources:
        lines += _backfill(connection, sources)
        lines += _switch(connection, sources)
        lines.append(
            f"-- 4. contract: nothing is dropped; the old tables keep their rows, as NAME{KEPT}"
        )
        missing = text(f"SELECT to_regclass('public.{views.CALL_QUEUE}') IS NULL")
        if connection.execute(missing).scalar_one():
            lines.append(f"-- {views.CALL_QUEUE} is not there: a view to read; no lock on a table")
            lines += [f"{sql};" for sql in views.create_call_queue()]
    if lines:
        lines[:0] = [f"-- in the way: {each.what}: {each.remedy}" for each in report.obstacles]
    return in_schema("\n".join(lines), schema_of(connection))


def _wait() -> str:
    return f"waits at most {_milliseconds(LOCK_AT_MOST)} ms for it and is tried again"


def _milliseconds(time: timedelta) -> int:
    return round(time.total_seconds() * 1000)


def _expand(connection: Connection, database_url: str) -> Iterator[str]:
    ours = migrations.plan(database_url)
    added = list(additions(connection))
    if ours or added:
        yield f"-- 1. expand: locks the tables of agents and ours, no row rewritten; {_wait()}"
    for each in added:
        is_index = any("CONCURRENTLY" in sql for sql in each)
        lock = "SHARE UPDATE EXCLUSIVE" if is_index else "ACCESS EXCLUSIVE, an instant"
        yield f"-- lock {lock}; rows rewritten: 0"
        yield from (f"{sql};" for sql in each)
    if ours:
        yield ours
        yield from (f"{sql};" for sql in renewal(connection))


def _backfill(connection: Connection, sources: list[SourceTable]) -> Iterator[str]:
    yield "-- 2. backfill: reads the dialer's tables (ACCESS SHARE), and indexes its queue tables"
    yield from (f"{sql};" for sql in BOOKS)
    yield "-- guards of the shared tables: SHARE ROW EXCLUSIVE, an instant; an index locks nobody"
    yield from (f"{sql.strip()};" for each in guards.missing(connection) for sql in each)
    next_number = 1
    if connection.execute(text("SELECT to_regclass('assignment.generations')")).scalar():
        known = connection.execute(text("SELECT max(id) FROM assignment.generations")).scalar()
        next_number = (known or 0) + 1
    for number, source in enumerate(sources, next_number):
        rows = connection.execute(text(f"SELECT count(*) FROM public.{source.table}")).scalar_one()
        batches = -(-rows // BATCH)
        yield from (f"{sql.strip()};" for sql in changes.begin(source))
        yield f"-- {source.table}: {rows} rows in {batches} batches of at most {BATCH}, by key"
        yield f"{copy_statement(source, number, partition(number))};"
        yield f"-- {source.table}: which rows lose; {rows} rows read once"
        yield f"{duplicates_statement(source)};"
    for source in sources:
        if index := changes.index(connection, source):
            yield f"-- {source.table}: lock SHARE UPDATE EXCLUSIVE, for which nobody waits"
            yield from (f"{sql};" for sql in index)


def _switch(connection: Connection, sources: list[SourceTable]) -> Iterator[str]:
    names = ", ".join(f"public.{each.table}" for each in sources)
    held = " + ".join(
        f"(SELECT count(*) FROM public.{each.table} WHERE status = 'assigned')" for each in sources
    )
    holds = connection.execute(text(f"SELECT {held}")).scalar_one()
    yield f"-- 3. switch, one transaction: ACCESS EXCLUSIVE on {names}; {_wait()}"
    yield f"-- live holds: {holds}; nothing in it grows with the tables"
    yield f"{views.REFUSE_WRITES.strip()};"
    for each in sources:
        yield from (f"{sql};" for sql in views.create(each.table, each.queue, each.types))
    yield f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE;"
    yield f"-- undone and tried again if it takes longer than {_milliseconds(SWITCH_AT_MOST)} ms,"
    yield f"-- and after {SWITCH_TRIES} such tries, longer than {_milliseconds(SWITCH_AT_LAST)} ms"
    yield f"{holds_statement(sources)};"
    yield f"{JUDGE_HOLDS};"
    for each in sources:
        yield from (f"{sql};" for sql in renaming(each.table))
