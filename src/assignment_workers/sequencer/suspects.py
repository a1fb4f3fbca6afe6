"""Delivery counts: a message that has ended two processes is not handled by a third.

Only a suspect is counted: a message that was delivered before and not acknowledged. The broker
marks it (`redelivered`); on Redis the transport marks the messages that were taken by a sequencer
whose process has ended. The count is in PostgreSQL, because a full Redis accepts no new key. The
count is committed before the message is tried again. When the try ends, the count is deleted. An
ordinary message costs one dictionary lookup.

The end of a process is excused if the message did not cause it: the process was told to stop, lost
its term, or lost its connection to the broker. The excuse is stored in Redis and not in PostgreSQL,
because a failure of PostgreSQL may have ended the process. The excuse is stored by a script that a
full Redis accepts.
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
"""The number of worker processes that may end while they handle the same message.

After that the message is not handled again, but stored as a dead letter.
"""
EXCUSED_SECONDS = 86_400
"""The seconds for which Redis keeps the record that a message is not to blame for a process's end.

The record is read when the message is delivered again. So it lasts longer than Celery's visibility
timeout, after which the messages of a killed maintenance worker are delivered again.
"""


def ended(ends: int) -> str:
    """Return the reason, as a text, for refusing a message during whose handling processes ended.

    `ends`: the number of these processes. The text is stored with the message's dead letter and
    sent to the message's sender in the answer.
    """
    return f"ended the process that handled it, {ends} times; stored as a dead letter"


class Suspects:
    """Counts, for each suspect message, the worker processes that ended while they handled it.

    A suspect is a message that was delivered before and not acknowledged. It may be the reason for
    which the process that handled it ended.
    """

    def __init__(self, engine: Engine, redis: Redis) -> None:
        self._engine = engine
        self._redis = redis
        self._in_hand: Any = None
        self._last: Any = None
        """The message that was handled before the current one."""
        self.suspicion: Suspicion | None = None
        """The record of the current message, with the number of processes that ended.

        None if the message has no record, because it is delivered for the first time or the record
        could not be stored.
        """

    def take(self, celery_queue: str, message: Any) -> Suspicion | None:
        """Set `message` as the current one; if it was delivered before, count an ended process.

        A message that is delivered again has probably ended the process that handled it. Its count
        of ended processes grows by one, unless that process recorded with `excuse` that the message
        was not the cause. Returns the record with the count. By this count the caller decides
        whether the message is handled again. Normally, a message that has ended two processes
        (`ENDS_AT_MOST`) is stored as a dead letter instead.

        Returns None for a message that is delivered for the first time. Also returns None if the
        database accepts no rows, so that the count cannot be stored. The message is then handled
        without a count. Therefore, as long as the database accepts no rows, a message may end more
        than two processes. These further ends delay no assignment, because no message can assign a
        user while the database accepts no rows.
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
        """Delete the current message's count of ended processes, because this process survived it.

        Does nothing for a message that has no count.
        """
        if self.suspicion is None:
            return
        try:
            acquit(self._engine, self.suspicion.digest)
        except SQLAlchemyError as error:
            # The row stays. Once the message is acknowledged, the row is never looked up again.
            log.error("suspect_not_acquitted", error=type(error).__name__)  # noqa: TRY400

    def try_part(self, part: int | None) -> None:
        """Store, in the message's record, that request `part` of the current batch is handled next.

        `part`: the index of the request in the batch, which is handled by itself. If this process
        ends now, the end is counted against that request alone. `part` None: all requests of the
        batch were handled. Does nothing for a batch that is delivered for the first time.

        Raises `DatabaseUnavailable` if the index cannot be stored. The request must not be handled
        then. The record still has the index of the request before it, or none, so an end of this
        process would be counted against that earlier request, or against the whole message.
        """
        if self.suspicion is not None:
            try:
                try_part(self._engine, self.suspicion.digest, part)
            except SQLAlchemyError as error:
                raise DatabaseUnavailable("a part of a suspect message is not noted") from error

    def mark_parts_stored(self) -> None:
        """Record that the fatal requests of the current batch are stored as dead letters.

        A fatal request is one during whose handling a process ended. If the batch is delivered
        again, no second dead letter is stored for such a request.
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
        """Record that the message handled last has ended no process.

        Called when the broker connection was lost. The acknowledgement of that message may be lost
        too. The message is then delivered again, and without this record an ended process would be
        counted for it.
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
        """Record, in a new thread, that the current message does not cause this process's end.

        Signal handlers call this instead of `excuse`. A signal may interrupt code that holds a lock
        that `excuse` needs, and a direct call would then wait for ever.
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
