"""Leadership: an advisory lock on a separate connection elects the leader; a term permits writing.

A process has three states, in this order. It stands by while it does not hold the lane's lock. It
leads once it holds the lock and has begun a new term. Its leadership is over if the connection of
the lock is lost or the signs of life stop. The process then ends, and its supervisor starts it
again as a standby.

A term has a number and a random id, which are stored in the lane's row in the table `sequencer`.
Each transaction proves both: it looks for the row with this number and this id.

* The lock alone does not suffice, because a leader may lose it without noticing. Once a successor
  has begun a term, the transactions of the former leader find no row and fail.
* The number alone does not suffice either. A database may be replaced by an older copy of itself:
  a restored backup, or an asynchronous replica. The copy lacks the latest terms, and gives out
  their numbers again, but each time with a new random id. So a leader of a term that the copy lacks
  finds no row either.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import SystemRandom
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from assignment_workers.assignment.lanes import ONE_LANE, Lanes, connection_name
from assignment_workers.assignment.locks import key
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.identity import new_id
from assignment_workers.policy.dialer import Dialer, differences
from assignment_workers.schema.deadline import EXCHANGE_SECONDS, BoundedConnection
from assignment_workers.schema.engine import conninfo, driver_url
from assignment_workers.schema.hosts import MOVED
from assignment_workers.schema.tables import DEFAULT_LANE, UNMARKED

SILENCE = timedelta(seconds=8)
"""The time without a new transaction after which a leader counts as dead.

A leader without other messages gets a probe every 2 seconds, which runs a transaction.
"""

STANDBY_SECONDS = 2.0
"""The most seconds to wait for a reply of PostgreSQL while this process does not lead its lane.

After a longer wait, this process drops the connection.
"""

COMMIT_SECONDS = 2.0
"""The most seconds that a COMMIT normally waits for PostgreSQL's synchronous standby.

After a longer wait, the standby counts as unavailable.
"""

APPLICATION = "assignment-workers sequencer"
PARTS_AT_MOST = 5
"""The most parts that are named in one log line when two dialer files are compared.

The named parts differ between the two files. A dialer file defines the dialer queues, their rules
and the outcomes.
"""


class CommitsWait(psycopg.OperationalError):
    """COMMITs wait for a synchronous standby that is away, so no process may begin a term."""

    def __init__(self) -> None:
        super().__init__(
            "commits wait for a synchronous standby that is away: bring it back, or take it out of"
            " synchronous_standby_names"
        )


@dataclass(frozen=True)
class Term:
    """A sequencer's fencing token: a number that grows, and a random id that never recurs."""

    number: int
    id: UUID = UNMARKED

    @property
    def mark(self) -> str:
        """The number and the id of the term in one text."""
        return f"{self.number}.{self.id.hex}"


@dataclass(frozen=True)
class Sign:
    """The term of a lane's last leader, and the seconds since that leader's last sign of life.

    The leader's transactions are its signs of life; the start of its term is the first one.
    """

    term: Term
    silent: float


