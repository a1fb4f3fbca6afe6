"""Migrate a dialer's database to this system: expand, backfill, switch, contract.

The dialer continues to run during the migration. The migration has four steps:

- Expand adds what the dialer's tables lack, and creates the schema `assignment`.
- Backfill copies the users of the dialer's queue tables into generations (builds).
- Switch publishes the generations, and replaces the queue tables by views of our data.
- Contract settles the callbacks and missed calls that the dialer has handed to agents, and creates
  the view `call_queue` if there is no such table or view. It drops nothing.

Each step commits its changes together with the record that it was done. So an interrupted run is
continued, and repeating a finished run changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, repeat
from math import inf
from time import monotonic
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.schema import CreateColumn

from assignment_workers.adoption import changes, guards, promises, views
from assignment_workers.adoption.backfill import TRY_SECONDS, Tell, backfill, one_queue_each
from assignment_workers.adoption.changes import carry_over
from assignment_workers.adoption.dependents import definitions, follow
from assignment_workers.adoption.findings import Inspection, TableVerdict
from assignment_workers.adoption.holds import place_holds, take_over
from assignment_workers.adoption.inspect import inspect as read_schema
from assignment_workers.adoption.shapes import KEPT, MADE
from assignment_workers.adoption.sources import SourceTable, found_sources, shown_sources
from assignment_workers.adoption.waits import telling_of_waits
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.generations.regenerate import partition
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.errors import DatabaseUnavailable, SchemaMismatch
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.engine import connect
from assignment_workers.schema.migrate import MIGRATION, OUR_VIEW, STATEMENT_AT_MOST
from assignment_workers.schema.retry import is_passing, patiently, reason
from assignment_workers.schema.tables import DEFAULT_LANE, LaneTerm
from assignment_workers.settings import Settings

BATCH = 20_000
LOCK_AT_MOST = timedelta(milliseconds=250)
"""The longest time that a statement waits for a lock. It is short, because statements of the dialer
wait behind such a statement.
"""
SWITCH_AT_MOST = timedelta(milliseconds=250)
"""The longest time for which the statements of `switch` keep the dialer's queue tables locked.

This is the limit of the first ten tries (`SWITCH_TRIES`); later tries have `SWITCH_AT_LAST`. In a
try, a statement of the dialer waits three times. First, it waits while the migration itself waits
for the locks: at most 250 ms (`LOCK_AT_MOST`). Then it waits while the statements of the migration
have the locks: at most 250 ms in the first ten tries (this limit). So in each of the first ten
tries, these two waits take at most half a second together. Last, it waits during the migration's
COMMIT, which has no such limit.
"""
SWITCH_TRIES = 10
"""The number of tries of `switch` that may lock the queue tables only for `SWITCH_AT_MOST`.

Each later try may lock the tables for `SWITCH_AT_LAST`, a longer time. A try that did not get the
locks is not counted.
"""
SWITCH_AT_LAST = timedelta(milliseconds=700)
"""The limit that replaces `SWITCH_AT_MOST` after ten failed tries of `switch` (`SWITCH_TRIES`).

A try that did not get the locks is not counted. The limit is the longest time for which the
statements of a later try keep the dialer's queue tables locked. A try may need more than
`SWITCH_AT_MOST` if the database is slow or far away, if the dialer's tables lack an index of the
column `status`, or if many of their rows are assigned.
"""
LIMIT_RENEWED_AFTER = timedelta(milliseconds=50)
"""The minimum time between two changes of PostgreSQL's timeouts by `ended_after`: 50 ms.

`ended_after` limits the total duration of several statements. Before the first statement, it sets
the timeouts to the time that is left of its limit. Before each later statement, it sets the
timeouts again only if it last set them more than 50 ms ago. If it set the timeouts before every
statement, the number of round trips would double while the tables are locked.
"""
CATCH_UP_AT_MOST = 1_000
"""The maximum number of rounds in which `catch_up` applies the dialer's changes.

