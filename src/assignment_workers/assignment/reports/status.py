"""The current status for operators: dialer queues, holds, jobs, the sequencer. Reads only.

The claimable and the waiting users of a dialer queue are counted up to 100,000 (`COUNTED_AT_MOST`).
Callbacks, missed calls, dead letters and the answers of the last hour are counted completely.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, Row, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment import calling
from assignment_workers.assignment.active_assignments import ACTIVE, HELD_COLUMNS, held
from assignment_workers.assignment.answers import Held
from assignment_workers.assignment.crm import fact_views, mirror
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.generations.entries import PUBLISHED_STATE, READY, WAITING
from assignment_workers.assignment.lanes import Lanes, connection_name, lanes_of, name_prefix
from assignment_workers.assignment.reports.durability import Durability, durability
from assignment_workers.assignment.settings_versions import current, version_of
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema import tables
from assignment_workers.schema.retry import one_line
from assignment_workers.schema.tables import (
    Assignment,
    DeadLetter,
    DialerQueue,
    Entry,
    Generation,
    JobRun,
    LaneTerm,
    SequencerSign,
)
from assignment_workers.settings import Settings

COUNTED_AT_MOST = 100_000
OVERDUE = timedelta(minutes=10)
SILENT_SECONDS = 4.5
"""Seconds without a transaction after which a leading sequencer counts as silent.

A leading sequencer that gets no other message sends a probe, a message to itself, every 2 seconds.
It handles each probe in a transaction. So a leading sequencer that works is not silent, even if
there is nothing else to do.
"""


class QueueStatus(BaseModel):
    """The status of a dialer queue.

    `claimable` and `waiting` are numbers of users, counted up to 100,000 (`COUNTED_AT_MOST`). They
    are None if the queue was never built.
    """

    queue: str
    paused: bool
    paused_by: str | None
    claimable: int | None
    waiting: int | None
    held: int
    generation: int | None
    size: int | None
    trigger: str | None
    published_at: datetime | None


class LastJobRun(BaseModel):
    """The last run of a job, successful or not."""

    job: str
    queue: str | None
    trigger: str
    status: str
    started_at: datetime
    seconds: float | None
    counts: dict[str, int]
    error: str | None


class Leader(BaseModel):
    """The sequencer process that leads a lane."""

    pid: int
    host: str
    since: datetime


class SequencerStatus(BaseModel):
    """A lane's sequencer, and the lane's dialer queues.

    The process that leads the lane is in one of two fields. It is the `leader` if it has made a
    transaction within the last 4.5 seconds; otherwise it is the `silent_leader`. The other field is
    None. While no process leads, both are None.

    A probe is a message that the process that leads sends to itself. `probe_seconds` is about the
    last probe that was handled: the time from the sending of this probe to the transaction that
    handled it.
    """

    lane: str
    queues: list[str]

    term: int
    leader: Leader | None
    silent_leader: Leader | None = None
    standbys: int
    silent_seconds: float | None
    probe_seconds: float | None


class CrmStatus(BaseModel):
    """The status of the CRM.

    `elsewhere` is True for an external CRM. `trouble` is the reason why the CRM cannot be read now;
    None if it can be read. `mirror_age_seconds` is the age of the mirror (our copy of an external
    CRM). It is None if the CRM is in our own database or was never copied.
    """

    elsewhere: bool
    trouble: str | None
    mirror_age_seconds: float | None


class DueStatus(BaseModel):
    """Counts of callbacks and missed calls.

    Claims assign the users of due callbacks and missed calls before the users of dialer queues.

    The promised time of a callback is the time that the agent promised. It stays the same if the
    callback is postponed. A callback is overdue if it is still pending ten minutes after its
    promised time. For a callback that was postponed to a later time, the ten minutes begin at that
    later time. `oldest_overdue` is the earliest promised time of all overdue callbacks; the time to
    which a callback was postponed does not count.

    From its promised time on, a callback is reserved for the agent who promised it, if that agent
    is active: no other agent gets the user. The reservation lasts for the duration in the setting
    `callback_preferred`, by default ten minutes, and also begins at the promised time if the
    callback was postponed. With the default, the reservation has therefore ended when a callback
    becomes overdue.
    """

    callbacks_pending: int
    callbacks_overdue: int
    oldest_overdue: datetime | None
    missed_calls_pending: int
    oldest_missed_call: datetime | None
    missed_calls_for_operator: int


class AgentsStatus(BaseModel):
    """Number of active agents in each state.

    An agent is active if the column `is_active` of the table `agents` is true. `unstated` is the
    number of active agents whose state was never set. Such agents may be assigned users, as
    available agents may.
    """

    available: int
    on_call: int
    wrap_up: int
    on_break: int
    offline: int
    unstated: int


class StandbyStatus(BaseModel):
    """A server that replicates the database's commits.

    An `asynchronous` standby may lack the last commits. If it is promoted, these commits are lost,
    although agents got the answers.
    """

    name: str
    asynchronous: bool
    lag_seconds: float | None


class Status(BaseModel):
    """The status of the whole system, at `at` by the database's clock."""

    at: datetime
    queues: list[QueueStatus]
    due: DueStatus
    holds: list[Held]
    agents: AgentsStatus
    jobs: list[LastJobRun]
    sequencer: SequencerStatus
    """The sequencer of the default lane."""
    lanes: list[SequencerStatus]
    """The sequencers of all lanes, the default lane first."""
    answers_last_hour: dict[str, int]
    dead_letters: int
    unpublished: int
    standbys: list[StandbyStatus]
    """The database's standby servers; empty, too, if the database role has no right to see them.

    To see them, the role needs `pg_read_all_stats`.
    """
    durability: Durability
    """The database servers that have an answer's commit on disk when the agent gets the answer.

    The value follows from the present settings of PostgreSQL and the standbys connected now.
    """
    calling_hours: str
    calling_rules: str
    settings_version: int | None
    """The version of the operational settings in force.

    None: no sequencer has led yet, so the settings of this process's environment are in force.
    """
    crm: CrmStatus


