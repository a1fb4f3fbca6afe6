"""Delete expired data without delaying claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from psycopg.errors import LockNotAvailable, ObjectNotInPrerequisiteState, UndefinedTable
from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Update,
    delete,
    exists,
    func,
    or_,
    outerjoin,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment import audit
from assignment_workers.assignment.generations.regenerate import partition
from assignment_workers.assignment.jobs import Counts
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.suppressions import FORGOTTEN
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.engine import POOLED
from assignment_workers.schema.tables import (
    AccessRecord,
    AnswerCount,
    Assignment,
    AssignmentState,
    Command,
    DashboardSession,
    DeadLetter,
    EventText,
    Generation,
    GenerationState,
    JobRun,
    JobStatus,
    LaneTerm,
    Request,
    SequencerSign,
    Suppression,
    SuspectMessage,
)
from assignment_workers.settings import Settings

LOCK_WAIT = timedelta(seconds=1)
_ANOTHER_IS_AT_IT = LockNotAvailable, ObjectNotInPrerequisiteState, UndefinedTable
"""Errors that mean that another process reads or drops the same generation's partition."""


def purge_generations(connection: Connection, *, settings: Settings) -> Counts:
    """Drop the entries of failed generations, and of those retired long enough ago.

    An entry is the position of a user in a generation. The entries of a retired generation are
    dropped once the time of the setting `generation_retention` has passed since its retirement.
    `connection` must be in autocommit.

    The entries of a generation are a partition of the table `entries`. The partition is first
    detached, and then dropped. The detachment is concurrent: it blocks no use of the other
    partitions, but waits for the transactions that are using the table `entries`. Each wait for a
    lock is at most one second (`LOCK_WAIT`). Behind a connection pooler, no limit is set. A
    detachment that an earlier run left pending is finished first, because PostgreSQL allows only
    one pending detachment.

    Returns the count `generations`: the generations whose entries this run dropped. The run ends
    early in two cases: the run waits longer than `LOCK_WAIT` for another transaction, such as a
    dump, or another process drops the same partition. The generation whose partition was to be
    dropped keeps its entries until the next run. So do the generations that this run has not
    reached yet. Only if the run ends early, the result also has the item `waiting`; its value is
    always 1.
    """
    gone = connection.execute(
        select(Generation.id).where(
            Generation.purged_at.is_(None),
            or_(
                Generation.state == sql_text(GenerationState.FAILED),
                Generation.retired_at <= func.now() - settings.generation_retention,
            ),
        )
    ).scalars()
    pending = connection.execute(_ANY_PENDING).scalar_one_or_none()
    numbers = sorted(gone, key=lambda number: (partition(number) != pending, number))
    count = 0
    with _waiting_briefly(connection):
        for number in numbers:
            try:
                _drop(connection, number)
            except DBAPIError as error:
                if not isinstance(error.orig, _ANOTHER_IS_AT_IT):
                    raise
                return {"generations": count, "waiting": 1}
            connection.execute(
                update(Generation)
                .where(Generation.id == number)
                .values(purged_at=func.clock_timestamp())
            )
            count += 1
    return {"generations": count}


@contextmanager
def _waiting_briefly(connection: Connection) -> Iterator[None]:
    """Limit every wait for a lock inside the block to `LOCK_WAIT`.

    No effect behind a connection pooler, because there the setting of the session would apply to
    other clients too.
    """
    if connection.info.get(POOLED):  # a pooled session serves another client a moment later
        yield
        return
    before = connection.execute(text("SHOW lock_timeout")).scalar_one()
    milliseconds = round(LOCK_WAIT.total_seconds() * 1000)
    set_to = text("SELECT set_config('lock_timeout', :to, false)")
    connection.execute(set_to, {"to": str(milliseconds)})
    try:
        yield
    finally:
        connection.execute(set_to, {"to": before})


def _drop(connection: Connection, number: int) -> None:
    name = partition(number)
    pending = connection.execute(_PENDING, {"name": name}).scalar_one_or_none()
    if pending is not None:
        how = "FINALIZE" if pending else "CONCURRENTLY"
        connection.execute(text(f"ALTER TABLE assignment.entries DETACH PARTITION {name} {how}"))
    connection.execute(text(f"DROP TABLE IF EXISTS {name}"))


_ANY_PENDING = text(
    "SELECT n.nspname || '.' || c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.inhdetachpending"
    " AND i.inhparent = 'assignment.entries'::regclass"
)
_PENDING = text(
    "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass(:name)"
    " AND inhparent = 'assignment.entries'::regclass"
)