class Candidacy:
    """The database connection by which this process takes and holds its lane's advisory lock.

    Used by one thread at a time.
    """

    def __init__(
        self,
        database_url: str,
        *,
        dialer: Dialer,
        lane: str = DEFAULT_LANE,
        lanes: Lanes = ONE_LANE,
        make_id: Callable[[], UUID] | None = None,
    ) -> None:
        self.dialer = dialer
        self.lane = lane
        self.lanes = lanes
        self.lock = lock_of(lane)
        self.earlier: list[str] = []
        """The marks (number and id) of the terms of this lane that preceded this process's term."""
        self.differing: list[str] = []
        """The result of the last call of `compare`: a line for each lane whose last leader had
        another dialer file than this process. A dialer file defines the dialer queues.
        """
        self._make_id = make_id or _random_id
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self._url = driver_url(database_url)
        self._connection: BoundedConnection | None = None

    def connect(self) -> BoundedConnection:
        """Return the database connection that takes the lane's lock; open it if it is not open.

        Raises `psycopg.OperationalError` if it cannot be opened.
        """
        if self._connection is not None and self._connection.has_moved:
            self.close()
        if self._connection is None or self._connection.closed:
            options = f"{self._url.query.get('options', '')} -c statement_timeout=5000".strip()
            self._connection = BoundedConnection.connect(
                conninfo(
                    self._url,
                    application_name=connection_name(APPLICATION, self.lane, self.host, self.pid),
                    options=options,
                ),
                autocommit=True,
            )
            self._connection.exchange_seconds = STANDBY_SECONDS
        return self._connection

    def close(self) -> None:
        """Release the lock by closing the connection that holds it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def try_to_lead(self) -> Term | None:
        """Begin and return a new term if the lane's lock is free; None if it is held.

        The number of a new term is the highest number of all lanes' terms, plus one. So terms of
        different lanes never have the same number. Raises `CommitsWait` while COMMITs wait for a
        synchronous replica of PostgreSQL. Raises `psycopg.OperationalError` if the database fails.
        Also raises it if `disagreement` would return a reason.
        """
        connection = self.connect()
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [self.lock]).fetchone()
        if row is None or not row[0]:
            return None
        connection.exchange_seconds = EXCHANGE_SECONDS
        if self.commits_wait():
            raise CommitsWait
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [key("terms")])
            if wrong := self._disagreement(connection):
                raise psycopg.OperationalError(wrong)
            self._compare(connection)
            connection.execute(_MAKE, [self.lane])
            given: dict[str, Any] = {
                "id": self._make_id(),
                "host": self.host,
                "pid": self.pid,
                "lane": self.lane,
            }
            kept = {"queues": self._queues_of(self.lane), "dialer": Jsonb(self.dialer.digests)}
            begun = connection.execute(_BEGIN, given | kept).fetchone()
            if begun is None:
                raise psycopg.OperationalError(f"no lane {self.lane!r} in assignment.sequencer")
            number, terms, marks = cast("tuple[int, list[int], list[str]]", begun)
            term = Term(number, given["id"])
            self.earlier = [*marks[1:], *(str(each) for each in terms if each != number)]
            connection.execute(_SIGNED, [self.lane])
            changed = {"dialer_changed": self.differing} if self.differing else {}
            details = Jsonb({**given, "id": str(term.id), **changed})
            connection.execute(_TELL, [EventKind.TERM_BEGUN, term.number, details])
        return term

    def disagreement(self) -> str | None:
        """Return the reason for which this process may not lead its lane now, in one line, or None.

        There is such a reason if another lane has a leader now, and that leader and this process
        disagree on the dialer queues of that other lane, because they have different settings. If
        this process led its own lane, the two sequencers could then both write to one dialer queue.
        Dialer queues that only one of the two processes knows are ignored.
        """
        return self._disagreement(self.connect())

    def _disagreement(self, connection: psycopg.Connection[tuple[object, ...]]) -> str | None:
        for lane, queues, digests in connection.execute(_QUEUES).fetchall():
            kept = self.dialer.policies if queues is None else queues
            name, has = str(lane), sorted(map(str, kept))  # type: ignore[call-overload]
            # A dialer queue that only one of the two dialers has is written by no other lane.
            known = cast("dict[str, str]", digests or self.dialer.digests)
            here = [each for each in self._queues_of(name) if f"queue {each}" in known]
            if name == self.lane or [each for each in has if each in self.dialer.policies] == here:
                continue
            row = connection.execute(_LED, [lock_of(name)]).fetchone()
            if row and row[0]:
                return (
                    f"lane {name} is led with {', '.join(has) or 'no dialer queue'}, and by"
                    f" ASSIGNMENT_WORKERS_LANES here it has"
                    f" {', '.join(self._queues_of(name)) or 'none'}: stop every sequencer, then"
                    " start them all with the same value"
                )
        return None

    def _queues_of(self, lane: str) -> list[str]:
        return self.lanes.queues(lane, self.dialer.policies)

    def compare(self) -> None:
        """Compare this process's dialer file with that of the last sequencer to lead each lane.

        A dialer file defines the dialer queues, their rules and the outcomes. Each sequencer stores
        digests of its file in the database. The differing parts are stored in `differing`.
        """
        self._compare(self.connect())

    def _compare(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        here = self.dialer.digests
        self.differing = []
        for lane, _, digests in connection.execute(_QUEUES).fetchall():
            parts = differences(cast("dict[str, str]", digests or here), here)
            if parts:
                more = f", and {len(parts) - PARTS_AT_MOST} more" if parts[PARTS_AT_MOST:] else ""
                self.differing.append(
                    f"the dialer's file here is not that by which lane {lane} is or was last led:"
                    f" {', '.join(parts[:PARTS_AT_MOST])}{more}"
                )

    def sign(self) -> Sign | None:
        """Return the term of the lane's last leader and the age of its sign of life.

        None if the lane never had a leader.
        """
        row = self.connect().execute(_SIGN, [self.lane]).fetchone()
        if row is None or row[2] is None:
            return None
        number, term_id, silent = cast("tuple[int, UUID, Decimal]", row)
        return Sign(term=Term(number, term_id), silent=float(silent))

    def commits_wait(self) -> bool:
        """Return True if a COMMIT in the database has waited too long for a synchronous standby.

        While COMMITs wait, a leader cannot show a sign of life, and a successor could not begin a
        term. The waiting session must not be terminated: its transaction would then be committed
        without the standby.
        """
        row = self.connect().execute(_COMMITS_WAIT).fetchone()
        return row is not None and row[0] is not None and float(row[0]) > COMMIT_SECONDS

    def depose(self) -> None:
        """Terminate the database session of a silent leader, so that the lane's lock becomes free.

        PostgreSQL allows this if both sessions have the same role. The leader's process may still
        be running, but it can commit nothing more once a new term has begun.
        """
        self.connect().execute(_DEPOSE, [self.lock])

    def holds_lock(self) -> bool:
        """Return True if this connection still holds the lane's lock.

        Raises `psycopg.OperationalError` if the connection is lost.
        """
        if self._connection is None or self._connection.closed:
            raise psycopg.OperationalError("the connection that held the lock is closed")
        if self._connection.has_moved:
            raise psycopg.OperationalError(MOVED)
        row = self._connection.execute(_MINE, [self.lock]).fetchone()
        return bool(row and row[0])


def lock_of(lane: str) -> int:
    """Return the key of the advisory lock that the lane's sequencer holds."""
    return key(f"sequencer {lane}")