def status(
    connection: Connection, dialer: Dialer, crm: Crm | None, *, application: str, settings: Settings
) -> Status:
    """Read the status of the whole system.

    `dialer`: the definition of the dialer that this process has loaded. `crm`: the external CRM, if
    any. `application`: the configured PostgreSQL application name, by which the sequencers'
    connections are found. `settings`: the settings of the environment. If operators have changed
    operational settings, the changed values are read from the database and used instead.
    """
    crm_now = crm_status(connection, dialer, crm)
    now = connection.execute(select(func.clock_timestamp())).scalar_one()
    in_force = current(connection, dialer, settings)
    lanes = sequencer_statuses(
        connection,
        application=application,
        lanes=lanes_of(settings),
        queues=dialer.policies,
    )
    return Status(
        at=now,
        crm=crm_now,
        queues=queue_statuses(connection, dialer.policies),
        due=DueStatus(**connection.execute(_DUE, {"late": now - OVERDUE}).mappings().one()),
        holds=[held(row) for row in connection.execute(_HOLDS).mappings()],
        agents=AgentsStatus(**connection.execute(_AGENTS).mappings().one()),
        jobs=job_statuses(connection),
        sequencer=lanes[0],
        lanes=lanes,
        answers_last_hour={
            row.outcome: row.answers
            for row in connection.execute(_ANSWERS, {"since": now - timedelta(hours=1)})
        },
        dead_letters=connection.execute(
            select(func.count()).where(
                DeadLetter.replayed_at.is_(None), DeadLetter.dismissed_at.is_(None)
            )
        ).scalar_one(),
        standbys=[StandbyStatus(**row) for row in connection.execute(_STANDBYS).mappings()],
        durability=durability(connection),
        calling_hours=calling.described(in_force, dialer.policies),
        calling_rules=calling.others_described(in_force, dialer.policies),
        settings_version=version_of(in_force),
        unpublished=connection.execute(
            select(func.count()).where(
                Generation.state == tables.GenerationState.BUILDING,
                Generation.built_at.is_not(None),
            )
        ).scalar_one(),
    )


