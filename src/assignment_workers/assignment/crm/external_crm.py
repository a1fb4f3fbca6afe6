"""A read-only CRM in another database: facts by id for a claim, all facts for the mirror."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, timedelta
from functools import partial
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

import structlog
from circuitbreaker import CircuitBreaker
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError, NoSuchTableError, SQLAlchemyError

from assignment_workers.addresses import is_postgres
from assignment_workers.assignment.crm.facts import (
    CrmFacts,
    NewCrmRow,
    Position,
    Queries,
    split_name,
)
from assignment_workers.assignment.crm.values import RowReader, Unreadable
from assignment_workers.errors import CrmUnavailable, SchemaMismatch, UsageError
from assignment_workers.identity import UserId
from assignment_workers.policy.dialer import DECLARED, Dialer
from assignment_workers.policy.facts import ExternalFacts, News
from assignment_workers.schema.crm import OPTIONAL
from assignment_workers.schema.external_crm import CONNECT_SECONDS, cut, is_wrong, reader
from assignment_workers.schema.retry import one_line
from assignment_workers.settings import Settings
from assignment_workers.telemetry import CRM_OPEN, CRM_READS, CRM_SECONDS

T = TypeVar("T")
log = structlog.get_logger()

FAILURES = 2
"""Number of failed reads in a row after which the circuit breaker opens and stops further reads."""
OPEN_SECONDS = 5.0
"""Seconds that the circuit breaker stays open; after that, one read tries the CRM."""
BATCH = 10_000
"""Number of rows in memory at a time while the whole CRM is read."""
BATCH_SECONDS = 60.0
"""Maximum time in seconds that a read of the whole CRM waits for one batch of rows."""
PROBE_SECONDS = 3.0
"""Maximum time in seconds of the short read with which a read of the whole CRM begins.

The short read reads one row, only to test if the CRM answers. If the CRM does not answer in this
time, `CrmUnavailable` is raised, and the whole CRM is not read. So a job learns soon that the CRM
is unavailable.
"""
CHECK_SECONDS = 10.0
CONNECTIONS = 4
IDS = (1, 4, 16, 64, 256, 1024, 5_000)
"""The lengths of the lists of user ids with which the CRM is queried.