Then `switch` begins in any case, and applies the remaining changes itself.
"""


@contextmanager
def opened(database_url: str) -> Iterator[Engine]:
    """Yield an engine whose statements wait only briefly for locks.

    Raises `DatabaseUnavailable` in place of SQLAlchemy's errors for transient failures.
    """
    engine = connect(
        database_url,
        name=MIGRATION,
        statement_timeout=STATEMENT_AT_MOST,
        lock_timeout=LOCK_AT_MOST,
    )
    try:
        yield engine
    except DBAPIError as error:
        if is_passing(error):
            raise DatabaseUnavailable(
                f"{reason(error)}; what was committed is kept: run the command again"
            ) from error
        raise
    finally:
        engine.dispose()


def migrate(database_url: str, *, settings: Settings, tell: Tell, batch: int = BATCH) -> str:
    """Migrate the database from any state that `inspect` knows; return the revision.

    `tell` is called with a line for every step and batch after its commit, and for each session
    whose lock the migration waits for. Raises `SchemaMismatch`, before any change, if there are
    obstacles. Raises `DatabaseUnavailable` if the database cannot be reached.
    """
    with opened(database_url) as engine, telling_of_waits(database_url, tell):
        with engine.connect() as connection:
            refuse(read_schema(connection, None))
        expand(engine, database_url, tell, settings=settings)
        patiently(lambda: renew_views(engine), seconds=TRY_SECONDS)
        with engine.connect() as connection:
            sources = found_sources(connection)
            is_adopted = bool(sources or shown_sources(connection))
        if is_adopted:
            _keep_books(engine)
            guard(engine)
        if sources:
            numbers = {
                each.queue: backfill(engine, each, tell=tell, batch=batch) for each in sources
            }
            one_queue_each(engine, numbers)
            with engine.connect() as connection:
                indexes = [changes.index(connection, each) for each in sources]
            _run_each(engine, indexes)
            patiently(lambda: catch_up(engine, sources, numbers, tell), seconds=TRY_SECONDS)
            limits = chain(repeat(SWITCH_AT_MOST, SWITCH_TRIES), repeat(SWITCH_AT_LAST))

            def take_place() -> None:
                catch_up(engine, sources, numbers, tell)
                switch(engine, sources, numbers, settings=settings, limits=limits)

            patiently(take_place, seconds=TRY_SECONDS)
            tell(f"switch: {', '.join(each.table for each in sources)} are views now")
            tell(f"contract: the old tables are kept, their names end with {KEPT}")
        if is_adopted:
            promises.settle(engine, tell)
        if patiently(lambda: show_call_queue(engine), seconds=TRY_SECONDS):
            tell(f"contract: {views.CALL_QUEUE}, which was not there, is a view to read")
    return migrations.head()


def guard(engine: Engine) -> None:
    """Create our missing triggers and unique indexes on the tables that the dialer still writes.

    Pending rows that a unique index would reject are cancelled first (`guards.UNIQUE`).
    """
    with engine.connect() as connection:
        statements = list(guards.missing(connection))
    _run_each(engine, statements)


def _run_each(engine: Engine, groups: Iterable[Sequence[str]]) -> None:
    """Run the statements of each group, one by one and outside of a transaction.

    If a statement fails in a transient way, such as for a lock that is not free, its group is run
    again from the start.
    """
    for group in groups:
        patiently(lambda group=group: _run_group(engine, group), seconds=TRY_SECONDS)  # type: ignore[misc]


def _run_group(engine: Engine, statements: Sequence[str]) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            for sql in statements:
                connection.exec_driver_sql(sql)
        finally:
            connection.invalidate()  # its lock timeout may be that of an index build


def refuse(report: Inspection) -> None:
    """Raise `SchemaMismatch` if the inspection found obstacles; its message names all of them."""
    found = report.obstacles
    if found:
        each = "; ".join(
            f"({number}) {one.what}: {one.remedy}" for number, one in enumerate(found, 1)
        )
        things = "one thing is" if len(found) == 1 else f"{len(found)} things are"
        raise SchemaMismatch(f"nothing was changed, because {things} in the way: {each}")


def expand(engine: Engine, database_url: str, tell: Tell, *, settings: Settings) -> None:
    """Add what the dialer's tables lack, then create or update the schema `assignment`.

    Columns, defaults and unique indexes are added; this rewrites no row. The columns come first,
    because scripts of Alembic create the schema, and some of these scripts write to the columns.
    """
    with engine.connect() as connection:
        missing = list(additions(connection))
    _run_each(engine, missing)
    patiently(
        lambda: migrations.upgrade(
            database_url, lock_timeout=LOCK_AT_MOST, phone_region=settings.phone_region
        ),
        seconds=TRY_SECONDS,
    )
    tell(f"expand: at revision {migrations.head()}, {len(missing)} columns and defaults added")
    with engine.connect() as connection:
        by_text = connection.execute(_BY_TEXT).scalar_one()
    if by_text:
        tell(
            f"expand: {by_text} suppressions are no phone number and match by their text alone; "
            "users whose number ends alike wait: see `do-not-contact list --by-text`"
        )


_BY_TEXT = text(
    "SELECT count(*) FROM assignment.suppressions"
    " WHERE lifted_at IS NULL AND phone IS NOT NULL AND number IS NULL"
)


def additions(connection: Connection) -> Iterator[tuple[str, ...]]:
    """Yield the statements that add what the dialer's tables lack, without rewriting a row.

    Each tuple has the statements that add one column, one default or one unique index. Run each
    statement outside of a transaction, in the order of the tuple. The build of an index waits for
    other transactions without a time limit. Meanwhile, the build blocks no reads and no writes of
    the dialer. An added column without a default may be null, because existing rows have no value
    for it.
    """
    dialect = connection.dialect
    for table in read_schema(connection, None).tables:
        model = Agent.metadata.tables.get(f"public.{table.table}")
        if model is None or table.verdict is TableVerdict.ABSENT:
            continue
        for each in table.differences:
            column = model.columns.get(each.what)
            if each.aspect == "column" and column is not None:
                words = str(CreateColumn(column).compile(dialect=dialect))
                if column.server_default is None:
                    words = words.removesuffix(" NOT NULL")
                yield (f"ALTER TABLE public.{table.table} ADD COLUMN IF NOT EXISTS {words}",)
            elif each.aspect == "default" and each.found is None:
                default = f"ALTER COLUMN {each.what} SET DEFAULT {each.expected}"
                yield (f"ALTER TABLE public.{table.table} {default}",)
            elif each.aspect == "unique":
                name = f"uq_{table.table}_{each.what}"
                on = f"public.{table.table} ({each.what})"
                yield (
                    "SET lock_timeout TO 0",
                    f"DROP INDEX CONCURRENTLY IF EXISTS public.{name}",
                    f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {on}",
                )


def _keep_books(engine: Engine) -> None:
    with engine.begin() as connection:
        for sql in BOOKS:
            connection.execute(text(sql))


def switch(
    engine: Engine,
    sources: list[SourceTable],
    numbers: dict[str, int],
    *,
    settings: Settings,
    limits: Iterator[timedelta],
) -> None:
    """Switch from the dialer's queue tables to our generations (builds), in one transaction.

    The generations that `backfill` filled are published, the assigned rows of the queue tables
    become assignments, and each queue table is renamed and replaced by a view of our data. Call
    `catch_up` before `switch`: `catch_up` attaches the tables of these generations to the table
    `entries`, which has the users of all generations. `numbers` has the generation of each dialer
    queue.

    The dialer's statements wait while the queue tables are locked. This wait depends on the number
    of assigned rows, and not on the size of the tables if these have an index of the column
    `status`. `limits` yields the longest time for which the queue tables may be locked. A call of
    `switch` takes one value from `limits` as soon as it has got the locks; a call that does not get
    the locks takes none. If the tables are locked for longer, the transaction is rolled back, and
    SQLAlchemy's `OperationalError` is raised; the caller can then retry.
    """
    with engine.begin() as connection:
        transaction = locked_turn(connection)
        for number in numbers.values():
            publish(transaction, number)
        connection.execute(text(views.REFUSE_WRITES))
        for each in sources:
            for sql in views.create(each.table, each.queue, each.types):
                connection.execute(text(sql))
            connection.execute(text(_grant(each.table)))
        names = ", ".join(f"public.{each.table}" for each in sources)
        with ended_after(connection, LOCK_AT_MOST):
            connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
        with ended_after(connection, next(limits)):
            for each in sources:
                number, other = numbers[each.queue], _other(numbers, each)
                most = changes.FEW
                while carry_over(connection, each, number, other, most=most) == most:
                    pass
                connection.execute(text(";".join(changes.end(each))))
            place_holds(connection, sources, numbers)
            for each in sources:
                theirs = definitions(connection, each.table)
                connection.execute(text(";".join(renaming(each.table))))
                follow(connection, theirs)
            take_over(transaction, numbers, settings)
            connection.execute(_SWITCHED, {"queues": list(numbers), "at": transaction.now})


@contextmanager
def ended_after(connection: Connection, limit: timedelta) -> Iterator[None]:
    """Have PostgreSQL end the transaction if the statements of the block exceed `limit` in total.

    So the locks of the transaction are released in time, however many statements there are. Before
    the first statement, PostgreSQL's timeouts for a statement and for a pause between statements
    are set to the time that is left. Before each later statement, the timeouts are set again only
    if they were last set more than 50 ms ago (`LIMIT_RENEWED_AFTER`). A statement before which the
    timeouts are not set again may take up to 50 ms too long. To make up for this, the time that is
    left is computed from a limit that is 50 ms shorter than `limit`.

    If the limit is exceeded, SQLAlchemy's `OperationalError` is raised, and the transaction is
    rolled back. `migrate` runs the whole transaction with the function `patiently`, which then
    repeats it.
    """
    ends = monotonic() + (limit - LIMIT_RENEWED_AFTER).total_seconds()
    given_last = inf

    def shorten(*given: Any) -> None:  # noqa: ANN401 - SQLAlchemy's arguments
        nonlocal given_last
        cursor, sql = given[1], given[2]
        left = ends - monotonic()
        try:
            if left <= 0:
                raise psycopg.errors.QueryCanceled(f"the switch took longer than {limit}")
            if given_last - left > LIMIT_RENEWED_AFTER.total_seconds():
                milliseconds = max(1, round(left * 1000))  # 0 would be no limit
                cursor.execute(
                    f"SET LOCAL statement_timeout TO {milliseconds};"
                    f"SET LOCAL idle_in_transaction_session_timeout TO {milliseconds}"
                )
                given_last = left
        except psycopg.Error as error:
            raise OperationalError(sql, None, error) from error

    event.listen(connection, "before_cursor_execute", shorten)
    try:
        yield
        connection.execute(text("SELECT"))
    finally:
        event.remove(connection, "before_cursor_execute", shorten)


def catch_up(
    engine: Engine, sources: list[SourceTable], numbers: dict[str, int], tell: Tell
) -> None:
    """Apply to our generations (builds) the changes that the dialer made during the copy.

    Triggers have recorded these changes of the dialer's queue tables. The function returns when
    fewer than `changes.FEW` are left, or after `CATCH_UP_AT_MOST` rounds; `switch` applies the
    rest. `numbers` has the generation of each dialer queue. `tell` is called with a line about the
    number of applied changes.
    """
    with engine.begin() as connection:
        prepare_partitions(connection, numbers)
    carried = 0
    for _ in range(CATCH_UP_AT_MOST):
        with engine.begin() as connection:
            if changes.remaining(connection) < changes.FEW:
                break
        for each in sources:
            with engine.begin() as connection:
                carried += carry_over(connection, each, numbers[each.queue], _other(numbers, each))
    if carried:
        tell(f"backfill: {carried} changes that the dialer made meanwhile are carried over")


def _other(numbers: dict[str, int], source: SourceTable) -> int | None:
    return next((number for queue, number in numbers.items() if queue != source.queue), None)


def renaming(table: str) -> tuple[str, str]:
    """Return two statements, which rename the table and give its old name to the view of our data.

    Run them in this order: the name must be free for the view.
    """
    return f"ALTER TABLE public.{table} RENAME TO {table}{KEPT}", views.take_name(table)


def renew_views(engine: Engine) -> None:
    """Recreate the existing views of this system in the form of this release."""
    with engine.begin() as connection:
        for sql in renewal(connection):
            connection.execute(text(sql))


def renewal(connection: Connection) -> Iterator[str]:
    """Yield the statements that recreate the existing views in the form of this release."""
    for each in shown_sources(connection):
        yield from views.renew(each.table, each.queue, each.types)
    if connection.execute(SHOWS_CALL_QUEUE, {"comment": OUR_VIEW}).scalar():
        yield from views.create_call_queue()


def show_call_queue(engine: Engine) -> bool:
    """Create the view `call_queue` after a takeover, if there is no table or view of that name.

    A takeover replaces the dialer's two queue tables by views. `call_queue` was the dialer's queue
    table before those two. The view of that name is for old programs that still read the table: it
    shows the users of both dialer queues, and cannot be written. An existing table stays, because
    the dialer's call sessions refer to its rows. Returns True if this call created the view.
    """
    with engine.begin() as connection:
        if not connection.execute(_CALL_QUEUE_MISSING, {"comment": OUR_VIEW}).scalar_one():
            return False
        for sql in views.create_call_queue():
            connection.execute(text(sql))
        return True


def prepare_partitions(connection: Connection, numbers: dict[str, int]) -> None:
    """Index the tables that `backfill` filled, and attach them to the table `entries`.

    `entries` has the users of all generations (builds); each of the tables becomes the partition of
    one generation. `numbers` has the generation of each dialer queue. The generations are marked as
    built. Tables that are attached already are skipped.
    """
    for number in numbers.values():
        name = partition(number)
        if connection.execute(_ATTACHED, {"name": name}).scalar_one():
            continue
        ready = f"CREATE INDEX ON {name} (generation_id, rank) WHERE state = 'ready'"
        waiting = f"CREATE INDEX ON {name} (generation_id, available_from) WHERE state = 'waiting'"
        attach = f"ALTER TABLE assignment.entries ATTACH PARTITION {name} FOR VALUES IN ({number})"
        for sql in (ready, waiting, f"ANALYZE {name}", attach):
            connection.execute(text(sql))
        connection.execute(
            text(
                f"UPDATE assignment.generations SET built_at = clock_timestamp(), "
                f"size = (SELECT count(*) FROM {name}) WHERE id = :number"
            ),
            {"number": number},
        )


def locked_turn(connection: Connection) -> FencedTransaction:
    """Lock the rows of all lanes; return a fenced transaction, in which a migration can write.

    A sequencer's right to write is its term, which has a number. A sequencer writes in fenced
    transactions. Each fenced transaction has the number of a term. The returned transaction has the
    number of the default lane's present term.

    Because of the locks, no sequencer writes until the transaction ends. So a migration can use the
    operations of a sequencer, such as publishing a generation.
    """
    rows = connection.execute(
        select(LaneTerm.lane, LaneTerm.term).order_by(LaneTerm.lane).with_for_update()
    ).all()
    term = next(row.term for row in rows if row.lane == DEFAULT_LANE)
    now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return FencedTransaction(connection, now, term, loaded())


def _grant(table: str) -> str:
    """Return the SQL that gives each role the same privileges on our view as on `table`.

    The view takes the place of the table, so every role keeps its access. The owner of the table
    gets the owner's privileges too, because the view may belong to another role, the one that
    migrates. Privileges on columns become privileges on the same columns of the view. A trigger
    refuses writes to the view and gives the reason.
    """
    return f"""
        DO $grant$ DECLARE given record; BEGIN
            FOR given IN
                SELECT a.privilege_type, a.grantee, a.is_grantable, '' AS columns
                FROM pg_class c, LATERAL aclexplode(coalesce(c.relacl,
                    acldefault('r', c.relowner))) AS a
                WHERE c.oid = 'public.{table}'::regclass
                AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
                UNION ALL
                SELECT a.privilege_type, a.grantee, a.is_grantable, format('(%I)', t.attname)
                FROM pg_attribute t, LATERAL aclexplode(t.attacl) AS a
                WHERE t.attrelid = 'public.{table}'::regclass AND NOT t.attisdropped
                AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE')
            LOOP
                EXECUTE format('GRANT %s %s ON public.{table}{MADE} TO %s %s',
                    given.privilege_type, given.columns,
                    CASE given.grantee WHEN 0 THEN 'PUBLIC'
                    ELSE quote_ident(pg_get_userbyid(given.grantee)) END,
                    CASE WHEN given.is_grantable AND given.grantee <> 0
                    THEN 'WITH GRANT OPTION' ELSE '' END);
            END LOOP;
        END $grant$
    """


BOOKS = (
    """CREATE TABLE IF NOT EXISTS assignment.adoptions (
        queue text PRIMARY KEY, generation_id bigint NOT NULL, last_id uuid,
        rows_read bigint NOT NULL DEFAULT 0, switched_at timestamptz)""",
    """CREATE TABLE IF NOT EXISTS assignment.adoption_decisions (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL,
        found_in text NOT NULL, row_id uuid, user_id bigint, agent_id integer, rule text NOT NULL,
        UNIQUE NULLS NOT DISTINCT (found_in, row_id, user_id, rule))""",
    changes.TABLE,
)
"""The SQL that creates the tables for the progress and the decisions of a takeover. They are
created only if there is a dialer to take over.
"""

SHOWS_CALL_QUEUE = text(
    f"SELECT obj_description(to_regclass('public.{views.CALL_QUEUE}'), 'pg_class') = :comment"
)
_CALL_QUEUE_MISSING = text(f"""
    SELECT to_regclass('public.{views.CALL_QUEUE}') IS NULL AND EXISTS (
        SELECT FROM pg_class c WHERE c.relkind = 'v'
        AND c.relnamespace = 'public'::regnamespace
        AND obj_description(c.oid, 'pg_class') = :comment)
""")
_ATTACHED = text("SELECT relispartition FROM pg_class WHERE oid = CAST(:name AS regclass)")
_SWITCHED = text("""
    UPDATE assignment.adoptions SET switched_at = :at WHERE queue = ANY(:queues)
""")