def crm_status(connection: Connection, dialer: Dialer, crm: Crm | None) -> CrmStatus:
    """Test the CRM by a read, and return the CRM's status.

    If the CRM cannot be read, the reason is in `trouble` of the returned status. The read of an
    external CRM waits at most for the time in the setting `crm_timeout`, as the read of a claim
    does. If the CRM is in our own database, a failed read rolls the transaction back. Therefore,
    call this function first in a transaction. If the connection to our own database is lost, the
    error is raised.
    """
    if crm is not None:
        age = mirror.age(connection)
        return CrmStatus(
            elsewhere=True,
            trouble=crm.trouble(),
            mirror_age_seconds=None if age is None else age.total_seconds(),
        )
    trouble = None
    try:
        connection.execute(fact_views.probe(dialer))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        connection.rollback()
        trouble = one_line(error)
    return CrmStatus(elsewhere=False, trouble=trouble, mirror_age_seconds=None)


def sequencer_statuses(
    connection: Connection, *, application: str, lanes: Lanes, queues: Collection[str]
) -> list[SequencerStatus]:
    """Return the leader and the number of standbys of each lane, the default lane first.

    Sequencers are found by the connections that they keep for their lane's lock. `application`: the
    configured PostgreSQL application name, with which the names of these connections begin.
    `queues`: the names of the dialer's queues.
    """
    rows = {row.lane: row for row in connection.execute(_LANES)}
    names = set(connection.execute(_SEQUENCERS, {"prefix": f"{application} %"}).scalars())
    return [
        _sequencer(lane, rows.get(lane), names, application, lanes.queues(lane, queues))
        for lane in lanes.names
    ]


def _sequencer(
    lane: str,
    row: Row[*tuple[Any, ...]] | None,
    names: Collection[str],
    application: str,
    queues: list[str],
) -> SequencerStatus:
    prefix = name_prefix(application, lane)
    # A host and a process follow the prefix; another lane's name has more words.
    ours = {
        name for name in names if name.startswith(prefix) and " " not in name.removeprefix(prefix)
    }
    leader = connection_name(application, lane, row.leader_host, row.leader_pid) if row else None
    leading = leader in ours
    silent = None if row is None or row.silent is None else float(row.silent)
    is_silent = silent is not None and silent > SILENT_SECONDS
    found = (
        Leader(pid=row.leader_pid, host=row.leader_host, since=row.since)
        if row and leading
        else None
    )
    return SequencerStatus(
        lane=lane,
        queues=queues,
        term=row.term if row else 0,
        leader=None if is_silent else found,
        silent_leader=found if is_silent else None,
        standbys=len(ours) - int(leading),
        silent_seconds=silent,
        probe_seconds=row.probe_seconds if row else None,
    )


def queue_statuses(connection: Connection, queues: Iterable[str]) -> list[QueueStatus]:
    """Return the status of each dialer queue that has a row in the database.

    First come the dialer queues that are named in `queues`, in the order of `queues`. The others
    follow, in the order of their names.
    """
    order = [*queues]
    rows = sorted(
        connection.execute(_QUEUES).mappings().all(),
        key=lambda row: order.index(row["queue"]) if row["queue"] in order else len(order),
    )
    return [
        QueueStatus(
            **row,
            claimable=_count(connection, row["generation"], READY),
            waiting=_count(connection, row["generation"], WAITING),
        )
        for row in rows
    ]


def _count(connection: Connection, generation: int | None, state: object) -> int | None:
    if generation is None:
        return None
    some = (
        select(Entry.user_id)
        .where(Entry.generation_id == bindparam("generation"), Entry.state == state)
        .limit(COUNTED_AT_MOST)
        .subquery()
    )
    counted = select(func.count()).select_from(some)
    return connection.execute(counted, {"generation": generation}).scalar_one()


def job_statuses(connection: Connection) -> list[LastJobRun]:
    """Return the last run of each job.

    For a job that runs for one dialer queue at a time, return the last run for each queue.
    """
    rows = connection.execute(
        select(
            JobRun.job,
            JobRun.queue,
            JobRun.trigger,
            JobRun.status,
            JobRun.started_at,
            func.extract("epoch", JobRun.ended_at - JobRun.started_at).label("seconds"),
            JobRun.counts,
            JobRun.error,
        )
        .ext(distinct_on(JobRun.job, JobRun.queue))
        .order_by(JobRun.job, JobRun.queue, JobRun.id.desc())
    ).mappings()
    return [LastJobRun(**row) for row in rows]