def prune_history(connection: Connection, *, settings: Settings) -> Counts:
    """Delete answers, events, job runs, dead letters and other records older than their retention.

    Returns the number of deleted or cleared records, by kind. Typed texts and phone numbers are
    deleted after a retention of their own (`forget_texts`). Events are deleted in whole batches of
    the audit chain (`audit.cut`); events that are not in the chain yet stay. Sessions of the
    dashboard are deleted a day after they expire. Assignments are never deleted.

    The answer to a command is deleted once the answer is older than the setting
    `request_retention`. The answer to a request is deleted once the answer and the deadline of the
    request, if there is a deadline, are both older than that setting.

    A message that was taken by a sequencer which was then killed stays in the broker until the
    lane's next sequencer gets it. This may take longer than any retention. The stored answer shows
    the next sequencer that the message was carried out already. Therefore, no answer of any lane is
    deleted while one of the lanes (groups of dialer queues) has no leading sequencer, nor in the
    first ten minutes (`_SETTLED`) after a sequencer of one of the lanes has begun to lead. So a
    redelivered message is never taken for a new one.
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
            JobRun.started_at < history, JobRun.status != sql_text(JobStatus.RUNNING)
        ),
        "dead_letters": delete(DeadLetter).where(DeadLetter.at < history),
        # Entries of messages that were acknowledged after all, or were lost with their broker.
        "suspect_messages": delete(SuspectMessage).where(SuspectMessage.at < history),
        "access_log": delete(AccessRecord).where(AccessRecord.at < history),
        "answer_counts": delete(AnswerCount).where(AnswerCount.hour < history),
        # Longer than the lifetime of a link, so that a used link stays used.
        "dashboard_sessions": delete(DashboardSession).where(
            DashboardSession.expires_at < func.now() - timedelta(days=1)
        ),
    }.items():
        counts[name] = connection.execute(statement).rowcount
    with _purging(connection):
        counts["events"] = audit.cut(connection, settings.history_retention)
    return counts | forget_texts(connection, settings=settings)


def forget_texts(connection: Connection, *, settings: Settings) -> Counts:
    """Clear texts that people typed, and phone numbers, in records older than `text_retention`.

    Returns the number of cleared records by table.
    """
    before = func.now() - min(settings.text_retention, settings.history_retention)
    lifted = Suppression.lifted_at < func.now() - settings.text_retention
    statements: dict[str, Delete | Update] = {
        "event_texts": delete(EventText).where(EventText.at < before),
        "notes": update(Assignment)
        .where(
            Assignment.state != sql_text(AssignmentState.ACTIVE),
            Assignment.ended_at < func.now() - settings.text_retention,
            Assignment.notes.is_not(None),
        )
        .values(notes=None),
        "phones": delete(Suppression).where(lifted, Suppression.phone.is_not(None)),
        "reasons": update(Suppression)
        .where(lifted, Suppression.reason != FORGOTTEN)
        .values(reason=FORGOTTEN, lifted_why=FORGOTTEN),
    }
    return {name: connection.execute(each).rowcount for name, each in statements.items()}


@contextmanager
def _purging(connection: Connection) -> Iterator[None]:
    """Allow the deletion of events inside the block, except in the last of three cases.

    Outside the block, a trigger refuses each deletion. Inside the block, the case depends on the
    database role `assignment_purge`:

    - The role exists and has the privilege to delete events, and this connection's role is a member
      of it. Then the block runs with the role `assignment_purge`, and the trigger allows the
      deletion.
    - The role does not exist, or does not have that privilege. Then the block runs with
      PostgreSQL's run-time setting `assignment.purge` switched on, and the trigger allows the
      deletion because of this setting.
    - The role exists and has that privilege, but this connection's role is no member of it. Then
      the setting is switched on too, but the trigger ignores the setting and refuses the deletion.
    """
    if connection.execute(_HAS_ROLE).scalar_one():
        begin, end = "SET LOCAL ROLE assignment_purge", "RESET ROLE"
    else:
        begin = "SELECT set_config('assignment.purge', 'on', true)"
        end = "SELECT set_config('assignment.purge', 'off', true)"
    connection.execute(text(begin))
    yield
    connection.execute(text(end))


_HAS_ROLE = text(
    "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'assignment_purge'"
    " AND has_table_privilege(oid, 'assignment.events', 'DELETE')"
    " AND pg_has_role(current_user, oid, 'MEMBER'))"
)


_SETTLED = timedelta(minutes=10)
"""Time after the beginning of a sequencer's term in which no stored answers are deleted.

Messages that a killed sequencer had taken are delivered again to its successor. Such messages may
be very old. The stored answers ensure that no message is carried out twice. After this time, all
such messages have been handled.
"""
_SILENT = timedelta(minutes=1)


def _behind(lanes: Sequence[str]) -> ColumnElement[bool]:
    """Return a SQL condition, true while a sequencer of these lanes may receive very old messages.

    Meanwhile, stored answers must not be deleted, because a message that was carried out already
    must get its stored answer. The condition is true while one of the lanes has no leading
    sequencer, and for the time `_SETTLED` after a sequencer has begun to lead.
    """
    signed = outerjoin(LaneTerm, SequencerSign, SequencerSign.lane == LaneTerm.lane)
    return (
        exists()
        .select_from(signed)
        .where(
            LaneTerm.lane.in_(lanes),
            or_(
                LaneTerm.since.is_(None),
                LaneTerm.since > func.now() - _SETTLED,
                func.greatest(SequencerSign.last_turn_at, LaneTerm.seen_at) < func.now() - _SILENT,
            ),
        )
    )
