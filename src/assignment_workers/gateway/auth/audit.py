"""The access log: tokens, sign-ins, refusals in sums by address and minute, and who acts for whom.

What is rare is recorded in the transaction that does it. Refusals are counted here and written once
a minute, so that a flood of them fills no table; that a token acts for an agent is recorded once an
hour, at its first move, within seconds; the use of tokens is written beside them, off
every call's way.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.schema.tables import AccessKind, AccessRecord, ApiToken

log = structlog.get_logger()

EVERY_SECONDS = 10.0
"""How often what was counted is looked through for what may be written."""
ADDRESSES = 1_000
"""So many sums are kept of a minute; what comes from further addresses is one sum, `others`."""
OTHERS = "others"
ACTED_AT_MOST = 100_000
"""Pairs of a token and an agent that a gateway remembers."""
USE_SECONDS = 60
"""A token's last use is written at most so often: that is how exact it is."""


@dataclass(frozen=True)
class Access:
    """A record of the access log."""

    at: datetime
    what: str
    who: str | None
    """The token's name, or the user of this machine who ran the command."""
    subject: str | None
    """What it was done to: the token."""
    address: str | None
    count: int


def record(
    connection: Connection,
    what: AccessKind,
    *,
    who: str | None = None,
    subject: str | None = None,
    address: str | None = None,
) -> None:
    """Keep that it happened now. The caller commits."""
    connection.execute(
        insert(AccessRecord).values(
            at=func.clock_timestamp(), what=what, who=who, subject=subject, address=address
        )
    )


def recorded(connection: Connection, *, most: int = 1_000) -> list[Access]:
    """The newest records, the newest first."""
    columns = [getattr(AccessRecord, name) for name in Access.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(AccessRecord.id.desc()).limit(most))
    return [Access(*row) for row in rows]


class _Sum(NamedTuple):
    minute: datetime
    what: AccessKind
    who: str | None
    address: str | None
    subject: str | None = None


@dataclass
class AccessLog:
    """What one gateway counts until it is written."""

    engine: Engine
    clock: Callable[[], datetime]
    _sums: Counter[_Sum] = field(default_factory=Counter)
    _used: set[str] = field(default_factory=set)
    _acted: dict[tuple[str, int], int] = field(default_factory=dict)
    """By token and agent, the hour in which it was recorded last."""
    _task: asyncio.Task[None] | None = None

    def refused(self, what: AccessKind, *, who: str | None, address: str | None) -> None:
        """Count a refusal."""
        minute = self.clock().replace(second=0, microsecond=0)
        each = _Sum(minute, what, who, address)
        if each not in self._sums and len(self._sums) >= ADDRESSES:
            each = _Sum(minute, what, None, OTHERS)
        self._sums[each] += 1

    def acted(self, token: str, agent_id: int) -> None:
        """Note that a token that is not the agent's own makes moves of the agent."""
        now = self.clock()
        hour = int(now.timestamp()) // 3600
        if self._acted.get((token, agent_id)) == hour:
            return
        if len(self._acted) >= ACTED_AT_MOST:
            self._acted.clear()
        self._acted[token, agent_id] = hour
        minute = now.replace(second=0, microsecond=0)
        each = _Sum(minute, AccessKind.ACTED_FOR, token, None, f"agent {agent_id}")
        if len(self._sums) >= ADDRESSES:
            each = each._replace(subject=OTHERS)
        self._sums[each] += 1

    def used(self, token: str) -> None:
        """Note that a token was used."""
        self._used.add(token)

    def start(self) -> None:
        """Write from now on, until `close`."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what there is."""
        if self._task is not None:
            self._task.cancel()
        await self.write(whole=False)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.write()

    async def write(self, *, whole: bool = True) -> None:
        """Write the tokens used, and the sums of the minutes that are over; else all of them.

        What cannot be written now is kept for the next time.
        """
        minute = self.clock().replace(second=0, microsecond=0)
        sums = {
            each: n
            for each, n in self._sums.items()
            if not whole or each.minute < minute or each.what == AccessKind.ACTED_FOR
        }
        used, self._used = self._used, set()
        if not sums and not used:
            return
        for each in sums:
            del self._sums[each]
        try:
            await asyncio.to_thread(self._store, sums, used)
        except (DBAPIError, PoolTimeout) as error:
            self._used |= used
            self._sums.update(sums)
            log.warning("access_not_recorded", sums=len(sums), why=type(error).__name__)

    def _store(self, sums: dict[_Sum, int], used: set[str]) -> None:
        with self.engine.begin() as connection:
            if sums:
                connection.execute(insert(AccessRecord), [_row(*each) for each in sums.items()])
            if used:
                connection.execute(_USED, {"used": sorted(used)})


def _row(each: _Sum, count: int) -> dict[str, object]:
    return {
        "at": each.minute,
        "what": each.what,
        "who": each.who,
        "subject": each.subject,
        "address": each.address,
        "count": count,
    }


_USED = (
    update(ApiToken)
    .where(
        ApiToken.id.in_(bindparam("used", expanding=True)),
        or_(
            ApiToken.last_used_at.is_(None),
            ApiToken.last_used_at < func.now() - timedelta(seconds=USE_SECONDS),
        ),
    )
    .values(last_used_at=func.now())
)
