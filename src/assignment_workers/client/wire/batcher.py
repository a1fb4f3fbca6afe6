"""Batches of calls: the choice of the calls that share a message, and of the time to send it.

A call is a request or a command of one caller, who waits for the answer. Calls of one kind, with
the same Celery task and queue, may share a message. A call is sent at once, unless `UNDER_WAY`
messages of its kind are unanswered. Then the call waits. When one of these messages is answered,
all waiting calls of the kind are sent together, in order of arrival. If a task accepts only one
call per message, its calls never wait.

If a message to an assignment queue is not answered in time, the message counts as lost. Its calls
are then sent again in a new message, if their callers still wait. A message to another Celery queue
is not sent again. This module opens no connection and reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from assignment_workers.client.commands import OFF_THE_LINE, CommandCall
from assignment_workers.traces import CallerSpan

TOGETHER = 128
"""The greatest number of calls that share one message."""
TEXT_TOGETHER = 40_000
"""The greatest number of characters of text in a message of several calls.

The limit keeps every message below a million bytes, because a worker may refuse a longer message. A
character may take 12 bytes in JSON, and base64 adds a third to that. Most of the text is agents'
notes.
"""
UNDER_WAY = 2
"""The greatest number of unanswered messages with the same task and Celery queue. With two,
the next message is already in the queue when the workers have carried out the first.
"""
ASK_AGAIN_SECONDS = 3.0
"""Seconds after which an unanswered message to an assignment queue counts as lost.

The seconds begin when the message is sent. The calls of a lost message are sent again in a new
message. The second message with the same calls counts as lost after twice this time, the third
after three times this time, and so on without a maximum. A message whose callers have all stopped
waiting is not sent again.
"""
REMEMBERED_SECONDS = 60.0
"""Seconds for which an unanswered message is remembered after its last caller stopped waiting. A
late answer can then still be matched to its call.
"""


class BatchKey(NamedTuple):
    """The Celery task and queue of a call. Calls with the same key may share a message.

    `many` is the name of the task that accepts a list of calls. None: there is no such task, and
    each call is sent in a message of its own.
    """

    many: str | None
    celery_queue: str


class Settled(Protocol):
    """A future that gets the answer to a call: one of asyncio or one of `concurrent.futures`."""

    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def set_result(self, result: object, /) -> None: ...


@dataclass(eq=False)
class Call:
    """A request or a command of one caller, who waits for the answer.

    `ends` is the time of the event loop's clock at which the caller stops waiting.
    """

    command: CommandCall
    ends: float
    future: Settled
    traced: CallerSpan | None = None
    first_sent_as: str | None = None
    """The id of the first message that contained this call; None before it is sent."""

    @property
    def text(self) -> int:
        """The number of characters of text in the call's arguments."""
        return sum(len(each) for each in self.command.arguments.values() if isinstance(each, str))

    def waits(self, now: float) -> bool:
        """Return True if the caller still waits for the answer."""
        return self.ends > now and not self.future.done()


@dataclass(eq=False)
class Batch:
    """A message and the calls that it contains."""

    id: str
    calls: tuple[Call, ...]
    sent_at: float
    tries: int = 1
    superseded: bool = False
    """True if this message counted as lost and its calls were sent again in another message. A late
    answer to this message is still used, but the message no longer counts as unanswered."""

    @property
    def ends(self) -> float:
        """The time of the event loop's clock at which the last caller stops waiting."""
        return max(call.ends for call in self.calls)

    @property
    def kind(self) -> BatchKey:
        """The Celery task and queue, which are the same for all calls of this message."""
        command = self.calls[0].command
        return BatchKey(command.many, command.celery_queue)

    @property
    def task(self) -> str:
        """The name of the Celery task to which the message is sent."""
        command = self.calls[0].command
        return command.many or command.task

    def kwargs(self, at: Callable[[float], datetime]) -> dict[str, Any]:
        """Return the keyword arguments of the message.

        The arguments of a call may include its deadline, a time of the database's clock. The
        deadline is computed from `Call.ends`, a time of the event loop's clock. `at` converts a
        time of the event loop's clock to a time of the database's clock.
        """
        arguments = [call.command.said_by(at(call.ends)) for call in self.calls]
        return {"requests": arguments} if self.calls[0].command.many else arguments[0]

    @property
    def repeats(self) -> str | None:
        """The id by which workers recognise a repeated command; None if the task accepts a list.

        If the task of this batch accepts only one call, the value is the id of the first message
        that contained the call. If the call was sent for the first time in this batch, that is the
        batch's own id. If the task accepts a list of calls (`BatchKey.many`), the value is None,
        even if the batch contains only one call.
        """
        (first, *_) = self.calls
        return None if first.command.many else first.first_sent_as

    @property
    def about(self) -> list[str]:
        """The request ids of the calls, for people who inspect the queue in Redis."""
        arguments = (call.command.arguments for call in self.calls)
        return [each["request_id"] for each in arguments if "request_id" in each]

    @property
    def senders(self) -> list[str | None]:
        """The name of the API token that sent each call, or None, in the order of the calls.

        Such a name is `token 0a12`. A call has None if the agent's own token sent the call. A call
        that was sent without a token has None as well, and so has a call that names an operator in
        its argument `by`.
        """
        return [call.command.sender for call in self.calls]

    def answers(self, value: object) -> list[object]:
        """Return the answer to each call of the message. `value` is the result of the task.

        If `value` is not a list with one answer for each call, each call gets `value` itself.
        """
        if not self.calls[0].command.many:
            return [value]
        if isinstance(value, list) and len(value) == len(self.calls):
            return value
        return [value] * len(self.calls)


