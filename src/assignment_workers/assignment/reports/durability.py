"""Durability: the servers that have a commit on disk before the agent gets the answer.

A failover loses the commits that the promoted standby does not have.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel
from sqlalchemy import Connection, text


class Commits(StrEnum):
    """The database servers that have a commit on disk when the agent gets the answer."""

    ALONE = "alone"
    """Only the primary has the commit; no standby is connected."""
    ASYNCHRONOUS = "asynchronous"
    """Only the primary has the commit; standbys get it later, and may lack it when promoted."""
    SYNCHRONOUS = "synchronous"
    """The primary and at least one standby have the commit when the agent gets the answer."""
    WAITING = "waiting"
    """Commits wait for a standby that is not connected, so agents get the answer `unavailable`."""
    UNSAFE = "unsafe"
    """Perhaps no server has the commit on disk, because `synchronous_commit` is off."""
    UNKNOWN = "unknown"
    """The servers with the commit are unknown: the database role may not see the standbys."""


class Durability(BaseModel):
    """The database servers that have a commit on disk before the agent gets the answer.

    An agent gets the answer to a request or command after PostgreSQL has confirmed the commit. The
    confirmation may be of the primary alone, or of a standby too; a failover to a standby loses the
    commits that the standby does not have. `commits`: the case that applies to this installation.
    `meaning`: the same case as a sentence for operators, with its risk or its remedy.
    """

    commits: Commits
    meaning: str


def durability(connection: Connection) -> Durability:
    """Return the database servers that have a commit on disk before the agent gets the answer.

    The result is derived from this session's settings `synchronous_standby_names` and
    `synchronous_commit`, and from the connected standbys.
    """
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