_STANDBYS = text("""
SELECT application_name AS name, sync_state NOT IN ('sync', 'quorum') AS asynchronous,
    extract(epoch FROM replay_lag)::float8 AS lag_seconds
FROM pg_stat_replication WHERE state IS NOT NULL ORDER BY application_name
""")
_LANES = select(
    LaneTerm.lane,
    LaneTerm.term,
    LaneTerm.leader_pid,
    LaneTerm.leader_host,
    LaneTerm.since,
    func.coalesce(SequencerSign.last_probe_seconds, LaneTerm.probe_seconds).label("probe_seconds"),
    func.extract(
        "epoch",
        func.clock_timestamp() - func.greatest(SequencerSign.last_turn_at, LaneTerm.seen_at),
    ).label("silent"),
).outerjoin(SequencerSign, SequencerSign.lane == LaneTerm.lane)
_HELD_NOW = (
    select(Assignment.queue, func.count().label("held"))
    .where(Assignment.state == ACTIVE)
    .group_by(Assignment.queue)
    .subquery()
)
_QUEUES = (
    select(
        DialerQueue.name.label("queue"),
        DialerQueue.paused_at.is_not(None).label("paused"),
        DialerQueue.paused_by,
        func.coalesce(_HELD_NOW.c.held, 0).label("held"),
        Generation.id.label("generation"),
        Generation.size,
        Generation.trigger,
        Generation.published_at,
    )
    .outerjoin(_HELD_NOW, _HELD_NOW.c.queue == DialerQueue.name)
    .outerjoin(
        Generation, (Generation.queue == DialerQueue.name) & (Generation.state == PUBLISHED_STATE)
    )
    .order_by(DialerQueue.name)
)
_DUE = text(
    """
    SELECT c.*, m.*
    FROM (
        SELECT count(*) AS callbacks_pending,
            count(*) FILTER (WHERE due <= timezone('UTC', :late)) AS callbacks_overdue,
            min(scheduled_for) FILTER (WHERE due <= timezone('UTC', :late))
                AT TIME ZONE 'UTC' AS oldest_overdue
        FROM (
            SELECT scheduled_for, greatest(scheduled_for, available_from) AS due
            FROM public.callbacks WHERE status = 'pending'
        ) AS promised
    ) AS c, (
        SELECT count(*) FILTER (WHERE status = 'pending') AS missed_calls_pending,
            min(missed_at) FILTER (WHERE status = 'pending') AT TIME ZONE 'UTC'
                AS oldest_missed_call,
            count(*) FILTER (WHERE status = 'for_operator') AS missed_calls_for_operator
        FROM public.missed_calls WHERE status IN ('pending', 'for_operator')
    ) AS m
    """
)
_HOLDS = (
    select(*HELD_COLUMNS)
    .where(Assignment.state == ACTIVE)
    .order_by(Assignment.lease_expires_at)
    .limit(1_000)
)
_AGENTS = text(
    """
    SELECT count(*) FILTER (WHERE s.state = 'available') AS available,
        count(*) FILTER (WHERE s.state = 'on_call') AS on_call,
        count(*) FILTER (WHERE s.state = 'wrap_up') AS wrap_up,
        count(*) FILTER (WHERE s.state = 'break') AS on_break,
        count(*) FILTER (WHERE s.state = 'offline') AS offline,
        count(*) FILTER (WHERE s.state IS NULL) AS unstated
    FROM agents g LEFT JOIN assignment.agents_state s ON s.agent_id = g.id
    WHERE g.is_active
    """
)
_ANSWERS = (
    select(tables.Request.outcome, func.count().label("answers"))
    .where(tables.Request.answered_at >= bindparam("since"))
    .group_by(tables.Request.outcome)
)
_SEQUENCERS = text(
    "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE :prefix"
    " AND datname = current_database()"
)
