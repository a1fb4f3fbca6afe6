"""Refuse messages: store them as dead letters and answer their callers.

A message is acknowledged once its dead letter has committed. While the dead letter cannot be
stored, the message stays with the broker, later messages are served where possible, and storing is
retried.
"""

from __future__ import annotations

import hashlib
from typing import Any

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.assignment.answers import Code, Refused
from assignment_workers.assignment.dead_letters import store_dead_letter
from assignment_workers.errors import Malformed, NotStored
from assignment_workers.sequencer.envelope import TaskMessage
from assignment_workers.telemetry import DEAD_LETTERS

log = structlog.get_logger()

HEAD = 1_024
"""The number of bytes that a dead letter stores of a message that is too large to be read."""


class Refusals:
    """Stores dead letters of the messages that a worker process cannot carry out."""

    def __init__(self, engine: Engine, backend: Any, *, largest: int) -> None:
        """Store dead letters in the database of `engine`, and answers in Celery's result `backend`.

        Of a message of more than `largest` bytes, only the first `HEAD` bytes and a digest are
        stored.
        """
        self.engine = engine
        self.largest = largest
        self.in_hand: TaskMessage | None = None
        """The message that this process is handling, None between two messages."""
        self._backend = backend

    def refuse(self, queue: str, body: bytes | str, wrong: Malformed) -> None:
        """Store a malformed message of `queue`; answer `refused` if the message has an id.

        `wrong` is the defect. Raises `NotStored` if the database does not accept the dead letter
        now; the message must then stay with the broker.
        """
        reason = str(wrong)
        self.store(
            queue,
            body,
            f"malformed: {reason}",
            task=wrong.task,
            task_id=wrong.task_id,
            replayable=False,
        )
        if wrong.task_id is not None:
            self.answer(wrong.task_id, Refused(code=Code.MALFORMED, reason=reason))

    def store(
        self,
        queue: str | None,
        body: bytes | str,
        error: str,
        *,
        task: str | None,
        task_id: str | None,
        replayable: bool,
        again: int | None = None,
    ) -> int:
        """Store a dead letter and return its number.

        `error`: the reason. `task`, `task_id`: the task's name and id, if known. `replayable`: True
        if an operator may send the message again. `again`: the number of the dead letter from which
        this message was sent again, if any. Raises `NotStored` if the database does not accept the
        dead letter now.
        """
        data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        if len(data) > self.largest:
            digest = hashlib.sha256(data).hexdigest()
            error = f"{error}; sha256 {digest}; the first {HEAD} bytes are stored"
            data = data[:HEAD]
        try:
            number = store_dead_letter(
                self.engine,
                celery_queue=queue,
                task=task,
                task_id=task_id,
                body=data,
                error=error,
                replayable=replayable,
                again=again,
            )
        except SQLAlchemyError as failure:
            log.error("dead_letter_not_stored", error=type(failure).__name__)  # noqa: TRY400
            raise NotStored("the dead letter cannot be written now") from failure
        DEAD_LETTERS.inc()
        # The full reason is only in the dead letter, because it may repeat an agent's text on a
        # user.
        log.error("dead_letter", number=number, why=error.partition(":")[0])
        return number

    def answer(self, task_id: str, answer: object) -> None:
        """Store an answer for the caller of task `task_id`.

        A failure is only logged; the caller then waits until its own deadline.
        """
        try:
            self._backend.store_result(task_id, answer, "SUCCESS")
        except (RedisError, OperationalError, OSError) as error:
            log.warning("refusal_not_told", error=type(error).__name__)
