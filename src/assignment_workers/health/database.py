"""Read from PostgreSQL the facts about the system's health.

A connection that is already open may go on working while PostgreSQL refuses new connections. So a
reading over an open connection alone would not prove that PostgreSQL is good. But opening a
connection costs PostgreSQL and the reading process several times as much as the reading itself. So
a connection is kept for two seconds, and then replaced by a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Interval, bindparam, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from assignment_workers.assignment.audit import lag_seconds
from assignment_workers.assignment.crm import fact_views
from assignment_workers.assignment.lanes import Lanes
from assignment_workers.assignment.reports.figures import JOB_NAMES
from assignment_workers.assignment.reports.status import sequencer_statuses
from assignment_workers.health.readings import (
    NO_ANSWER,
    DatabaseFacts,
    JobFacts,
    NotRead,
    QueueFacts,
)
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.deadline import NoAnswer
from assignment_workers.schema.engine import connect
from assignment_workers.schema.retry import one_line
from assignment_workers.sequencer.term import APPLICATION

STATEMENT = timedelta(seconds=1)
EXPIRES_SOON = timedelta(days=7)
"""An API token should be replaced this long before its expiry. If a quarter of the token's lifetime
is shorter, the quarter counts instead.
"""
KEPT_SECONDS = 2.0
"""The age in seconds from which the connection is replaced by a new one."""
RUNS = 50
"""The number of runs that are read for each job, newest first."""


class DatabaseReader:
    """Reads the health facts from PostgreSQL, and keeps its connection for two seconds.

    All facts are read over each new connection. While a connection is kept, only those that must be
    the newest ones are read anew: the clock, the lanes and the dialer queues. The others are then
    at most two seconds old (`KEPT_SECONDS`).

    Not thread-safe: call it again only when its last reading has ended.
    """

    def __init__(
        self,
        database_url: str,
        lanes: Lanes,
        dialer: Dialer,
        *,
        own_crm: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the reader; open no connection.

        `own_crm`: True if the CRM is in this database; then the CRM is read too. `clock` returns
        seconds; the age of the connection is measured with it.
        """
        self._engine = connect(
            database_url, name="assignment-workers health", statement_timeout=STATEMENT, pool_size=1
        )
        self._lanes, self._dialer, self._own_crm = lanes, dialer, own_crm
        self._clock = clock
        self._kept: tuple[float, DatabaseFacts] | None = None
        """The time at which the kept connection was opened, and the first facts read over it."""

    def __call__(self) -> DatabaseFacts:
        """Read the facts. Raises `NotRead` if that is impossible.

        A new connection is opened if the last one is older than `KEPT_SECONDS`, or was lost. So
        after a loss, the error says what PostgreSQL answers to a new connection.
        """
        try:
            return self._read()
        except SQLAlchemyError as error:
            self.close()
            raise NotRead(trouble_of(error)) from error

    def close(self) -> None:
        """Close the kept connection, if there is one."""
        self._kept = None
        self._engine.dispose()

    def _read(self) -> DatabaseFacts:
        kept = self._kept
        if kept is not None and self._clock() - kept[0] < KEPT_SECONDS:
            try:
                return self._renewed(kept[1])
            except DBAPIError as error:
                if not _is_lost(error):
                    raise
        self.close()
        opened_at = self._clock()
        facts = self._facts()
        self._kept = opened_at, facts
        return facts

    def _facts(self) -> DatabaseFacts:
        own_crm = self._own_crm
        with self._engine.connect() as connection:
            return DatabaseFacts(
                **self._newest(connection),
                jobs=[JobFacts(**row) for row in connection.execute(_JOBS).mappings()],
                **_tokens(connection),
                audit_lag=_audit_lag(connection),
                mirror_age=None if own_crm else connection.execute(_MIRROR).scalar_one_or_none(),
                crm_trouble=_crm_trouble(connection, self._dialer) if own_crm else None,
            )

    def _renewed(self, facts: DatabaseFacts) -> DatabaseFacts:
        """Return the facts with those of `_newest` read anew over the kept connection."""
        with self._engine.connect() as connection:
            return replace(facts, **self._newest(connection))

    def _newest(self, connection: Connection) -> dict[str, Any]:
        """Read the fields of `DatabaseFacts` that each reading reads anew, by name."""
        now, read_only = connection.execute(_NOW).one()
        return {
            "now": now,
            "read_only": read_only,
            "lanes": sequencer_statuses(
                connection,
                application=APPLICATION,
                lanes=self._lanes,
                queues=self._dialer.policies,
            ),
            "queues": [QueueFacts(**row) for row in connection.execute(_QUEUES).mappings()],
        }


def _is_lost(error: DBAPIError) -> bool:
    """Return True if the server or the network ended the connection; False if it hangs."""
    return error.connection_invalidated and not isinstance(error.orig, NoAnswer)