@dataclass
class Batcher:
    """The unanswered calls of one client, and the choice of the messages in which they are sent.

    A call is a request or a command of one caller. `add` takes a call, `take` yields the messages
    to send, and `answered` matches a result to its calls. No method opens a connection or reads a
    clock.
    """

    new_id: Callable[[], str]
    together: int = TOGETHER
    under_way: int = UNDER_WAY
    ask_again: float = ASK_AGAIN_SECONDS
    _waiting: dict[BatchKey, deque[Call]] = field(default_factory=dict)
    _batches: dict[str, Batch] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """Add a call to the calls that wait until `take` puts them into a message."""
        command = call.command
        kind = BatchKey(command.many, command.celery_queue if command.many else "")
        self._waiting.setdefault(kind, deque()).append(call)

    def take(self, now: float) -> Iterator[Batch]:
        """Yield the messages to send now: first repeats of lost messages, then waiting calls.

        A lost message is a message to an assignment queue that was not answered in time. Its repeat
        contains the calls whose callers still wait. Waiting calls are held back while the number of
        unanswered messages with the same Celery task and queue is at its maximum, the field
        `under_way`. Lost messages are not counted, nor are messages whose callers have all stopped
        waiting. If a task accepts only one call per message, its calls are never held back. `now`
        is a time of the event loop's clock.

        A message counts as sent as soon as it is yielded. While it is being sent, and before the
        next one is yielded, the methods `add` and `answered` may be called.
        """
        self._forget(now)
        for batch in [each for each in self._batches.values() if self._is_lost(each, now)]:
            batch.superseded = True
            if calls := tuple(call for call in batch.calls if call.waits(now)):
                yield self._send(calls, now, tries=batch.tries + 1)
        for kind, line in list(self._waiting.items()):
            while line and (kind.many is None or self._open(kind, now)):
                calls = self._first(line, self.together if kind.many else 1, now)
                if calls:
                    yield self._send(calls, now)

    def answered(self, batch_id: str, value: object) -> list[tuple[Call, object]]:
        """Return the calls of message `batch_id`, each with its answer.

        `value` is the task's result. The list is empty if the message is not known.
        """
        batch = self._batches.pop(batch_id, None)
        if batch is None:
            return []
        return list(zip(batch.calls, batch.answers(value), strict=True))

    def unanswered(self) -> list[str]:
        """Return the ids of the messages that were sent and not answered yet."""
        return list(self._batches)

    def calls(self) -> list[Call]:
        """Return every unanswered call, sent or not."""
        under_way = [call for batch in self._batches.values() for call in batch.calls]
        return under_way + [call for line in self._waiting.values() for call in line]

    def has_waiting(self) -> bool:
        """Return True if there is a call that has not been put into a message yet."""
        return any(self._waiting.values())

    def is_idle(self) -> bool:
        """Return True if no message is unanswered and no call waits to be sent."""
        return not self._batches and not self.has_waiting()

    def _send(self, calls: tuple[Call, ...], now: float, *, tries: int = 1) -> Batch:
        batch = Batch(self.new_id(), calls, now, tries)
        self._batches[batch.id] = batch
        for call in calls:
            call.first_sent_as = call.first_sent_as or batch.id
        return batch

    @staticmethod
    def _first(line: deque[Call], count: int, now: float) -> tuple[Call, ...]:
        calls: list[Call] = []
        text = 0
        while line and len(calls) < count:
            text += line[0].text
            if calls and text > TEXT_TOGETHER:
                break
            call = line.popleft()
            if call.waits(now):
                calls.append(call)
        return tuple(calls)

    def _open(self, kind: BatchKey, now: float) -> bool:
        under_way = sum(
            not batch.superseded and batch.kind == kind and self._is_wanted(batch, now)
            for batch in self._batches.values()
        )
        return under_way < self.under_way

    def _is_lost(self, batch: Batch, now: float) -> bool:
        if batch.superseded or batch.calls[0].command.celery_queue in OFF_THE_LINE:
            return False
        late = now - batch.sent_at >= self.ask_again * batch.tries
        return late and self._is_wanted(batch, now)

    @staticmethod
    def _is_wanted(batch: Batch, now: float) -> bool:
        return any(call.waits(now) for call in batch.calls)

    def _forget(self, now: float) -> None:
        old = now - REMEMBERED_SECONDS
        for batch in list(self._batches.values()):
            if batch.ends < old:
                del self._batches[batch.id]
