"""Readings of the servers, each in a thread of its own and bounded by this process's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from assignment_workers.assignment.reports.status import SequencerStatus
from assignment_workers.errors import AssignmentWorkersError
from assignment_workers.health.signs import SeenSign

T = TypeVar("T")

READING_SECONDS = 1.5
"""The most seconds that a reading is waited for."""
NO_ANSWER = "does not answer"
NOT_NAMED = "is not named here: REDIS_URL is not set"


class NotRead(AssignmentWorkersError):
    """A server that cannot be read; the message is a predicate, such as `does not answer`."""


@dataclass(frozen=True)
class InputReading(Generic[T]):
    """The result of a reading: a value, or the trouble in its place."""

    value: T | None = None
    trouble: str | None = None


class InputReader(Generic[T]):
    """Reads one server, again and again, never twice at the same time.

    A reading that hangs is left to end by itself. Until then the server counts as not answering.
    """

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._name = name
        self._read = read
        self._attempt: _Attempt[T] | None = None

    def begin(self) -> None:
        """Begin a reading, unless the last one still runs."""
        if self._attempt is None or self._attempt.done.is_set():
            self._attempt = attempt = _Attempt[T]()
            threading.Thread(
                target=self._run, args=(attempt,), name=f"reads {self._name}", daemon=True
            ).start()

    def result(self, until: float) -> InputReading[T]:
        """Return the result of the begun reading, waiting until this instant of `time.monotonic`.

        A reading that has not ended by then has the trouble `NO_ANSWER`.
        """
        attempt = self._attempt
        if attempt is None or not attempt.done.wait(max(0.0, until - time.monotonic())):
            return InputReading(trouble=NO_ANSWER)
        return attempt.found

    def _run(self, attempt: _Attempt[T]) -> None:
        try:
            attempt.found = InputReading(value=self._read())
        except NotRead as error:
            attempt.found = InputReading(trouble=str(error))
        finally:
            attempt.done.set()


@dataclass
class _Attempt(Generic[T]):
    found: InputReading[T] = field(default_factory=lambda: InputReading(trouble="cannot be read"))
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class CertificateFacts:
    """A TLS certificate: its title for people, and its time.

    `trouble`: the reason why it cannot be read, as a predicate; then the times are None.
    """

    title: str
    begins_at: datetime | None = None
    expires_at: datetime | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class QueueFacts:
    """A dialer queue: its pause, and its published generation, if there is one."""

    queue: str
    paused_at: datetime | None
    published_at: datetime | None


@dataclass(frozen=True)
class JobFacts:
    """The last runs of a job.

    `begun_at` is of the last run, skipped ones included. `ran_at`, `status` and `error` are of the
    last run that was not skipped.
    """

    job: str
    queue: str | None
    begun_at: datetime
    ran_at: datetime | None
    status: str | None
    error: str | None
    succeeded_at: datetime | None


@dataclass(frozen=True)
class DatabaseFacts:
    """The facts that PostgreSQL tells, at `now` by its clock."""

    now: datetime
    read_only: bool
    lanes: list[SequencerStatus]
    queues: list[QueueFacts]
    jobs: list[JobFacts]
    token_expires_at: datetime | None
    """The expiry of the token that expires next; None: no token does."""
    token_expires_soon_at: datetime | None
    """The expiry of the token that should be replaced first; None: none expires soon.

    A used token that expired within a day counts, because its program is refused now.
    """
    audit_lag: timedelta | None
    """The age of the oldest event in no hash chain of the audit; None: our role cannot read it."""
    crm_trouble: str | None
    """The reason why the schema `crm` of this database cannot be read; None: it can be read."""
    mirror_age: timedelta | None = None
    """The age of the mirror of an external CRM; None: it was never read."""


@dataclass(frozen=True)
class QueuedMessages:
    """The messages of a Celery queue. `head_id` and `head_sent_at` are of the next message."""

    name: str
    depth: int | None
    head_task: str | None = None
    head_id: str | None = None
    head_sent_at: datetime | None = None


@dataclass(frozen=True)
class BrokerFacts:
    """The Celery queues of the broker. `refuses`: the reason why it takes no messages now."""

    queues: list[QueuedMessages]
    refuses: str | None = None


@dataclass(frozen=True)
class Planned:
    """A scheduled task: the time at which beat last sent it, and the time when it is due next."""

    task: str
    asked_at: datetime | None
    due_at: datetime


@dataclass(frozen=True)
class ResultsFacts:
    """The facts that the Redis of results, signs of life and the schedule tells, at `now`.

    `now` is by the clock of Redis. `refuses`: the reason why it stores nothing now.
    """

    now: datetime
    signs: list[SeenSign]
    schedule: list[Planned]
    refuses: str | None = None


@dataclass(frozen=True)
class Readings:
    """One reading of each input, made at the same time. `crm` is None for a CRM of our own."""

    at: datetime
    database: InputReading[DatabaseFacts]
    broker: InputReading[BrokerFacts]
    results: InputReading[ResultsFacts]
    certificates: InputReading[list[CertificateFacts]] = field(default_factory=InputReading)
    crm: InputReading[str | None] | None = None
    """Of an external CRM: its value is the reason why it cannot be used; None: it answers."""

    @property
    def is_incomplete(self) -> bool:
        """True if a server has not answered in time."""
        return any(
            each is not None and each.trouble == NO_ANSWER
            for each in (self.database, self.broker, self.results, self.crm)
        )
