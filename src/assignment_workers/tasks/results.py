"""Results in Redis: made JSON once, written and announced in one trip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celery.backends.redis import RedisBackend
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import register_type
from pydantic import BaseModel
from pydantic_core import to_json
from redis.exceptions import ResponseError

from assignment_workers.sequencer.redis_refusals import REFUSING, refused
from assignment_workers.sequencer.transport import packed

AGAIN_SECONDS = 5.0
"""How long storing a result is tried again while Redis is away; the last try may begin then."""


class ResultBackend(RedisBackend):
    """Celery's own but for the look at what is there before each result, and for the transaction.

    That look keeps a result from being replaced by a later failure of the same message. Here a
    message that is handled again gets the answer it had (guarantee 5), and the look cost a trip to
    Redis for each. A result is there before it is announced without a transaction too: both go
    over one connection.
    """

    _get_result_meta: Callable[..., dict[str, Any]]
    _set_with_state: Callable[..., None]
    expires: int | None

    def ensure(self, fun: Callable[..., Any], args: Sequence[Any], **policy: Any) -> Any:
        """Celery's own, which bounds the tries and not the time, with an end on the clock."""
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
        """Celery's form; the answers in it are models, and become JSON here, once."""
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
                # It is announced all the same: a caller who listens has it.
                if (why := refused(error)) is None:
                    raise
                REFUSING.note(why)
            connection.read_response()
        except BaseException:
            connection.disconnect()  # or the next result would take this one's reply for its own
            raise
        finally:
            pool.release(connection)


# Celery hands an answer on to the tasks that are linked to it too, in kombu's JSON.
register_type(BaseModel, None, lambda answer: answer.model_dump(mode="json"))

OVERRIDES = dict.fromkeys(("redis", "rediss"), f"{__name__}:{ResultBackend.__name__}")
"""What Celery makes of the scheme of a result backend's address."""