def trouble_of(error: SQLAlchemyError) -> str:
    """Return a text for a database error, such as `refuses our login`.

    The text is the predicate of a sentence about the server. It does not contain the server's
    address.
    """
    if not isinstance(error, DBAPIError):
        return NO_ANSWER
    code = getattr(error.orig, "sqlstate", None) or ""
    said = str(error.orig)
    for begins, predicate in _BY_CODE.items():
        if code.startswith(begins):
            return predicate
    for words, predicate in _BY_WORDS.items():
        if words in said:
            return predicate
    return NO_ANSWER if not code else f"answers with an error ({code})"


_BY_CODE = {
    "28": "refuses our login",
    "3D": "does not have the database of DATABASE_URL",
    "53300": "has no free connection",
    "57014": "answers too slowly",
    "57P03": "is starting or stopping",
    "57P": "is stopping",
    "42501": "does not let our role read the tables",
    "42": "does not have our tables of this version",
}
# An error of a new connection has no code: libpq passes on only its text.
_BY_WORDS = {
    "refused": "takes no connections: it does not run, or not at this address",
    "starting up": "is starting",
    "not yet accepting connections": "is starting",
    "recovery mode": "is starting",
    "shutting down": "is stopping",
    "not currently accepting connections": "lets nobody use the database of DATABASE_URL",
    "password": "refuses our login",
    "not permitted to log in": "refuses our login",
    "permission denied": "refuses our login",
    "pg_hba.conf": "refuses our login",
    "authentication failed": "refuses our login",
    "too many": "has no free connection",
    "connection slots": "has no free connection",
    "could not translate": "is not found at its address",
    "resolve": "is not found at its address",
    "does not exist": "does not have the database or the role of DATABASE_URL",
    "FATAL:": "refuses a new connection",
}


def _tokens(connection: Connection) -> dict[str, Any]:
    """Return the fields of `DatabaseFacts` about API tokens, by name.

    They are `token_expires_at` and `token_expires_soon_at`. Both are None if the database role may
    not read the tokens.
    """
    if not connection.execute(_SEES_TOKENS).scalar_one():
        return dict.fromkeys(("token_expires_at", "token_expires_soon_at"))
    return dict(connection.execute(_TOKENS, {"soon": EXPIRES_SOON}).mappings().one())


def _audit_lag(connection: Connection) -> timedelta | None:
    if not connection.execute(_SEES_AUDIT).scalar_one():
        return None
    return timedelta(seconds=lag_seconds(connection))


def _crm_trouble(connection: Connection, dialer: Dialer) -> str | None:
    """Return the reason for which the CRM in this database cannot be read; None if it can be read.

    After an error the connection cannot be used further.
    """
    try:
        connection.execute(fact_views.probe(dialer))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return one_line(error)
    return None


_NOW = text("SELECT clock_timestamp(), current_setting('transaction_read_only')::bool")
_QUEUES = text("""
SELECT q.name AS queue, q.paused_at, g.published_at FROM assignment.queues q
LEFT JOIN assignment.generations g ON g.queue = q.name AND g.state = 'published' ORDER BY q.name
""")
_JOBS = text(f"""
WITH RECURSIVE {JOB_NAMES}, runs AS (
    SELECT r.* FROM names n CROSS JOIN LATERAL (
        SELECT job, queue, status, started_at, error, id FROM assignment.job_runs
        WHERE job = n.job ORDER BY id DESC LIMIT {RUNS}
    ) AS r
)
SELECT job, queue, max(started_at) AS begun_at,
    (array_agg(started_at ORDER BY id DESC) FILTER (WHERE status <> 'skipped'))[1] AS ran_at,
    (array_agg(status ORDER BY id DESC) FILTER (WHERE status <> 'skipped'))[1] AS status,
    (array_agg(error ORDER BY id DESC) FILTER (WHERE status <> 'skipped'))[1] AS error,
    max(started_at) FILTER (WHERE status = 'succeeded') AS succeeded_at
FROM runs GROUP BY job, queue ORDER BY job, queue
""")
_MIRROR = text("SELECT clock_timestamp() - read_at FROM assignment.crm_reads")
_SEES_TOKENS = text("SELECT has_table_privilege('assignment.api_tokens', 'SELECT')")
# The role of reports sees no tokens, and an adopted reader may not see the audit.
_SEES_AUDIT = text("""
SELECT has_table_privilege('assignment.audit_batches', 'SELECT')
AND has_table_privilege('assignment.audit_anchors', 'SELECT')
AND has_table_privilege('assignment.events', 'SELECT')
""")
_TOKENS = text("""
SELECT min(expires_at) FILTER (WHERE expires_at > clock_timestamp()) AS token_expires_at,
    min(expires_at) FILTER (WHERE CASE WHEN expires_at > clock_timestamp()
        THEN expires_at - least(:soon, (expires_at - created_at) / 4) < clock_timestamp()
        ELSE last_used_at IS NOT NULL END) AS token_expires_soon_at
FROM assignment.api_tokens
WHERE revoked_at IS NULL AND expires_at > clock_timestamp() - interval '1 day'
""").bindparams(bindparam("soon", type_=Interval))