def _random_id() -> UUID:
    """Return a UUID that begins with this host's time, so that ids sort by age."""
    return new_id(datetime.now(UTC), SystemRandom())


_MAKE = "INSERT INTO assignment.sequencer (lane) VALUES (%s) ON CONFLICT DO NOTHING"
_BEGIN = """
UPDATE assignment.sequencer AS s
SET term = last.term + 1, term_id = %(id)s, terms = (last.term + 1 || s.terms)[:21],
    marks = (concat(last.term + 1, '.', replace(%(id)s::text, '-', '')) || s.marks)[:21],
    leader_host = %(host)s, leader_pid = %(pid)s, since = clock_timestamp(),
    seen_at = clock_timestamp(), queues = %(queues)s, dialer = %(dialer)s,
    settings_id = coalesce(s.settings_id,
        (SELECT id FROM assignment.settings ORDER BY version DESC LIMIT 1))
FROM (SELECT max(term) AS term FROM assignment.sequencer) AS last
WHERE s.lane = %(lane)s RETURNING s.term, s.terms, s.marks
"""
_SIGNED = """
INSERT INTO assignment.sequencer_signs AS s (lane, last_turn_at) VALUES (%s, clock_timestamp())
ON CONFLICT (lane) DO UPDATE SET last_turn_at = excluded.last_turn_at, last_probe_at = NULL,
    last_probe_seconds = NULL
"""
_QUEUES = """
SELECT lane, queues, dialer FROM assignment.sequencer WHERE since IS NOT NULL ORDER BY lane
"""
_TELL = """
INSERT INTO assignment.events (at, kind, term, details) VALUES (clock_timestamp(), %s, %s, %s)
"""
_SIGN = """
SELECT s.term, s.term_id, extract(epoch FROM clock_timestamp()
    - greatest(l.last_turn_at, s.seen_at))
FROM assignment.sequencer s LEFT JOIN assignment.sequencer_signs l USING (lane) WHERE s.lane = %s
"""
# `pg_locks` shows the 64-bit key of an advisory lock in two halves.
_KEY = """
locktype = 'advisory' AND granted AND objsubid = 1
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND classid::bigint << 32 | objid::bigint = %s
"""
_LED = "SELECT count(*) > 0 FROM pg_locks WHERE " + _KEY
_COMMITS_WAIT = """
SELECT max(extract(epoch FROM clock_timestamp() - query_start)) FROM pg_stat_activity
WHERE wait_event = 'SyncRep' AND datname = current_database()
"""
_DEPOSE = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid <> pg_backend_pid() AND " + _KEY
_MINE = "SELECT count(*) > 0 FROM pg_locks WHERE pid = pg_backend_pid() AND " + _KEY
