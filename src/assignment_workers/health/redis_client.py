"""A Redis client for health readings, which gives up soon if Redis does not answer."""

from __future__ import annotations

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from assignment_workers.client.wire.redis_clients import redis_client

ANSWER_SECONDS = 1.2
"""The most seconds that a connection attempt or an answer may take."""


def connect(url: str) -> Redis:
    """Return a Redis client for health readings, without contacting the server.

    The client does not retry. It gives up after 1.2 seconds (`ANSWER_SECONDS`) without a connection
    or an answer.
    """
    return redis_client(
        url,
        protocol=2,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        driver_info=None,  # otherwise each new connection tells Redis our version, which takes time
    )
