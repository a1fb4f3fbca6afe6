"""Which calls go together in which message, and when: no connection, no clock.

While as many messages are under way as may be, calls gather; when one is answered, or at once if
none is, they go together, in order of arrival. A message that is not answered in time is taken for
lost, and those of its calls that still wait go again in a new one.
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
"""Calls in one message."""
TEXT_TOGETHER = 40_000
"""Characters of text in one message of several calls: notes, for the most part.

A worker reads no message of more than a million bytes, and a character may take twelve in JSON, and
a third more in base64.
"""
UNDER_WAY = 2
"""Messages of one kind under way: one being carried out, one behind it."""
ASK_AGAIN_SECONDS = 3.0
"""When a message is taken for lost."""
REMEMBERED_SECONDS = 60.0
"""How long a message is known after its calls have gone, for an answer that comes late."""


class BatchKey(NamedTuple):
    """Calls of one kind share messages: those of one task that takes many, and of one lane."""

    many: str | None
    celery_queue: str


class Settled(Protocol):
    """Where a call's answer goes: an asyncio future or a concurrent one."""

    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def set_result(self, result: object, /) -> None: ...


@dataclass(eq=False)
class Call:
    """One command of one caller. `ends` is when the caller stops waiting."""

    command: CommandCall
    ends: float
    future: Settled
    traced: CallerSpan | None = None
    first_sent_as: str | None = None
    """The message that carried it first."""

    @property
    def text(self) -> int:
        """How many characters of text it says."""
        return sum(len(each) for each in self.command.arguments.values() if isinstance(each, str))

    def waits(self, now: float) -> bool:
        """Whether the caller still wants the answer."""
        return self.ends > now and not self.future.done()


@dataclass(eq=False)
class Batch:
    """Calls that go in one message."""

    id: str
    calls: tuple[Call, ...]
    sent_at: float
    tries: int = 1
    superseded: bool = False
    """Sent again since: its answer counts still, its place in the window does not."""

    @property
    def ends(self) -> float:
        """When the last caller stops waiting."""
        return max(call.ends for call in self.calls)

    @property
    def kind(self) -> BatchKey:
        """What it is one of."""
        command = self.calls[0].command
        return BatchKey(command.many, command.celery_queue)

    @property
    def task(self) -> str:
        """The task that carries it out."""
        command = self.calls[0].command
        return command.many or command.task

    def kwargs(self, at: Callable[[float], datetime]) -> dict[str, Any]:
        """What its message says; `at`: the instant, by the database, at which a call ends."""
        arguments = [call.command.said_by(at(call.ends)) for call in self.calls]
        return {"requests": arguments} if self.calls[0].command.many else arguments[0]

    @property
    def repeats(self) -> str | None:
        """The id of the message that this one repeats; None: its calls are once each."""
        (first, *_) = self.calls
        return None if first.command.many else first.first_sent_as

    @property
    def about(self) -> list[str]:
        """The request ids in it."""
        arguments = (call.command.arguments for call in self.calls)
        return [each["request_id"] for each in arguments if "request_id" in each]

    def answers(self, value: object) -> list[object]:
        """The answer for each call, in what the task returned."""
        if not self.calls[0].command.many:
            return [value]
        if isinstance(value, list) and len(value) == len(self.calls):
            return value
        return [value] * len(self.calls)


@dataclass
class Batcher:
    """The calls of one client that are not answered yet."""

    new_id: Callable[[], str]
    together: int = TOGETHER
    under_way: int = UNDER_WAY
    ask_again: float = ASK_AGAIN_SECONDS
    _waiting: dict[BatchKey, deque[Call]] = field(default_factory=dict)
    _batches: dict[str, Batch] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """The last in its line."""
        command = call.command
        kind = BatchKey(command.many, command.celery_queue if command.many else "")
        self._waiting.setdefault(kind, deque()).append(call)

    def take(self, now: float) -> Iterator[Batch]:
        """The messages to send now, lost ones first; each counts as sent once it is taken.

        Calls may be added and answered between one message and the next.
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
        """Each call of the message with its answer; none for a message not known."""
        batch = self._batches.pop(batch_id, None)
        if batch is None:
            return []
        return list(zip(batch.calls, batch.answers(value), strict=True))

    def unanswered(self) -> list[str]:
        """The messages under way."""
        return list(self._batches)

    def calls(self) -> list[Call]:
        """Every call, under way or not."""
        under_way = [call for batch in self._batches.values() for call in batch.calls]
        return under_way + [call for line in self._waiting.values() for call in line]

    def has_waiting(self) -> bool:
        """Whether calls are gathered that have not been sent yet."""
        return any(self._waiting.values())

    def is_idle(self) -> bool:
        """Whether nothing is under way or gathered."""
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
