"""Drop what nobody needs any more, without standing in a claim's way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    delete,
    exists,
    func,
    or_,
    outerjoin,
    select,
    text,
    update,
)

from assignment_workers.assignment.jobs import Counts
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.regenerate import partition
from assignment_workers.schema.base import word
from assignment_workers.schema.tables import (
    AccessRecord,
    Command,
    DashboardSession,
    DeadLetter,
    Event,
    Generation,
    GenerationState,
    JobRun,
    JobStatus,
    Request,
    Sequencer,
    SequencerSign,
)
from assignment_workers.settings import Settings


def purge_generations(connection: Connection, *, settings: Settings) -> Counts:
    """Drop the entries of generations retired long enough ago, and of failed ones.

    `connection` must be in autocommit: a concurrent detachment waits for whoever still reads the
    partition, and keeps nobody from reading or writing the others; dropping the detached table
    locks only itself. A process that died half-way left a detachment pending, which is finished
    first.
    """
    gone = connection.execute(
        select(Generation.id).where(
            Generation.purged_at.is_(None),
            or_(
                Generation.state == word(GenerationState.FAILED),
                Generation.retired_at <= func.now() - settings.generation_retention,
            ),
        )
    ).scalars()
    count = 0
    for number in list(gone):
        _drop(connection, number)
        connection.execute(
            update(Generation)
            .where(Generation.id == number)
            .values(purged_at=func.clock_timestamp())
        )
        count += 1
    return {"generations": count}


def _drop(connection: Connection, number: int) -> None:
    name = partition(number)
    pending = connection.execute(_PENDING, {"name": name}).scalar_one_or_none()
    if pending is not None:
        how = "FINALIZE" if pending else "CONCURRENTLY"
        connection.execute(text(f"ALTER TABLE assignment.entries DETACH PARTITION {name} {how}"))
    connection.execute(text(f"DROP TABLE IF EXISTS {name}"))


_PENDING = text(
    "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass(:name)"
    " AND inhparent = 'assignment.entries'::regclass"
)


def prune_history(connection: Connection, *, settings: Settings) -> Counts:
    """Delete answers, job runs, events and dead letters older than their retention.

    Sessions of the dashboard go a day after their end.

    An answer is kept as long as its message could come again, so that a redelivered one is never
    taken for new: until its deadline and its retention are over, and while nobody leads, or has
    just begun, for what a killed sequencer had taken waits in Redis for the next one, however long
    that takes. Assignments are never deleted.
    """
    history = func.now() - settings.history_retention
    counts: Counts = {}
    for name, statement in {
        "requests": delete(Request).where(
            Request.answered_at < func.now() - settings.request_retention,
            or_(
                Request.deadline.is_(None),
                Request.deadline < func.now() - settings.request_retention,
            ),
            ~_behind(lanes_of(settings).names),
        ),
        "commands": delete(Command).where(
            Command.answered_at < func.now() - settings.request_retention,
            ~_behind(lanes_of(settings).names),
        ),
        "job_runs": delete(JobRun).where(
            JobRun.started_at < history, JobRun.status != word(JobStatus.RUNNING)
        ),
        "events": delete(Event).where(Event.at < history),
        "dead_letters": delete(DeadLetter).where(DeadLetter.at < history),
        "access_log": delete(AccessRecord).where(AccessRecord.at < history),
        # Longer than a link is good for: a used one stays used.
        "dashboard_sessions": delete(DashboardSession).where(
            DashboardSession.expires_at < func.now() - timedelta(days=1)
        ),
    }.items():
        counts[name] = connection.execute(statement).rowcount
    return counts


_SETTLED = timedelta(minutes=10)
"""Long after a sequencer began, it has served whatever its predecessors had taken."""
_SILENT = timedelta(minutes=1)


def _behind(lanes: Sequence[str]) -> ColumnElement[bool]:
    """Whether one of these lanes may have messages to serve that were answered long ago."""
    signed = outerjoin(Sequencer, SequencerSign, SequencerSign.lane == Sequencer.lane)
    return (
        exists()
        .select_from(signed)
        .where(
            Sequencer.lane.in_(lanes),
            or_(
                Sequencer.since.is_(None),
                Sequencer.since > func.now() - _SETTLED,
                func.coalesce(SequencerSign.last_turn_at, Sequencer.seen_at) < func.now() - _SILENT,
            ),
        )
    )
