"""The access log: tokens, sign-ins, refusals, and tokens that act for agents.

Rare events, such as sign-ins, are recorded in the transactions that cause them. Refusals are
counted by kind, token, address and minute. The counts of a minute are written once, after its end,
so that a flood of refusals fills no table. If a token that is not the agent's own sends commands
for an agent, the first command in each hour is recorded within seconds. The times at which tokens
were last used are written together with the counts, so that no call waits for the database.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.gateway.background import attempt, repeat
from assignment_workers.schema.tables import AccessKind, AccessRecord, ApiToken

log = structlog.get_logger()

EVERY_SECONDS = 10.0
"""Seconds between two writes of the counts in memory to the access log.

Refusals are counted by minute. The count of a minute is written at the first write after the end of
that minute, or at `close`.
"""
ADDRESSES = 1_000
"""The number of counts in memory from which on collective counts are used.

The limit keeps the memory from growing with each new address. The counts of refusals and those of
commands for agents are separate, but both are included in this number.

Refusals: each combination of minute, kind, token and address has a count. Once there are this many
counts, a refusal is added to its count only if that count exists already. Any other refusal is
added to a collective count. There is one collective count for each minute and kind, with the
address `others` and no token.

Commands for agents: of a token's commands for one agent, only the first in each hour is counted. It
gets a count with its minute, token and agent. Once there are this many counts, it is instead added
to a collective count. There is one for each minute and token, with the agent `others`.
"""
OTHERS = "others"
ACTED_AT_MOST = 100_000
"""The greatest number of pairs of a token and an agent that a gateway remembers.

For each pair, the gateway remembers the last hour in which a command of this token for this agent
was recorded. When there are this many pairs, all are forgotten before a further pair is added.
"""
USE_SECONDS = 60
"""The shortest time, in seconds, between two writes of a token's last use."""


@dataclass(frozen=True)
class Access:
    """A record of the access log, such as a sign-in, a refused call or a created token."""

    at: datetime
    what: str
    who: str | None
    """The name of the token that acted, or the operating system user who ran a CLI command."""
    subject: str | None
    """The token or the agent that the record concerns."""
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
    """Store a record of kind `what` in the access log, with the current time. The caller commits.

    `who`: the token or operating system user that acts. `subject`: the token or agent acted on.
    """
    connection.execute(
        insert(AccessRecord).values(
            at=func.clock_timestamp(), what=what, who=who, subject=subject, address=address
        )
    )


def recorded(connection: Connection, *, most: int = 1_000) -> list[Access]:
    """Return the newest records of the access log, at most `most`, newest first."""
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
    """Collects in memory who was refused and who acted for an agent, and writes it to the database.

    - `refused`: of refused calls and sign-ins, the access log gets a count for each minute.
    - `acted`: a token that is not an agent's own may send commands for the agent. Of the commands
      that one such token sends for one agent, the access log gets the first in each hour.
    - `used`: a used token gets the time of its last use, in the table of tokens.
    """

    engine: Engine
    clock: Callable[[], datetime]
    _sums: Counter[_Sum] = field(default_factory=Counter)
    _used: set[str] = field(default_factory=set)
    _acted: dict[tuple[str, int], int] = field(default_factory=dict)
    """The last hour in which a token's command for an agent was recorded.

    Maps the token's name and the agent to the number of that hour, counted in whole hours from the
    epoch (1970, UTC). The token's further commands for the agent in that hour are not recorded.
    """
    _task: asyncio.Task[None] | None = None

    def refused(self, what: AccessKind, *, who: str | None, address: str | None) -> None:
        """Count a call or a sign-in that was refused.

        `what`: the kind of refusal. `who`: the name of the token; None if no valid token was sent.
        `address`: the address of the caller, if known. Refusals that agree in all three, within the
        same minute, share a count. While there are 1,000 counts (`ADDRESSES`), a refusal that would
        need a new one is counted by its kind alone.
        """
        minute = self.clock().replace(second=0, microsecond=0)
        each = _Sum(minute, what, who, address)
        if each not in self._sums and len(self._sums) >= ADDRESSES:
            each = _Sum(minute, what, None, OTHERS)
        self._sums[each] += 1

    def acted(self, token: str, agent_id: int) -> None:
        """Record that a token which is not the agent's own sent a command for the agent.

        Repeats with the same token and agent in the same hour of the clock are not recorded.
        """
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
        """Remember that a token was used; the next write stores the time of its last use."""
        self._used.add(token)

    def start(self) -> None:
        """Start to call `write` every 10 seconds (`EVERY_SECONDS`), until `close`.

        Each call stores in the database what was collected in memory: the counts of refusals, the
        commands for agents, and the last uses of tokens.
        """
        self._task = asyncio.create_task(repeat(EVERY_SECONDS, self.write))

    async def close(self) -> None:
        """End the periodic writes, and store everything that is still in memory in the database.

        This includes the refusals that were counted in the current minute. If the database cannot
        be written, they are lost when the process ends.
        """
        if self._task is not None:
            self._task.cancel()
        await attempt(partial(self.write, whole=False))

    async def write(self, *, whole: bool = True) -> None:
        """Store the last uses of tokens, the commands sent for agents, and the counts of refusals.

        Refusals are counted by minute. `whole` True: only the counts of past minutes are written,
        so that each minute is written once. `whole` False: the counts of the current minute are
        written as well. If the database cannot be written, everything stays in memory for the next
        write.
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
        except Exception as error:
            self._used |= used
            self._sums.update(sums)
            if not isinstance(error, DBAPIError | PoolTimeout):
                raise
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
