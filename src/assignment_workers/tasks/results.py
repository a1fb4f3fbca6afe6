"""A Redis result backend that encodes a result once, and stores and announces it in one trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celery.backends.redis import RedisBackend, SentinelBackend
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import register_type
from pydantic import BaseModel
from pydantic_core import to_json
from redis.connection import SSLConnection
from redis.exceptions import ResponseError

from assignment_workers.client.wire.redis_clients import (
    FailoverConnection,
    FailoverSSLConnection,
    SentinelConnection,
    SentinelSSLConnection,
)
from assignment_workers.sequencer.redis_refusals import WRITE_REFUSALS, refused
from assignment_workers.sequencer.transport import packed

AGAIN_SECONDS = 5.0
"""Seconds for which storing a result is retried while Redis is down. The last attempt may start at
the end of that time.
"""


class ResultBackend(RedisBackend):
    """Celery's Redis result backend, without the read before each write and without a transaction.

    Celery's own backend first reads the stored result, so that a later failure of the same message
    does not replace it. Here a message that is handled again gets its first answer (guarantee 5 in
    docs/how-it-works.md). So this backend does not read the stored result, which saves a round
    trip.

    This backend sends two commands in this order on one connection: SET, which stores the result,
    and PUBLISH, which announces the result. So Redis stores the result before announcing it. Redis
    may refuse SET, for example because its memory is full. Redis carries out PUBLISH all the same,
    so a caller that is listening gets the result.
    """

    connection_class_ssl: type[SSLConnection] = FailoverSSLConnection
    _get_result_meta: Callable[..., dict[str, Any]]
    _set_with_state: Callable[..., None]
    expires: int | None

    def _get_pool(self, **parameters: Any) -> Any:
        pool: Callable[..., Any] = super()._get_pool  # type: ignore[misc] # its types lack it
        return pool(**{"connection_class": FailoverConnection, **parameters})

    def ensure(self, fun: Callable[..., Any], args: Sequence[Any], **policy: Any) -> Any:
        """Call `fun`, an operation on Redis, with `args`; retry it for at most five seconds.

        `policy`: Celery's options for the retries.
        """
        tried: Callable[..., Any] = super().ensure
        return tried(fun, args, **{"timeout": AGAIN_SECONDS, **policy})

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)
        return result

    def _encode(self, data: dict[str, Any]) -> tuple[str, str, str]:
        """Encode a result as JSON, in Celery's form. Answers may be pydantic models."""
        return "application/json", "utf-8", to_json(data).decode()

    def _set(self, key: bytes, value: str, expires: int | None = None) -> None:
        seconds = expires or self.expires
        lasting = ("EX", str(seconds)) if seconds else ()
        sent = packed("SET", key, value, *lasting) + packed("PUBLISH", key, value)
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command([sent])
            try:
                connection.read_response()
            except ResponseError as error:
                # The result is announced all the same, so a listening caller gets it.
                if (why := refused(error)) is None:
                    raise
                WRITE_REFUSALS.note(why)
            connection.read_response()
        except BaseException:
            connection.disconnect()  # or the next result would read this one's reply
            raise
        finally:
            pool.release(connection)


class SentinelResultBackend(ResultBackend, SentinelBackend):
    """A `ResultBackend` for a Redis whose primary is named by Redis Sentinel."""

    connection_class_ssl = SentinelSSLConnection

    def _get_pool(self, **parameters: Any) -> Any:
        pool: Callable[..., Any] = SentinelBackend._get_pool  # type: ignore[attr-defined]  # noqa: SLF001
        return pool(self, **{"connection_class": SentinelConnection, **parameters})


# Celery also passes an answer to linked tasks, as kombu's JSON.
register_type(BaseModel, None, lambda answer: answer.model_dump(mode="json"))

OVERRIDES = {
    **dict.fromkeys(("redis", "rediss"), f"{__name__}:{ResultBackend.__name__}"),
    "sentinel": f"{__name__}:{SentinelResultBackend.__name__}",
}
"""The result backend class for Celery to use, by the scheme of the Redis address."""