A shorter list is filled up with its last id, so that only a few different statements exist.
"""


class Crm:
    """A CRM in another database, which is only read and may be unavailable at any time.

    Every read has a time limit, whatever the server does: `timeout` for facts by user id, a minute
    per batch when the whole CRM is read. After `FAILURES` failed reads in a row, reads raise at
    once for `OPEN_SECONDS`; then one read tries the CRM. A read that fails raises `CrmUnavailable`.
    `grace`: the age up to which the mirror (our copy of the CRM) may be used in place of the CRM.
    Thread-safe.
    """

    def __init__(
        self,
        url: str,
        declared: ExternalFacts,
        *,
        timeout: timedelta,
        grace: timedelta | None = None,
    ) -> None:
        self.declared = declared
        self.timeout = timeout.total_seconds()
        self.grace = grace
        self._breaker = CircuitBreaker(
            failure_threshold=FAILURES,
            recovery_timeout=OPEN_SECONDS,
            expected_exception=CrmUnavailable,
        )
        self._why = ""
        self._quick = reader(url, self.timeout, pool=CONNECTIONS)
        self._slow = reader(url, BATCH_SECONDS, pool=None)
        # Setting up a connection, for example its isolation level, raises the driver's own errors.
        dbapi = self._slow.dialect.dbapi
        self._errors = (SQLAlchemyError, OSError, *((dbapi.Error,) if dbapi else ()))
        self._queries = Queries(declared, folds=not is_postgres(url))

    def facts(self, users: Mapping[int, UserId], *, seconds: float | None = None) -> CrmFacts:
        """Read the facts of these users with one statement; users not in the CRM have no facts.

        `users` maps each user's number in `assignment.user_ids` to the CRM's id of the user.
        `seconds`: the time limit, which a background job gives; None: the limit of a claim, the
        CRM's `timeout`. Raises `CrmUnavailable` if the CRM does not answer in that time.
        """
        own = list(users.values())
        if not own:
            return self._queries.facts_of([], {})
        size = next((size for size in IDS if size >= len(own)), len(own))
        asked = [*own, *[own[-1]] * (size - len(own))]
        read = self._queries.facts
        rows = self._read(lambda each: each.execute(read, {"users": asked}).all(), seconds=seconds)
        return self._queries.facts_of(rows, {each: number for number, each in users.items()})

    def trouble(self) -> str | None:
        """Return the reason why the CRM cannot be read now; None if it can be read.

        Reads one row to find out, unless the circuit breaker is open.
        """
        try:
            self._probe()
        except CrmUnavailable as error:
            return str(error)
        return None

    @property
    def is_open(self) -> bool:
        """True if the circuit breaker is open: after repeated failures, reads fail at once."""
        return bool(self._breaker.opened)

    def since(self, news: News, after: Position, *, limit: int) -> list[NewCrmRow]:
        """Return the next `limit` rows of a CRM table, in the order of `created_at` and id.

        `news`: the table. `after`: the position (time and id) after which to read. Each row has the
        CRM's id of its user. Raises `CrmUnavailable` if the CRM does not answer.
        """
        at, key = after
        query = self._queries.since(news, goes_on=key is not None)
        parameters = {"at": at.astimezone(UTC).replace(tzinfo=None), "key": key, "most": limit}
        found = self._read(
            lambda each: each.execute(query, parameters).all(), seconds=BATCH_SECONDS
        )
        try:
            return [self._queries.new_row(row) for row in found]
        except Unreadable as error:
            raise CrmUnavailable(str(error), retry_after=OPEN_SECONDS) from error

    def reader(self, table: str) -> RowReader:
        """Return the converter for the rows of this CRM table."""
        return self._queries.readers[table]

    def everything(self) -> Iterator[tuple[str, list[tuple[Any, ...]], int]]:
        """Yield the whole CRM as of one instant, in batches, table by table; the persons first.

        A batch is the name of the table, its rows with the CRM's ids of persons, and the number of
        unreadable rows that were left out. Raises `CrmUnavailable` if the CRM does not answer.
        """
        self._probe(PROBE_SECONDS)
        connection: Connection | None = None
        try:
            connection = self._within(self._snapshot, CONNECT_SECONDS)
            for table, query in self._queries.everything.items():
                reader = self.reader(table)
                begin = partial(connection.execute, query)
                result = self._within(begin, BATCH_SECONDS, used=[connection])
                more = partial(result.fetchmany, BATCH)
                while batch := self._within(more, BATCH_SECONDS, used=[connection]):
                    values = [reader.read(row) for row in batch]
                    read = [each for each in values if each is not None]
                    yield table, read, len(values) - len(read)
        except _Late as late:
            if connection is not None:  # another thread uses it, and closes it at its end
                late.left.add_done_callback(partial(_drop, connection))
            raise
        except BaseException:
            if connection is not None:
                _drop(connection)
            raise
        _drop(connection)

    def check(self) -> None:
        """Check that the CRM can be read as configured; raise an error if not.

        `UsageError`: the configured address or login is wrong. `SchemaMismatch`: a table or column
        is missing. `CrmUnavailable`: the CRM does not answer now. The message has one line.
        """
        try:
            lacking = self.lacking()
        except CrmUnavailable as error:
            if is_wrong(error.__cause__):
                raise UsageError(f"CRM_DATABASE_URL: {error}") from error
            raise
        for name, missing in lacking.items():
            if missing is None:
                raise SchemaMismatch(f"CRM_DATABASE_URL: the CRM has no table {name}")
            if missing:
                raise SchemaMismatch(
                    f"CRM_DATABASE_URL: the CRM's table {name} lacks {', '.join(missing)}"
                )

    def lacking(self) -> dict[str, list[str] | None]:
        """Return the missing columns of each table that is read from the CRM, by table name.

        The value is an empty list if no column is missing, and None if the table itself is missing.
        Raises `CrmUnavailable` if the CRM does not answer.
        """
        found: dict[str, list[str] | None] = {}
        for source in self.declared.sources:
            has = self._within(partial(self._columns, source.of), CHECK_SECONDS)
            wanted = dict.fromkeys(source.columns.values())
            found[source.of] = None if has is None else [each for each in wanted if each not in has]
        return found

    def close(self) -> None:
        """Close all connections to the CRM."""
        self._quick.dispose()
        self._slow.dispose()

    def _probe(self, seconds: float | None = None) -> None:
        self._read(lambda each: each.execute(self._queries.probe).all(), seconds=seconds)

    def _columns(self, of: str) -> set[str] | None:
        schema, name = split_name(of)
        with self._slow.connect() as connection:
            try:
                return {each["name"] for each in inspect(connection).get_columns(name, schema)}
            except NoSuchTableError:
                return None

    def _snapshot(self) -> Connection:
        connection = self._slow.connect()
        return connection.execution_options(
            isolation_level="REPEATABLE READ", stream_results=True, max_row_buffer=BATCH
        )

    def _read(self, what: Callable[[Connection], T], *, seconds: float | None = None) -> T:
        """Run the function `what`, which reads the CRM, within a time limit; return its result.

        `what` gets a connection to the CRM. `seconds`: the time limit of a read by a background
        job; `what` then gets a new connection, opened for this read. None: it is a read of a claim,
        the limit is the CRM's `timeout`, and `what` gets a connection of the pool. On connections
        of the pool, the CRM's server also ends each statement that takes longer than `timeout`.
        Raises `CrmUnavailable` if the read fails or takes too long, or if the circuit breaker is
        open.
        """
        engine = self._quick if seconds is None else self._slow
        if self._breaker.opened:
            left = max(0.1, float(self._breaker.open_remaining))
            raise CrmUnavailable(f"{self._why}; it is tried again soon", retry_after=left)
        used: list[Connection] = []
        began = monotonic()

        def read() -> T:
            with engine.connect() as connection:
                used.append(connection)
                return what(connection)

        def attempt() -> T:
            try:
                return read()
            except DBAPIError as error:
                # A pooled connection that the server has closed does not mean that the CRM is away.
                if not (used and error.connection_invalidated):
                    raise
                return read()

        try:
            with self._breaker:
                found = self._within(attempt, seconds or self.timeout, used=used)
        except CrmUnavailable as error:
            self._why = str(error).partition(": ")[2]
            raise
        finally:
            CRM_SECONDS.observe(monotonic() - began)
            CRM_OPEN.set(self.is_open)
        CRM_READS.labels("answered").inc()
        return found

    def _within(
        self,
        what: Callable[[], T],
        seconds: float,
        *,
        used: Sequence[Connection] = (),
    ) -> T:
        """Run the function `what` in a new thread for at most `seconds`; return its result.

        After this time, the thread is abandoned, the connections in `used` are cut, and
        `CrmUnavailable` is raised. A database driver's time limit is not enough: some drivers wait
        without end for a server that accepts a connection and sends nothing, or that stops in the
        middle of an answer.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(what())
            except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
                future.set_exception(error)

        Thread(target=run, name="crm", daemon=True).start()
        try:
            return future.result(seconds)
        except TimeoutError:
            for each in used:
                cut(each)
            CRM_READS.labels("late").inc()
            raise _Late(future, seconds) from None
        except self._errors as error:
            CRM_READS.labels("failed").inc()
            raise CrmUnavailable(one_line(error), retry_after=2.0) from error


