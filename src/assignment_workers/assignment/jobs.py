"""Record every run of a job: the start, the end and the result, or the reason for skipping it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine, Update, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from assignment_workers.assignment.locks import try_lock
from assignment_workers.errors import Overtaken
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.tables import JobRun, JobStatus

T = TypeVar("T")

Counts = dict[str, int]


@dataclass(frozen=True)
class Job:
    """A job to run.

    `trigger`: the cause of the run. `slot`: for a job that runs once per period, such as once a
    day, the beginning of the period.
    """

    name: str
    trigger: str
    queue: str | None = None
    slot: datetime | None = None
    task_id: str | None = None

    @property
    def lock(self) -> str:
        """The name of the advisory lock that a run of the job takes."""
        return f"job {self.name} {self.queue or ''}".strip()


@dataclass(frozen=True)
class Ran:
    """The result of running a job.

    `skipped`: 'locked' (another run is in progress) or 'slot done' (the job has run for this
    period); then nothing was changed. None: the job ran.
    """

    counts: Counts = field(default_factory=dict)
    skipped: str | None = None


@dataclass(frozen=True)
class Made(Generic[T]):
    """The result of a job's work.

    `counts` are stored in the row that records the run. `value` is returned to the caller.
    """

    counts: Counts
    value: T


@dataclass(frozen=True)
class Work:
    """The connections and the context that a job's work receives.

    `connection` has the job's lock; its changes commit together with the record of the run's
    success. `side_connection` is for changes that must be visible earlier, or must stay if the work
    fails.
    """

    connection: Connection
    side_connection: Connection
    now: datetime
    job: Job
    number: int

    def store_counts(self, counts: Counts) -> None:
        """Commit the work on `side_connection`, and store the `counts` so far in the run's row.

        Raises `Overtaken`, with nothing committed, if another run has marked this run as failed.
        That can happen if the connection that has the job's lock is lost. The lock is then free,
        and the next run of the job takes it.
        """
        mine = JobRun.id == self.number, JobRun.status == sql_text(JobStatus.RUNNING)
        row = self.side_connection.execute(
            update(JobRun).where(*mine).values(counts=counts).returning(JobRun.id)
        ).first()
        if row is None:
            self.side_connection.rollback()
            raise Overtaken(f"run {self.number} of the job was taken for dead; it ends here")
        self.side_connection.commit()

    def reached(self, count: str) -> int:
        """Return the highest value of one count that any run for this slot (period) has stored.

        `count`: the name of the count. 0 if no run has stored the count. After a failed run, the
        next run reads here how far the failed run came.
        """
        highest = func.max(JobRun.counts[count].as_integer())
        return int(
            self.side_connection.execute(
                select(func.coalesce(highest, 0)).where(
                    JobRun.job == self.job.name,
                    JobRun.slot == self.job.slot,
                    JobRun.queue.is_not_distinct_from(self.job.queue),
                )
            ).scalar_one()
        )


def run(engine: Engine, job: Job, work: Callable[[Work], Counts]) -> Ran:
    """Run the job: call `work`, and commit its changes with the record of the run's success.

    Only one run of a job is in progress at a time; a further call meanwhile skips the job, and so
    does a call for a `slot` (period) for which the job has succeeded. If `work` fails, the error is
    stored in the run's row and raised. If the process dies, the job's lock is lost with its
    connection, and the next run marks the run as failed.
    """
    ran, _ = run_for(engine, job, lambda given: Made(work(given), None))
    return ran


def run_for(engine: Engine, job: Job, work: Callable[[Work], Made[T]]) -> tuple[Ran, T | None]:
    """Run the job: call `work`, and commit its changes with the record of the run's success.

    Returns the result of the run and the value of the work. The value is None if the job was
    skipped: another run is in progress, or the job has succeeded for its slot (period). If `work`
    fails, the error is stored in the run's row and raised.
    """
    with engine.connect() as connection, engine.connect() as side_connection:
        now = connection.execute(select(func.clock_timestamp())).scalar_one()
        if not try_lock(connection, job.lock):
            return _skipped(side_connection, job, now, "locked"), None
        _fail_abandoned(side_connection, job, now)
        number = _begin(side_connection, job, now)
        if number is None:
            return _skipped(side_connection, job, now, "slot done"), None
        try:
            made = work(Work(connection, side_connection, now, job, number))
            ended = {"status": JobStatus.SUCCEEDED, "counts": made.counts}
            connection.execute(_end(number).values(**ended))
            connection.commit()
        except BaseException as error:
            connection.rollback()
            side_connection.rollback()
            side_connection.execute(
                _end(number).values(status=JobStatus.FAILED, error=_line(error))
            )
            side_connection.commit()
            raise
        return Ran(made.counts), made.value


def last_slot(connection: Connection, name: str) -> datetime | None:
    """Return the latest slot (beginning of a period) for which this job succeeded; None: never."""
    return connection.execute(
        select(func.max(JobRun.slot)).where(
            JobRun.job == name, JobRun.status == sql_text(JobStatus.SUCCEEDED)
        )
    ).scalar_one()


def _begin(side_connection: Connection, job: Job, now: datetime) -> int | None:
    """Store the row of a new run of the job; return the run's number.

    Returns None, and stores nothing, if the job has already succeeded for its slot (period).
    """
    row = {
        "job": job.name,
        "queue": job.queue,
        "trigger": job.trigger,
        "slot": job.slot,
        "task_id": job.task_id,
        "started_at": now,
    }
    number = side_connection.execute(
        upsert(JobRun).values(row).on_conflict_do_nothing().returning(JobRun.id)
    ).scalar_one_or_none()
    side_connection.commit()
    return number


def _fail_abandoned(side_connection: Connection, job: Job, now: datetime) -> None:
    """Mark every run of this job whose status is still 'running' as failed.

    The caller has the job's lock, so the processes of these runs are dead.
    """
    side_connection.execute(
        update(JobRun)
        .where(
            JobRun.job == job.name,
            JobRun.queue.is_not_distinct_from(job.queue),
            JobRun.status == sql_text(JobStatus.RUNNING),
        )
        .values(status=JobStatus.FAILED, ended_at=now, error="its process ended before it did")
    )
    side_connection.commit()


def _skipped(side_connection: Connection, job: Job, now: datetime, why: str) -> Ran:
    side_connection.execute(
        insert(JobRun).values(
            job=job.name,
            queue=job.queue,
            trigger=job.trigger,
            slot=job.slot,
            task_id=job.task_id,
            started_at=now,
            ended_at=now,
            status=JobStatus.SKIPPED,
            error=why,
        )
    )
    side_connection.commit()
    return Ran(skipped=why)


def _end(number: int) -> Update:
    return update(JobRun).where(JobRun.id == number).values(ended_at=func.clock_timestamp())


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:500]
