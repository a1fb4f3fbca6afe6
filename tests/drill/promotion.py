"""The promotion of the standby, by one process on the third host.

    python -m tests.drill.promotion FIRST SECOND

A server that commits synchronously to the other is primary. While it answers and the other is away,
commits no longer wait. While it does not answer, and the other one hears nothing of it either, the
other is promoted, if commits have waited for it until then: so it has everything that was
confirmed. This is what the drill needs and no more: it does not survive the loss of two hosts, and
an old primary is for an operator to stop.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import psycopg
import structlog

from assignment_workers.schema.deadline import BoundedConnection

log = structlog.get_logger()

LOOK_SECONDS = 0.3
AWAY_SECONDS = 2.0
"""The time without an answer after which a server counts as away."""
CONNECT_SECONDS = 2
STANDBY = "standby"
"""The application name of the standby's connection to its primary."""

IS_PRIMARY = "SELECT NOT pg_is_in_recovery()"
HEARS = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - last_msg_receipt_time)), 1e9)
FROM pg_stat_wal_receiver
"""
"""The seconds since the standby heard of the primary."""
FOLLOWED = f"""
SELECT current_setting('synchronous_standby_names'),
    (SELECT count(*) FROM pg_stat_replication WHERE application_name = '{STANDBY}'
        AND state = 'streaming' AND clock_timestamp() - reply_time < interval '{AWAY_SECONDS} s')
"""


class Server:
    """One of the two servers, with a connection that is opened again when it is lost."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._answered_at = time.monotonic()
        self._connection: BoundedConnection | None = None

    @property
    def is_away(self) -> bool:
        """True if it has not answered for `AWAY_SECONDS`."""
        return time.monotonic() - self._answered_at > AWAY_SECONDS

    def run(self, sql: str) -> tuple[Any, ...] | None:
        """Run a statement; return the first row of its answer, or None without an answer."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connected()
            cursor = self._connection.execute(sql.encode())
            row = cursor.fetchone() if cursor.description else ()
        except psycopg.Error as error:
            log.info("unanswered", server=self.address, error=str(error).strip())
            return None
        self._answered_at = time.monotonic()
        return row

    def set_synchronous(self, names: str) -> None:
        """Let commits wait for the standby of this name, or for none."""
        self.run(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.run("SELECT pg_reload_conf()")
        log.info("synchronous", server=self.address, names=names)

    def _connected(self) -> BoundedConnection:
        made = BoundedConnection.connect(
            host=self.address,
            user="postgres",
            dbname="postgres",
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name="promotion",
        )
        made.exchange_seconds = AWAY_SECONDS
        return made


class Pair:
    """The two servers, and what is known of them."""

    def __init__(self, first: Server, second: Server) -> None:
        self.primary, self.standby = first, second
        self.is_synchronous = False
        """True if every commit that was confirmed is with the standby, too."""

    def find_primary(self) -> None:
        """Wait until one of them answers that it is the primary."""
        while self.primary.run(IS_PRIMARY) != (True,):
            self.primary, self.standby = self.standby, self.primary
            time.sleep(LOOK_SECONDS)
        log.info("primary", server=self.primary.address)

    def look(self) -> None:
        """Ask the primary once, and do what has to be done."""
        found = self.primary.run(FOLLOWED)
        if found is None:
            if self.primary.is_away and self.is_synchronous and self._hears_nothing():
                self._promote()
            return
        names, is_followed = found
        if names and not is_followed:
            self.primary.set_synchronous("")
            self.is_synchronous = False
        elif is_followed and not names:
            self.primary.set_synchronous(STANDBY)
        else:
            self.is_synchronous = bool(names)

    def _hears_nothing(self) -> bool:
        heard = self.standby.run(HEARS)
        return heard is not None and float(heard[0]) > AWAY_SECONDS

    def _promote(self) -> None:
        log.info("promoting", server=self.standby.address)
        self.standby.run("SELECT pg_promote(false)")
        while self.standby.run(IS_PRIMARY) != (True,):
            time.sleep(0.05)
        self.primary, self.standby = self.standby, self.primary
        self.is_synchronous = False
        log.info("promoted", server=self.primary.address)


def main(first: str, second: str) -> None:
    """Look after the two servers until a signal ends this process."""
    pair = Pair(Server(first), Server(second))
    pair.find_primary()
    while True:
        pair.look()
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
