"""The primary among the several hosts of a PostgreSQL address.

For each connection, libpq tries the hosts in their order and takes the first that accepts writes.
After a failover, libpq's method has two faults. If the old primary hangs, every new connection
first waits for it. If the old primary answers again, it accepts writes too, and libpq may take it.

This module searches for the primary instead: it connects to all hosts that accept writes, and reads
the timeline of each. The host on the newest timeline is the primary, because PostgreSQL begins a
timeline with each promotion. For one second after a search, new connections go to the primary that
was found, without another search. A host that timed out is left out of searches for some seconds. A
thread also searches every five seconds, so that sessions on a server that is no longer the primary
are detected and closed.
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
"""The most seconds to wait for a connection to one of several hosts. A slower host is skipped, and
tried again later.
"""
LOOKING = "assignment-workers look"
"""The application name of short sessions that only ask a server for its state."""
LOOK_SECONDS = 5.0
"""Seconds that the watching thread pauses between two searches for the primary among all hosts.

In between, the opening of a connection may cause a search too (`KNOWN_SECONDS`). If a host has
timed out less than five seconds (this constant) ago, a search tries this host only if no other host
serves.
"""
KNOWN_SECONDS = 1.0
"""Seconds for which new connections use the result of the last search for the primary.

A connection that is opened later begins with a new search.
"""
WRITES = frozenset({"read-write", "primary"})
"""The values of `target_session_attrs` that request a server that accepts writes."""


class Hosts:
    """The hosts of one database address, and which of them is the primary. Thread-safe."""

    def __init__(
        self, hosts: list[dict[str, str]], steady: Callable[[], float] = monotonic
    ) -> None:
        """Store the hosts. `steady` is a monotonic clock."""
        self.primary: dict[str, str] | None = None
        """The host that last served as the primary; None if none has served yet."""
        self._hosts = hosts
        self._steady = steady
        self._asked_at = float("-inf")
        self._timed_out: dict[str, float] = {}
        self._timelines: dict[str, int] = {}
        """The newest timeline seen, by PostgreSQL's system identifier.

        A primary and its standbys have the same system identifier.
        """
        self._is_watched = threading.Lock()
        """A lock that ensures that only one thread watches these hosts.

        It is acquired when that thread is started, and never released.
        """

    def connect(self, connect: Callable[..., C]) -> C:
        """Return a connection to the primary, opened by `connect`, a function that takes a host.

        Raises `psycopg.OperationalError` if no host serves. The error's message is one line, which
        says for each host why that host does not serve.
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
        """Connect to all hosts that accept writes; return the connection to the primary.

        The primary is the host with the newest timeline; connections to other hosts are closed. A
        host that timed out is not tried for two seconds (`CONNECT_SECONDS`). Until five seconds
        (`LOOK_SECONDS`) after the time-out, the host is tried only if no other host serves. Raises
        `psycopg.OperationalError`, with a reason for each host, if no host serves.
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
        """Return the number of the server's timeline; 0 if the server does not report it.

        Closes the connection and raises `psycopg.OperationalError` in two cases. The connection
        fails. Or the server is an old primary: this object has already seen a newer timeline for
        the same system identifier, which a primary shares with its standbys.
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
    """The host that a connection leads to, and the `Hosts` among which it was chosen."""

    hosts: Hosts
    host: Mapping[str, str]

    @property
    def has_moved(self) -> bool:
        """True if the host of this connection is no longer the primary."""
        return self.hosts.primary != self.host


def among(parameters: Mapping[str, Any]) -> Hosts | None:
    """Return the `Hosts` object of the hosts in libpq's parameters; equal hosts share one object.

    None if the parameters name only one host, or do not request the primary.
    """
    found = hosts_of(parameters)
    if len(found) < 2 or parameters.get("target_session_attrs") not in WRITES:  # noqa: PLR2004
        return None
    return _KNOWN.setdefault(tuple(map(named, found)), Hosts(found))


MOVED = "another host of the address is the primary now"


def named(host: Mapping[str, str]) -> str:
    """Return a host's name or address and its port, as one text."""
    return f"{host.get('host') or host.get('hostaddr')}:{host.get('port', '')}".rstrip(":")


_TIMELINE = """
SELECT system_identifier::text, left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
FROM pg_control_system()
"""
"""Query: the system identifier, and the timeline, which is the first part of a WAL file's name.
After a promotion `pg_control_checkpoint` would still have the old timeline for some time.
"""
_KNOWN: dict[tuple[str, ...], Hosts] = {}
