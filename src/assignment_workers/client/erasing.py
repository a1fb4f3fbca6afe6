"""Erasure of the Celery task results in Redis that name a certain person."""

from __future__ import annotations

from redis import Redis

from assignment_workers.addresses import REDIS
from assignment_workers.assignment.person import Person
from assignment_workers.client.wire.message import RESULT_PREFIX
from assignment_workers.client.wire.redis_clients import redis_client

_AT_ONCE = 500


def forget_results_at(url: str | None, person: Person) -> int:
    """Delete the task results that name `person` from the Redis at `url`; return their number.

    Returns 0 if `url` is None or not the address of a Redis or Valkey. There is then nothing to
    delete, because this system stores the results of tasks on no other kind of server.
    """
    if url is None or not url.startswith(REDIS):
        return 0
    with redis_client(url, socket_timeout=10, socket_connect_timeout=5) as server:
        return forget_results(server, person)


def forget_results(server: Redis, person: Person) -> int:
    """Delete the task results that name `person`; return their number. Reads every task result."""
    count = 0
    for key in server.scan_iter(match=f"{RESULT_PREFIX}*", count=_AT_ONCE):
        found = server.get(key)
        if isinstance(found, bytes) and person.is_named(found.decode("utf-8", "replace")):
            count += int(server.delete(key))
    return count
