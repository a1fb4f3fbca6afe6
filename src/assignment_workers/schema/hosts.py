"""The primary among the several hosts of a PostgreSQL address.

libpq tries the hosts in their order, each time anew, and takes the first that accepts writes. Two
things are wrong with that after a failover: a primary that hangs costs every new connection its
time-out, and an old primary that answers again accepts writes, too. Here all hosts are asked, and
the one on the newest timeline is the primary: PostgreSQL begins a timeline with each promotion. For
a second that host is known, and for some seconds a host that timed out is not asked. All hosts are
also asked every few seconds, so that sessions on a server that is no longer the primary are given
up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.errors import ConnectionTimeout

from assignment_workers.addresses import hosts_of

C = TypeVar("C", bound="psycopg.Connection[Any]")

CONNECT_SECONDS = 2
"""The longest wait for one of several hosts. One that is slower is passed over, and tried again."""
LOOKING = "assignment-workers look"
"""The name of short sessions that only ask a server for its state."""
LOOK_SECONDS = 5.0
"""The interval at which all hosts are asked which is the primary, and for which a host that timed
out is not asked again if another serves."""
KNOWN_SECONDS = 1.0
"""Seconds for which the primary is known after all hosts were asked."""
WRITES = frozenset({"read-write", "primary"})
"""The values of `target_session_attrs` that ask for the primary."""


class Hosts:
    """The hosts of one address, and the one that is the primary as far as known. Thread-safe."""

    def __init__(
        self, hosts: list[dict[str, str]], steady: Callable[[], float] = monotonic
    ) -> None:
        """`steady`: a monotonic clock."""
        self.primary: dict[str, str] | None = None
        """The host that served last; None: none has."""
        self._hosts = hosts
        self._steady = steady
        self._asked_at = float("-inf")
        self._timed_out: dict[str, float] = {}
        self._timelines: dict[str, int] = {}
        """The newest timeline that was seen of each system: a primary and its standbys are one."""
        self._is_watched = threading.Lock()
        """Acquired by the one thread that watches these hosts, for good."""

    def connect(self, connect: Callable[..., C]) -> C:
        """Return a connection to the primary, opened by `connect`, which gets a host.

        Raises `psycopg.OperationalError`, one line with the reason of each host, if none serves.
        """
        last = self.primary
        is_known = self._steady() - self._asked_at < KNOWN_SECONDS
        if last is not None and is_known:
            try:
                return connect(last)
            except psycopg.OperationalError as error:
                self._note(last, error)
        made = self._newest(connect)
        if self._is_watched.acquire(blocking=False):
            threading.Thread(
                target=self._watch, args=[connect], name="primary", daemon=True
            ).start()
        return made

    def _newest(self, connect: Callable[..., C]) -> C:
        """Connect to every host that accepts writes, and return the one on the newest timeline.

        A host that timed out a moment ago is asked only if no other serves, and then by turns: for
        as long as the wait for it has taken, the others alone are asked again.
        """
        best: tuple[int, C, dict[str, str]] | None = None
        failures = []
        began = self._steady()
        hangs = {each for each, at in self._timed_out.items() if began - at < LOOK_SECONDS}
        for host in sorted(self._hosts, key=lambda each: named(each) in hangs):
            if named(host) in hangs and best is not None:
                continue
            if began - self._timed_out.get(named(host), float("-inf")) < CONNECT_SECONDS:
                failures.append(f"{named(host)}: it did not answer a moment ago")
                continue
            try:
                made = connect(host)
                timeline = self._timeline(made)
            except psycopg.OperationalError as error:
                self._note(host, error)
                reason = str(error).strip().splitlines() or [type(error).__name__]
                failures.append(f"{named(host)}: {reason[0]}")
                continue
            if best is not None and timeline <= best[0]:
                made.close()
                continue
            if best is not None:
                best[1].close()
            best = timeline, made, host
        if best is None:
            raise psycopg.OperationalError("; ".join(failures))
        self.primary, self._asked_at = best[2], self._steady()
        return best[1]

    def _note(self, host: Mapping[str, str], error: psycopg.OperationalError) -> None:
        if isinstance(error, ConnectionTimeout):
            self._timed_out[named(host)] = self._steady()

    def _timeline(self, connection: psycopg.Connection[Any]) -> int:
        """Return the number of the server's timeline; 0 if the server does not say.

        Closes the connection and raises `psycopg.OperationalError` if a later timeline was seen.
        """
        try:
            row = connection.execute(_TIMELINE).fetchone()
            connection.rollback()
        except psycopg.OperationalError:
            connection.close()
            raise
        except psycopg.Error:  # a server that only looks like PostgreSQL
            connection.rollback()
            return 0
        system, timeline = (row[0], int(row[1], 16)) if row else ("", 0)
        newest = self._timelines.get(system, 0)
        if timeline < newest:
            connection.close()
            raise psycopg.OperationalError(
                f"an old primary: its timeline is {timeline}, and {newest} has begun elsewhere"
            )
        self._timelines[system] = timeline
        return timeline

    def _watch(self, connect: Callable[..., psycopg.Connection[Any]]) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_SECONDS):
            try:
                self._newest(partial(connect, application_name=LOOKING)).close()
            except psycopg.Error:
                continue  # no host serves; the next caller that connects gets the reason


@dataclass(frozen=True)
class Served:
    """The host that a connection leads to, one of several."""

    hosts: Hosts
    host: Mapping[str, str]

    @property
    def has_moved(self) -> bool:
        """True if another host is the primary now."""
        return self.hosts.primary != self.host


def among(parameters: Mapping[str, Any]) -> Hosts | None:
    """Return the hosts that libpq's parameters name, the same object for the same hosts.

    None if the parameters name one host, or do not ask for the primary.
    """
    found = hosts_of(parameters)
    if len(found) < 2 or parameters.get("target_session_attrs") not in WRITES:  # noqa: PLR2004
        return None
    return _KNOWN.setdefault(tuple(map(named, found)), Hosts(found))


MOVED = "another host of the address is the primary now"


def named(host: Mapping[str, str]) -> str:
    """Return a host and its port in one text."""
    return f"{host.get('host') or host.get('hostaddr')}:{host.get('port', '')}".rstrip(":")


_TIMELINE = """
SELECT system_identifier::text, left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
FROM pg_control_system()
"""
"""The first part of a WAL file's name. `pg_control_checkpoint` has an old number for a while."""
_KNOWN: dict[tuple[str, ...], Hosts] = {}
