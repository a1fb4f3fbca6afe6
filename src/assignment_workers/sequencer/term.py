"""Who leads: an advisory lock on a connection of its own says who may try, the term who may write.

States: standing by (no lock) → leading (lock held, term raised) → over (the connection or the life
signs are gone; the process ends and its supervisor starts it as a standby). Nothing rests on the
lock alone: a leader that lost it without noticing has a stale term, and its transactions find no
row.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from assignment_workers.assignment.locks import key
from assignment_workers.assignment.turn import EventKind
from assignment_workers.schema.engine import KEEPALIVES, driver_url
from assignment_workers.schema.tables import DEFAULT_LANE

SILENCE = timedelta(seconds=8)
"""A leader that has not begun a turn for this long is taken to be gone.

It probes every 2 seconds.
"""

APPLICATION = "assignment-workers sequencer"


@dataclass(frozen=True)
class Sign:
    """What the lane's row says: the term, and for how many seconds its leader has been silent."""

    term: int
    silent: float


class Candidacy:
    """This process's connection for the lock, and what it knows by it. For one thread at a time."""

    def __init__(self, database_url: str, *, lane: str = DEFAULT_LANE) -> None:
        self.lane = lane
        self.lock = key(f"sequencer {lane}")
        self.host = socket.gethostname()
        self.pid = os.getpid()
        self._url = driver_url(database_url).set(drivername="postgresql")
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """The connection, made when there is none; raises `psycopg.OperationalError`."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                make_conninfo(
                    self._url.render_as_string(hide_password=False),
                    application_name=f"{APPLICATION} {self.host}:{self.pid}"[:63],
                    connect_timeout=5,
                    options="-c statement_timeout=5000",
                    **KEEPALIVES,
                ),
                autocommit=True,
            )
        return self._connection

    def close(self) -> None:
        """Give the lock up by closing the connection that holds it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def try_to_lead(self) -> int | None:
        """The new term if the lock was free; None while another holds it."""
        connection = self.connect()
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [self.lock]).fetchone()
        if row is None or not row[0]:
            return None
        with connection.transaction():
            begun = connection.execute(_BEGIN, [self.host, self.pid, self.lane]).fetchone()
            if begun is None:
                raise psycopg.OperationalError(f"no lane {self.lane!r} in assignment.sequencer")
            term = int(str(begun[0]))
            details = Jsonb({"host": self.host, "pid": self.pid})
            connection.execute(_TELL, [EventKind.TERM_BEGUN, term, details])
        return term

    def sign(self) -> Sign | None:
        """The leader's last sign of life; None where there was never one."""
        row = self.connect().execute(_SIGN, [self.lane]).fetchone()
        if row is None or row[1] is None:
            return None
        return Sign(term=int(str(row[0])), silent=float(str(row[1])))

    def depose(self) -> None:
        """End the connection that holds the lock: its process is silent, frozen or cut off.

        Needs the same database role as the leader's. Its own transactions are fenced by the term.
        """
        self.connect().execute(_DEPOSE, [self.lock])

    def holds_lock(self) -> bool:
        """Whether the lock is still this connection's; raises when the connection is gone."""
        if self._connection is None or self._connection.closed:
            raise psycopg.OperationalError("the connection that held the lock is closed")
        row = self._connection.execute(_MINE, [self.lock]).fetchone()
        return bool(row and row[0])


_BEGIN = """
UPDATE assignment.sequencer
SET term = term + 1, leader_host = %s, leader_pid = %s, since = clock_timestamp(),
    seen_at = clock_timestamp()
WHERE lane = %s RETURNING term
"""
_TELL = """
INSERT INTO assignment.events (at, kind, term, details) VALUES (clock_timestamp(), %s, %s, %s)
"""
_SIGN = """
SELECT term, extract(epoch FROM clock_timestamp() - seen_at)
FROM assignment.sequencer WHERE lane = %s
"""
# An advisory lock's 64-bit key is shown in two halves.
_KEY = """
locktype = 'advisory' AND granted AND objsubid = 1
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND classid::bigint << 32 | objid::bigint = %s
"""
_DEPOSE = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid <> pg_backend_pid() AND " + _KEY
_MINE = "SELECT count(*) > 0 FROM pg_locks WHERE pid = pg_backend_pid() AND " + _KEY
