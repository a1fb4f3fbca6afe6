"""The dialer queues that agents may take users from."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from assignment_workers.schema.dialer import Agent


def unserved(connection: Connection, queues: Iterable[str]) -> list[str]:
    """Return those of `queues` from which no active agent may take a user.

    Cost: a read of all active agents.
    """
    lists = connection.execute(select(Agent.allowed_queues).where(Agent.is_active)).scalars()
    served = {name for each in lists if isinstance(each, list) for name in map(str, each)}
    return [queue for queue in queues if queue not in served]
