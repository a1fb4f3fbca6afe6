"""Delivery counts: a message that has ended two processes is not handled by a third.

Only a suspect is counted: a message that was delivered before and not acknowledged. The broker
marks it (`redelivered`); on Redis the transport marks the messages that were taken by a sequencer
whose process has ended. The count is in PostgreSQL, because a full Redis accepts no new key. The
count is committed before the message is tried and deleted when the try ends. An ordinary message
costs one dictionary lookup.

The end of a process is excused if the message did not cause it: the process was told to stop, lost
its term, or lost its connection to the broker. The excuse is stored in Redis, because the database
may be what failed, by a script that a full Redis accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from threading import Thread
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.assignment.suspects import (
    Suspicion,
    acquit,
    count,
    mark_buried,
    try_part,
)
from assignment_workers.errors import DatabaseUnavailable
from assignment_workers.sequencer.redis_refusals import EXCUSE

log = structlog.get_logger()

ENDS_AT_MOST = 2
"""The number of ended processes at which a message becomes a dead letter."""
EXCUSED_SECONDS = 86_400
"""Seconds for which Redis stores that a message did not cause the end of a process. It is longer
than Celery's visibility timeout, after which a killed maintenance worker's messages are
redelivered.
"""


def ended(ends: int) -> str:
    """Return the reason that is stored with a message that ended `ends` processes.

    The sender of the message gets the same reason in its answer.
    """
    return f"ended the process that handled it, {ends} times; stored as a dead letter"


class Suspects:
    """Counts the worker processes that ended while they handled a certain message."""

    def __init__(self, engine: Engine, redis: Redis) -> None:
        self._engine = engine
        self._redis = redis
        self._in_hand: Any = None
        self._last: Any = None
        """The message that was handled before the current one."""
        self.suspicion: Suspicion | None = None
        """The count of ended processes for the current message; None if the message is no suspect.
        """

    def take(self, celery_queue: str, message: Any) -> Suspicion | None:
        """Set `message` as the current one; return its record if it was delivered before.

        The process that handled it before is taken to have ended. That end is added to the count in
        the record, unless it is excused. Returns None for a message delivered for the first time.
        Also returns None while the database accepts no rows: the message is handled without a
        count, because no user can be assigned at that time.
        """
        self._in_hand = message
        self.suspicion = None
        if not message.delivery_info.get("redelivered"):
            return None
        digest = digest_of(message)
        excused = self._is_excused(digest)
        try:
            self.suspicion = count(self._engine, digest, celery_queue=celery_queue, excused=excused)
        except SQLAlchemyError as error:
            log.error("suspect_not_counted", error=type(error).__name__)  # noqa: TRY400
            return None
        log.warning("tried_again", excused=excused, ends=self.suspicion.ends)
        return self.suspicion

    def put_down(self) -> None:
        """Record that no message is being handled."""
        self._last = self._in_hand
        self.suspicion = self._in_hand = None

    def acquit(self) -> None:
        """Delete the count of the current message, because this process survived it."""
        if self.suspicion is None:
            return
        try:
            acquit(self._engine, self.suspicion.digest)
        except SQLAlchemyError as error:
            # The row stays. Once the message is acknowledged, the row is never looked up again.
            log.error("suspect_not_acquitted", error=type(error).__name__)  # noqa: TRY400

    def try_part(self, part: int | None) -> None:
        """Store that request number `part` of the current batch message is handled alone next.

        None: all its requests were handled. Raises `DatabaseUnavailable` if that cannot be stored,
        because an end of this process would then be counted against another request.
        """
        if self.suspicion is not None:
            try:
                try_part(self._engine, self.suspicion.digest, part)
            except SQLAlchemyError as error:
                raise DatabaseUnavailable("a part of a suspect message is not noted") from error

    def parts_are_buried(self) -> None:
        """Record that, in the current batch, each request that ended a process has its dead letter.

        If the batch is delivered again, these requests get no second dead letter.
        """
        suspicion = self.suspicion
        if suspicion is not None and suspicion.buried < len(suspicion.parts):
            try:
                mark_buried(self._engine, suspicion.digest, len(suspicion.parts))
            except SQLAlchemyError as error:
                log.error("suspect_not_marked", error=type(error).__name__)  # noqa: TRY400

    def excuse(self) -> None:
        """Record that the current message is not the cause of this process's end. Thread-safe.

        If Redis cannot be reached, the end is counted against the message; after two ends the
        message becomes a dead letter.
        """
        self._excuse(self._in_hand)

    def excuse_last(self) -> None:
        """Record that the previous message is no suspect if it is delivered again.

        The connection that delivered it is lost, perhaps before the acknowledgement was sent.
        """
        self._excuse(self._last)
        self._last = None

    def _excuse(self, message: Any) -> None:
        if message is None:
            return
        try:
            self._redis.eval(EXCUSE, 1, _key(digest_of(message)), str(EXCUSED_SECONDS))
        except (RedisError, OSError) as error:
            log.warning("not_excused", error=type(error).__name__)

    def excuse_soon(self, **_: object) -> None:
        """Call `excuse` in a thread.

        For signal handlers, which may interrupt code that holds a lock that `excuse` needs.
        """
        if self._in_hand is not None:
            Thread(target=self.excuse, name="excuse", daemon=True).start()

    def _is_excused(self, digest: str) -> bool:
        try:
            found = self._redis.get(_key(digest)) is not None
            if found:
                self._redis.delete(_key(digest))
        except (RedisError, OSError) as error:
            log.warning("excuse_not_read", error=type(error).__name__)
            return False
        return found


def digest_of(message: Any) -> str:
    """Return the digest of a message's id and body, which is the same at every delivery."""
    headers, body = message.headers, message.body
    name = headers.get("id") if isinstance(headers, Mapping) else None
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body or b"")
    return sha256(ascii(name).encode() + b"\0" + data).hexdigest()


def _key(digest: str) -> str:
    return f"assignment-workers:excused:{digest}"
