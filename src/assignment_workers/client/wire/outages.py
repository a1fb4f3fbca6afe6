"""The time limit for a broker's answers, and the error for a broker that fails."""

from __future__ import annotations

import logging

from redis.exceptions import OutOfMemoryError, ResponseError

from assignment_workers.errors import BrokerUnavailable

log = logging.getLogger(__name__)

SOCKET_SECONDS = 5.0
"""The most seconds that a connection attempt or an answer of the broker may take."""


def unreachable(server: str, error: BaseException) -> BrokerUnavailable:
    """Return a one-line `BrokerUnavailable` for a server that fails or that refuses writes.

    `server` is the server's name for people; `error` is the error of the client library.
    """
    if isinstance(error, OutOfMemoryError):
        return BrokerUnavailable(f"{server} is full: it takes no messages until it has room again")
    if isinstance(error, ResponseError) and "MISCONF" in str(error):
        return BrokerUnavailable(f"{server} cannot save to its disk: it takes no messages")
    if isinstance(error, ResponseError) and "NOREPLICAS" in str(error):
        return BrokerUnavailable(f"{server} has too few replicas: it takes no messages")
    text = str(error).strip().splitlines()
    log.warning("%s cannot be reached: %s", server, text[0] if text else type(error).__name__)
    return BrokerUnavailable(
        f"{server} cannot be reached: {text[0] if text else type(error).__name__}"
    )
