"""Durability: the servers that have a commit before it is answered, and the loss at a failover."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel
from sqlalchemy import Connection, text


class Commits(StrEnum):
    """The servers that have a change on disk at the time when an agent gets the answer."""

    ALONE = "alone"
    """The primary only; no standby is connected or named."""
    ASYNCHRONOUS = "asynchronous"
    """The primary only; standbys get the commit later, and may lack it when promoted."""
    SYNCHRONOUS = "synchronous"
    """The primary and at least one standby."""
    WAITING = "waiting"
    """No answer is sent: commits wait for a standby that is not connected."""
    UNSAFE = "unsafe"
    """Perhaps no server: with `synchronous_commit` off, an answer may precede its commit."""
    UNKNOWN = "unknown"
    """It is not known, because the database role has no right to see the standbys."""


class Durability(BaseModel):
    """The servers that have a commit when its answer is sent; `meaning` says it in one sentence."""

    commits: Commits
    meaning: str


def durability(connection: Connection) -> Durability:
    """Return the servers that commits in this session's database wait for."""
    row = connection.execute(_SETTINGS).one()
    commits = _commits(
        commit=row.commit,
        named=bool(row.names),
        connected=row.connected,
        confirming=row.confirming,
        hidden=row.hidden,
    )
    return Durability(commits=commits, meaning=_MEANINGS[commits])


def _commits(*, commit: str, named: bool, connected: int, confirming: int, hidden: int) -> Commits:
    if commit == "off":
        return Commits.UNSAFE
    if named and commit != "local":
        if confirming:
            return Commits.SYNCHRONOUS
        return Commits.UNKNOWN if hidden else Commits.WAITING
    if hidden:
        return Commits.UNKNOWN
    return Commits.ASYNCHRONOUS if connected else Commits.ALONE


_MEANINGS = {
    Commits.ALONE: "commits are on one server; a backup is all there is beside it",
    Commits.ASYNCHRONOUS: "commits are asynchronous: a promoted standby may lack the last of them,"
    " and what agents were told in them",
    Commits.SYNCHRONOUS: "commits are synchronous: a standby has each of them before its answer is"
    " sent",
    Commits.WAITING: "commits wait for a synchronous standby that is not connected, and agents get"
    " `unavailable`: bring it back, or take it out of synchronous_standby_names",
    Commits.UNSAFE: "synchronous_commit is off: a crash of the server loses answers that agents"
    " got; set it to on",
    Commits.UNKNOWN: "whether commits are synchronous cannot be seen: the database role needs"
    " pg_read_all_stats",
}
_SETTINGS = text("""
SELECT current_setting('synchronous_standby_names') AS names,
    current_setting('synchronous_commit') AS commit,
    count(*) FILTER (WHERE state IS NOT NULL) AS connected,
    count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS confirming,
    count(*) FILTER (WHERE pid IS NOT NULL AND state IS NULL) AS hidden
FROM pg_stat_replication
""")
