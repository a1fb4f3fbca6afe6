"""The delivery count: a message that has ended two processes is handled by no third.

Only a suspect is counted: a message that was delivered before and not acknowledged. Its broker says
so (`redelivered`), and on Redis the transport does, of what a dead term had taken. The count is in
PostgreSQL, because a Redis that is full takes no new key; it is committed before the message is
tried, and gone when the try ends. An ordinary message costs a look into a dictionary.

An end that was not the message's doing is excused: its process was told to end, lost its term, or
found its connection to the broker gone. That is noted in Redis, because the database may be what
is gone, and by a script that a full Redis does not refuse.
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
"""The end of a process by which a message becomes a dead letter."""
EXCUSED_SECONDS = 86_400
"""What a killed maintenance worker had taken comes again after Celery's visibility timeout."""


def ended(ends: int) -> str:
    """The reason of the dead letter, and what its caller is told."""
    return f"ended the process that handled it, {ends} times; stored as a dead letter"


class Suspects:
    """The message that is in hand, and what is known against it."""

    def __init__(self, engine: Engine, redis: Redis) -> None:
        self._engine = engine
        self._redis = redis
        self._in_hand: Any = None
        self._last: Any = None
        """The message that was in hand last."""
        self.suspicion: Suspicion | None = None
        """Of the message in hand; None for an ordinary one."""

    def take(self, celery_queue: str, message: Any) -> Suspicion | None:
        """Note a message as in hand; count the end of the process that had it before, if any.

        A suspect is tried uncounted while the database takes no row: nothing is handed out then.
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
        """No message is in hand."""
        self._last = self._in_hand
        self.suspicion = self._in_hand = None

    def acquit(self) -> None:
        """The try has ended, and this process has not: the message is a suspect no more."""
        if self.suspicion is None:
            return
        try:
            acquit(self._engine, self.suspicion.digest)
        except SQLAlchemyError as error:
            # Left behind: where the message is acknowledged, it is never looked for again.
            log.error("suspect_not_acquitted", error=type(error).__name__)  # noqa: TRY400

    def try_part(self, part: int | None) -> None:
        """Commit that this part of the message is tried next, alone; None: all of them were.

        Raises `DatabaseUnavailable`: the end of this process would be counted against another one.
        """
        if self.suspicion is not None:
            try:
                try_part(self._engine, self.suspicion.digest, part)
            except SQLAlchemyError as error:
                raise DatabaseUnavailable("a part of a suspect message is not noted") from error

    def parts_are_buried(self) -> None:
        """Every part that ended a process is a dead letter: none becomes a second."""
        suspicion = self.suspicion
        if suspicion is not None and suspicion.buried < len(suspicion.parts):
            try:
                mark_buried(self._engine, suspicion.digest, len(suspicion.parts))
            except SQLAlchemyError as error:
                log.error("suspect_not_marked", error=type(error).__name__)  # noqa: TRY400

    def excuse(self) -> None:
        """Note that the message in hand is not why this process ends. May be called by any thread.

        Where Redis cannot be reached the end counts, as one of the two that it takes.
        """
        self._excuse(self._in_hand)

    def excuse_last(self) -> None:
        """The same of the message before.

        The connection that it came by is gone, perhaps before the broker heard of its end.
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
        """The same, from within a handler of signals, whose thread may hold any lock."""
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
    """What a message is known by, however often it is delivered: its id and its body."""
    headers, body = message.headers, message.body
    name = headers.get("id") if isinstance(headers, Mapping) else None
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body or b"")
    return sha256(ascii(name).encode() + b"\0" + data).hexdigest()


def _key(digest: str) -> str:
    return f"assignment-workers:excused:{digest}"
