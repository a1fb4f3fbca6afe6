"""Celery's consumer, which is handed no message that has not been judged, and drops none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import structlog
from celery.worker.consumer import consumer

from assignment_workers.errors import Malformed
from assignment_workers.sequencer.envelope import TaskMessage, described, named
from assignment_workers.sequencer.refusals import Refusals
from assignment_workers.sequencer.transport import OrderedChannel

log = structlog.get_logger()

_Blueprint: Any = consumer.Consumer.Blueprint


class Consumer(consumer.Consumer):
    """Celery's own, but for what arrives malformed, and for what this project never uses.

    Whatever Celery itself would log and drop, or would end the worker for, is a dead letter here,
    and the next message is taken. Of the broker's own errors it is told as ever: it connects again.
    """

    app: Any
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]

    class Blueprint(_Blueprint):  # type: ignore[misc]
        """The steps of its start, without the 28 queues and exchanges for delayed messages.

        A delayed message would lose its place in the order; nothing here sends one.
        """

        default_steps: ClassVar[list[str]] = [
            step for step in _Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    @property
    def refusals(self) -> Refusals:
        """Where the process stores what it refuses."""
        found: Refusals = self.app.refusals
        return found

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """What each message is handed to, in its form as the broker gave it."""
        handle = super().create_task_handler(*args, **kwargs)
        broken = (*self.connection_errors, *self.channel_errors)

        def receive(message: Any) -> None:
            try:
                size = len(message.body or b"")
                if size > self.refusals.largest:
                    raise Malformed(
                        f"a body of {size} bytes: at most {self.refusals.largest} are read"
                    )
                judged = TaskMessage(message)
                self._check_task(judged)
            except Malformed as wrong:
                self._refuse(message, wrong)
                return
            try:
                handle(judged)
            except broken:
                raise
            except Exception as error:
                log.exception("message_failed", task_id=judged.headers["id"])
                self._refuse(judged, _failed(judged, error))

        return receive

    def _check_task(self, message: TaskMessage) -> None:
        """Raises `Malformed` for a task that this process does not carry out."""
        task = message.headers["task"]
        if task not in self.app.served:
            raise Malformed(f"{task}: no task of this Celery queue", **named(message.headers))

    def _refuse(self, message: Any, wrong: Malformed) -> None:
        """Store the message as a dead letter, then acknowledge it."""
        channel = message.channel
        item = channel.item(message.delivery_tag) if isinstance(channel, OrderedChannel) else None
        self.refusals.refuse(self.app.serves, item or described(message), wrong)
        if not message.acknowledged:
            message.ack()

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A message that kombu could not read."""
        self._refuse(message, Malformed(f"not readable: {exc}", **named(message.headers)))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message that Celery takes for none of its own."""
        self._refuse(message, Malformed("not a task's message", **named(message.headers)))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that Celery does not know."""
        self._refuse(message, _failed(message, exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A message that Celery's own check refuses."""
        self._refuse(message, _failed(message, exc))


def _failed(message: Any, error: Exception) -> Malformed:
    reason = " ".join(str(error).split())
    return Malformed(f"{type(error).__name__}: {reason}", **named(message.headers))