class _Late(CrmUnavailable):
    """The error that the CRM did not answer in time.

    The thread that waits for the answer was abandoned. `left`: a future that is done once this
    thread has ended.
    """

    def __init__(self, left: Future[Any], seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s", retry_after=OPEN_SECONDS)
        self.left = left


def _drop(connection: Connection, _: object = None) -> None:
    """Close a connection without a rollback on its server, which might not answer."""
    connection.invalidate()
    connection.close()


def configured(dialer: Dialer, settings: Settings) -> Crm | None:
    """Return the external CRM of `settings`; None if the CRM is in our own database.

    Raises `UsageError` if `settings` name unusable columns, or a mapping (a set of names of tables
    and columns) that the dialer does not have.
    """
    declared = declared_facts(dialer, settings)
    if settings.crm_database_url is None:
        return None
    return Crm(
        settings.crm_database_url, declared, timeout=settings.crm_timeout, grace=settings.crm_grace
    )


def declared_facts(dialer: Dialer, settings: Settings) -> ExternalFacts:
    """Return the tables and columns that `dialer` reads from an external CRM.

    Raises `UsageError` if `settings` name unusable columns, or a mapping (a set of names of tables
    and columns) that the dialer does not have.
    """
    if settings.crm_mapping not in (DECLARED, *dialer.mappings):
        raise UsageError(
            f"ASSIGNMENT_WORKERS_CRM_MAPPING={settings.crm_mapping!r}: "
            f"there are {', '.join((DECLARED, *dialer.mappings))}"
        )
    return dialer.external_facts(settings.crm_mapping, optional_columns(settings))


def optional_columns(settings: Settings) -> dict[str, str]:
    """Return the CRM's names of the optional columns that the settings name.

    The table of persons has two optional columns, `country` and `time_zone`. The result maps each
    of them that the settings name to the CRM's name of the column. For example, the setting
    `country=country_code` gives the item `country: country_code`. Raises `UsageError` for an
    unusable setting.
    """
    found = {}
    for part in filter(None, (each.strip() for each in (settings.crm_columns or "").split(","))):
        name, _, column = (each.strip() for each in part.partition("="))
        if name not in OPTIONAL or not (column or name).isidentifier():
            raise UsageError(
                f"ASSIGNMENT_WORKERS_CRM_COLUMNS={settings.crm_columns!r}: {part!r} is none of "
                f"{', '.join(OPTIONAL)}, or such as country=country_code"
            )
        found[name] = column or name
    return found


def checked(dialer: Dialer, settings: Settings) -> Crm | None:
    """Return the external CRM of `settings` for a starting process, after a check of its tables.

    None if the CRM is in our own database. Raises `UsageError` or `SchemaMismatch` if the CRM
    cannot be read as configured. If the CRM does not answer now, only a warning is logged.
    """
    crm = configured(dialer, settings)
    if crm is not None:
        try:
            crm.check()
        except CrmUnavailable as error:
            log.warning("crm_away", reason=str(error))
    return crm
