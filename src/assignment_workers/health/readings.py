"""The facts from which the system's health is judged, and a class that reads one server.

The facts are read from PostgreSQL, from the broker (Redis or RabbitMQ), from the Redis that has
task results, from the CRM if it is external, and from TLS certificates, which are in files or are
presented by servers. An `InputReader` reads one of these sources in a thread. If a server hangs,
the caller of `InputReader.result` waits only until the time limit that the caller has set.
`Readings` has one result for each source. This module opens no connection. Each `InputReader` gets
a function that reads its source; modules such as `health.database` and `health.servers` make these
functions.
"""

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
"""The greatest number of seconds to wait until all servers have been read."""
NO_ANSWER = "does not answer"
NOT_NAMED = "is not named here: REDIS_URL is not set"


class NotRead(AssignmentWorkersError):
    """A server could not be read. The message is a predicate, such as `does not answer`."""


@dataclass(frozen=True)
class InputReading(Generic[T]):
    """The result of a reading: its value, or the trouble, such as `does not answer`."""

    value: T | None = None
    trouble: str | None = None


class InputReader(Generic[T]):
    """Reads one server in a thread, any number of times, but never twice at the same time.

    A reading that hangs is not cancelled. Until it ends, no other reading is started, and the
    server counts as not answering.
    """

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._name = name
        self._read = read
        self._attempt: _Attempt[T] | None = None

    def begin(self) -> None:
        """Start a reading, unless the last one is still running."""
        if self._attempt is None or self._attempt.done.is_set():
            self._attempt = attempt = _Attempt[T]()
            threading.Thread(
                target=self._run, args=(attempt,), name=f"reads {self._name}", daemon=True
            ).start()

    def result(self, until: float) -> InputReading[T]:
        """Return the result of the started reading; wait until `until`, a time of `time.monotonic`.

        If the reading has not ended by then, the trouble in the result is `does not answer`.
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
    """A TLS certificate: its name in messages (`title`), and its period of validity.

    `trouble`: the reason for which the certificate cannot be read, as a predicate such as `is in a
    file without a certificate`. Then both times are None.
    """

    title: str
    begins_at: datetime | None = None
    expires_at: datetime | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class QueueFacts:
    """A dialer queue, the time of its pause, and the time at which its generation was published.

    A generation is one complete build of a dialer queue. Users are assigned from the published
    one. `paused_at` is None if the dialer queue is not paused. `published_at` is None if the dialer
    queue has no published generation.
    """

    queue: str
    paused_at: datetime | None
    published_at: datetime | None


@dataclass(frozen=True)
class JobFacts:
    """The last runs of a job, from the records that each run stores in the database.

    A run is skipped if another run of the job is in progress. It is also skipped if the job has
    already succeeded for the run's due time. `begun_at`: the start of the last run, skipped or not.
    `ran_at`, `status` and `error`: the start, status and error of the last run that was not
    skipped. `succeeded_at`: the start of the last run that succeeded.
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
    """The facts read from PostgreSQL at `now`, a time of the database's clock."""

    now: datetime
    read_only: bool
    lanes: list[SequencerStatus]
    queues: list[QueueFacts]
    jobs: list[JobFacts]
    token_expires_at: datetime | None
    """The expiry of the API token that expires next; None if there is none or it cannot be read."""
    token_expires_soon_at: datetime | None
    """The expiry of the API token that should be replaced first.

    A token counts if it expires within 7 days, or within a quarter of its lifetime if that is
    shorter (`health.database.EXPIRES_SOON`). A token that expired within the last day also counts,
    but only if the token was ever used: a program that still uses the token is refused now. A
    revoked token does not count. None if no token counts, or the tokens cannot be read.
    """
    audit_lag: timedelta | None
    """The age of the oldest event that is in no hash chain yet; zero if every event is in one.

    The hash chains are digests of the events, by lane. They reveal a later change of an event. None
    if the database role may not read the events or the chains.
    """
    crm_trouble: str | None
    """The reason for which the schema `crm` of this database cannot be read; None if it can be
    read.
    """
    mirror_age: timedelta | None = None
    """The age of the mirror, our copy of the facts of an external CRM.

    It is the time since the beginning of the last complete read of the CRM into the mirror. None if
    the CRM is not external, or was never read completely.
    """


@dataclass(frozen=True)
class QueuedMessages:
    """The messages in a Celery queue: their number (`depth`), and the next one (`head_...`)."""

    name: str
    depth: int | None
    head_task: str | None = None
    head_id: str | None = None
    head_sent_at: datetime | None = None


@dataclass(frozen=True)
class BrokerFacts:
    """The Celery queues at the broker.

    `refuses`: the reason for which the broker accepts no messages now; None if it accepts them.
    """

    queues: list[QueuedMessages]
    refuses: str | None = None


@dataclass(frozen=True)
class Planned:
    """A task in beat's schedule: the time at which beat last sent it, and when it is due next."""

    task: str
    asked_at: datetime | None
    due_at: datetime


@dataclass(frozen=True)
class ResultsFacts:
    """The facts read from the Redis that has task results, signs of life and beat's schedule.

    `signs`: the last record that each process stored in Redis to show that it is alive. `now`: the
    time of Redis's clock at the moment of this reading. `refuses`: the reason for which Redis
    accepts no writes now; None if it accepts them.
    """

    now: datetime
    signs: list[SeenSign]
    schedule: list[Planned]
    refuses: str | None = None


@dataclass(frozen=True)
class Readings:
    """One reading of each server, all made at the same time.

    `crm` is None unless the CRM is external.
    """

    at: datetime
    database: InputReading[DatabaseFacts]
    broker: InputReading[BrokerFacts]
    results: InputReading[ResultsFacts]
    certificates: InputReading[list[CertificateFacts]] = field(default_factory=InputReading)
    crm: InputReading[str | None] | None = None
    """The reading of an external CRM; None: the CRM is not external.

    The reading's value is the reason for which the CRM cannot be read. If the CRM can be read, the
    value is None, and so is the reading's `trouble`.
    """

    @property
    def is_incomplete(self) -> bool:
        """True if a server did not answer in time."""
        return any(
            each is not None and each.trouble == NO_ANSWER
            for each in (self.database, self.broker, self.results, self.crm)
        )
