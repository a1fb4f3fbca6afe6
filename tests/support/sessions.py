"""The other sessions of a test's own database: who waits there for a lock, and the end of them.

A server has other databases, and the stacks that last for a whole run are at work in some of them:
what looks at locks or ends sessions says which database it means, in Redis too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
END = f"SELECT pg_terminate_backend(pid) {OTHERS}"
"""Ends every other session; `AND application_name = ...` after it ends some."""
WAITING = """
SELECT pid FROM pg_locks WHERE NOT granted AND pid IN (
    SELECT pid FROM pg_locks
    WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
"""
"""Whoever waits for a lock. For a row one waits for its transaction, which names no database; but
holds a lock of the table, which does. Seen anew at each reading, within a transaction too."""


def cut(server: redis.Redis, *, which: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
    """End the other connections to this Redis database, or those `which` is true of."""
    own, database = server.client_id(), server.client_info()["db"]
    for each in server.client_list():
        if each["db"] == str(database) and each["id"] != str(own) and which(each):
            server.client_kill_filter(_id=each["id"])
