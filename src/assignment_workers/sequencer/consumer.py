"""Celery's consumer, changed to validate each message first and to drop none."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import structlog
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker.consumer import consumer

from assignment_workers.assignment.answers import Code, Refused
from assignment_workers.assignment.lanes import ASSIGNMENT
from assignment_workers.assignment.suspects import Suspicion
from assignment_workers.client.wire.message import DEAD_LETTER
from assignment_workers.errors import Malformed, NotStored
from assignment_workers.sequencer.envelope import TaskMessage, described, named
from assignment_workers.sequencer.refusals import Refusals
from assignment_workers.sequencer.suspects import ENDS_AT_MOST, Suspects, ended
from assignment_workers.sequencer.transport import (
    Channel,
    OrderedChannel,
    of_broker,
    pooled_producer,
)

log = structlog.get_logger()

STORE_AGAIN_SECONDS = 2.0

Broken = tuple[type[Exception], ...]
"""The errors by which a broker's client reports that its connection is unusable."""

_Blueprint: Any = consumer.Consumer.Blueprint


class Consumer(consumer.Consumer):
    """Celery's consumer, which keeps malformed messages and refuses changes by remote control.

    A message that Celery would log and drop, or that would end the worker, becomes a dead letter,
    and the next message is handled. A command of Celery's remote control that would change the
    worker is refused. Errors of the broker connection still reach Celery, which reconnects.
    """

    app: Any
    timer: Any
    task_consumer: Any
    _timer: Any = None
    _held: list[tuple[Any, list[Callable[[], object]]]]
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]

    class Blueprint(_Blueprint):  # type: ignore[misc]
        """Celery's start-up steps, with `remote_control.Control` in place of Celery's `Control`.

        Celery's step for delayed messages, with its 28 queues and exchanges, is left out: a delayed
        message would lose its position in the order, and this project sends none.
        """

        default_steps: ClassVar[list[str]] = [
            "assignment_workers.sequencer.remote_control:Control"
            if step.endswith(":Control")
            else step
            for step in _Blueprint.default_steps
            if not step.endswith(":DelayedDelivery")
        ]

    @property
    def suspects(self) -> Suspects:
        """The object that counts worker processes that ended while they handled a message.

        Each suspect message has a count of its own.
        """
        found: Suspects = self.app.suspects
        return found

    @property
    def refusals(self) -> Refusals:
        """The store for dead letters of the messages that this process refuses."""
        found: Refusals = self.app.refusals
        return found

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return the function that Celery calls with each message that the broker delivers."""
        handle = super().create_task_handler(*args, **kwargs)
        broken: Broken = of_broker((*self.connection_errors, *self.channel_errors))

        not_its_doing: tuple[type[BaseException], ...] = (WorkerTerminate, WorkerShutdown, *broken)

        def receive(message: Any) -> None:
            suspicion = self.suspects.take(self.app.serves, message)
            guilty = suspicion if suspicion and suspicion.of_the_whole >= ENDS_AT_MOST else None
            held = len(self._held)
            try:
                if guilty is None:
                    self._carry_out(message, handle, broken)
                else:
                    self._bury(message, guilty)
                is_held = len(self._held) > held
                if is_held:  # delivered again if this process ends, whatever ends it
                    self.suspects.excuse()
                if guilty is None or not is_held:
                    self.suspects.acquit()
            except not_its_doing:
                self.suspects.excuse()
                raise
            finally:
                self.suspects.put_down()

        # The broker delivers again what an earlier connection held, and the message handled last if
        # its acknowledgement was lost.
        self._held = []
        self.suspects.excuse_last()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.timer.call_repeatedly(STORE_AGAIN_SECONDS, self._store_again)
        return receive

    def _carry_out(self, message: Any, handle: Callable[[Any], None], broken: Broken) -> None:
        """Validate a message and pass it to `handle`, Celery's handler, or refuse the message.

        `broken`: the errors by which the broker's client reports a lost connection. Such an error
        is raised, so that Celery connects again.
        """
        judged = self._judged(message)
        if judged is None:
            return
        self.refusals.in_hand = judged
        try:
            handle(judged)
        except broken:
            raise
        except Exception as error:  # noqa: BLE001 - whatever Celery raises outside a task
            kind = type(error).__name__  # its message may repeat what an agent wrote
            log.error("message_failed", error=kind, task_id=judged.headers["id"])  # noqa: TRY400
            self._refuse(judged, _failed(judged, error))
        finally:
            self.refusals.in_hand = None
        if judged.unstored:
            self._hold(judged, judged.unstored)

    def _judged(self, message: Any) -> TaskMessage | None:
        """Validate a message and return it for Celery; None if Celery must not handle it.

        None is returned in two cases. A message that is malformed, or whose task this process does
        not carry out, is refused. A message of the assignment queue that arrived on another queue
        is moved to the assignment queue.
        """
        try:
            size, largest = len(message.body or b""), self.refusals.largest
            if size > largest:
                raise Malformed(f"a body of {size} bytes: at most {largest} are read")
            judged = TaskMessage(message)
            task = judged.headers["task"]
            if task in self.app.served:
                return judged
            if task not in self.app.assignment_tasks:
                raise Malformed(f"{task}: no task of this Celery queue", **named(judged.headers))
        except Malformed as wrong:
            self._refuse(message, wrong)
        else:
            self._give_back(message)
        return None

    def _bury(self, message: Any, suspicion: Suspicion) -> None:
        """Store a message as a dead letter, answer its caller, and acknowledge the message.

        Called only if at least two worker processes ended while they handled the message.
        `suspicion` has the number of these processes. If two processes ended, this method parses
        the message once more, and stores its task and arguments. If more processes ended, one of
        them ended during this parsing. The parsing itself is then dangerous, so this method stores
        the message unparsed.
        """
        why = ended(suspicion.ends)
        if suspicion.of_the_whole > ENDS_AT_MOST:
            self._refuse(message, Malformed(why, **named(message.headers)))
            return
        judged = self._judged(message)
        if judged is None:
            return
        try:
            self._bury_judged(judged, why)
        except NotStored:
            self._hold(judged, [partial(self._bury_judged, judged, why)])
        else:
            judged.ack()

    def _bury_judged(self, judged: TaskMessage, why: str) -> None:
        args, kwargs = judged.payload["args"], judged.payload["kwargs"]
        name, task_id = judged.headers["task"], judged.headers["id"]
        self.refusals.store(
            self.app.serves,
            json.dumps({"args": args, "kwargs": kwargs}, default=str),
            why,
            task=name,
            task_id=task_id,
            replayable=True,
            again=judged.headers.get(DEAD_LETTER),  # type: ignore[arg-type] # judged: a number
        )
        refused = Refused(code=Code.MALFORMED, reason=why)
        parts = self.app.tasks[name].parts(args, kwargs)
        self.refusals.answer(task_id, refused if parts is None else [refused] * len(parts))

    def _hold(self, message: Any, unstored: list[Callable[[], object]]) -> None:
        """Leave a message unacknowledged with the broker until its dead letters are stored.

        Each call in `unstored` stores one dead letter. Until all are stored, RabbitMQ delivers no
        further message; Redis delivers the next one at once.
        """
        self._held.append((message, unstored))
        if isinstance(message.channel, Channel):
            message.channel.set_aside(message.delivery_tag)

    def _store_again(self) -> None:
        """Retry storing the dead letters that could not be stored before.

        With Redis, the messages that the transport found malformed come first. They wait in one
        list for each Celery queue, and the lists are tried one after the other. If the dead letter
        of a message fails again, the later messages of the same list wait for the next call of this
        method.

        Then come the messages that this process holds unacknowledged in its memory. If a dead
        letter of one of them fails again, the later ones wait for the next call. A message whose
        dead letters are all stored is acknowledged.
        """
        channel = self.task_consumer.channel if self.task_consumer else None
        if isinstance(channel, Channel):
            for queue in self.app.consumed:
                channel.store_again(queue)
        while self._held:
            message, unstored = self._held[0]
            try:
                while unstored:
                    unstored[0]()
                    del unstored[0]
            except NotStored:
                return
            del self._held[0]
            if isinstance(message.channel, Channel):
                message.channel.release(message.delivery_tag)
            else:
                message.ack()

    def _give_back(self, message: Any) -> None:
        """Send a message, unchanged, to the default lane's assignment queue; then acknowledge it.

        The message is for a task of the assignment queue, but arrived on another Celery queue.
        Raises the errors of the broker's client; the message then stays on that other queue.
        """
        body = message.body  # RabbitMQ's client has decoded a body that names its encoding
        if isinstance(body, str):
            body = body.encode(message.content_encoding or "utf-8")
        with pooled_producer(self.app) as producer:
            producer.publish(
                bytes(body),
                routing_key=ASSIGNMENT,
                headers=message.headers,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                correlation_id=message.properties.get("correlation_id"),
            )
        log.warning("given_back", queue=ASSIGNMENT)
        message.ack()

    def _refuse(self, message: Any, wrong: Malformed) -> None:
        """Store the malformed message as a dead letter, then acknowledge it.

        `wrong` is the defect. If the dead letter cannot be stored now, the message stays with the
        broker.
        """
        channel = message.channel
        item = channel.item(message.delivery_tag) if isinstance(channel, OrderedChannel) else None
        body = item or described(message)
        store = partial(self.refusals.refuse, self.app.serves, body, wrong)
        try:
            store()
        except NotStored:
            self._hold(message, [store])
            return
        if not message.acknowledged:
            message.ack()

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Refuse a message that kombu cannot decode."""
        self._refuse(message, Malformed(f"not readable: {exc}", **named(message.headers)))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Refuse a message that Celery does not recognise as the message of a task."""
        self._refuse(message, Malformed("not a task's message", **named(message.headers)))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a task that Celery does not know."""
        self._refuse(message, _failed(message, exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a message that Celery's own check rejects."""
        self._refuse(message, _failed(message, exc))


def _failed(message: Any, error: Exception) -> Malformed:
    reason = " ".join(str(error).split())
    return Malformed(f"{type(error).__name__}: {reason}", **named(message.headers))
