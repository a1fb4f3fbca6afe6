"""The figures that operators watch, read from the database. Reads only.

The cost of each query has a bound, whatever the tables' size: it uses an index over the last
minutes or hour, or reads only the newest `NEWEST` rows, or stops counting at a constant of this
module. A display of a figure must name the bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import Connection, text

from assignment_workers.assignment.audit import lag_seconds
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.reports.status import (
    CrmStatus,
    QueueStatus,
    SequencerStatus,
    crm_status,
    queue_statuses,
    sequencer_statuses,
)
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.tables import AssignmentState

NEWEST = 50_000
"""Maximum number of newest rows that are read for one figure.

The rows are answers to requests, ended assignments, or events. The events record, for example,
claims or races (conflicts between two writers).
"""
COUNTED_AT_MOST = 10_000
"""Number at which the counting of dead letters, assignments and quarantined users stops."""
RUNS = 200
"""Maximum number of newest runs of each job that are read for the figures."""


class QueueFigures(QueueStatus):
    """A dialer queue's status with further figures for monitoring."""

    age_seconds: float | None
    """Seconds since the queue's present generation was published; None if the queue has none."""
    claimed_last_hour: int
    skipped_last_hour: int
    quarantined: int
    """Number of users of the dialer queue who are quarantined until an operator releases them."""
    runway_minutes: float | None
    """Minutes until no user is claimable, if users are claimed at the rate of the last hour.

    None if no user was claimed in the last hour, or if the queue was never built.
    """


class JobFigures(BaseModel):
    """The last run of a job, and counts over the runs of the last day.

    Only the newest `RUNS` runs of the job are read.
    """

    job: str
    queue: str | None
    trigger: str
    status: str
    started_at: datetime
    seconds: float | None
    error: str | None
    succeeded_at: datetime | None
    failed_last_day: int
    overlapping_last_day: int
    """Number of runs of the last day that were skipped because another run was in progress."""
    missed_last_day: int | None
    """Number of periods that ended in the last day, and for which no run of the job has succeeded.

    Some jobs run once per period. The period is an hour for `queue.regenerate`, and a day for each
    other job of this kind. Only the newest 200 runs of the job (`RUNS`) are read. Periods before
    the earliest period of these runs are not counted.

    The value is None for a job that has no periods, such as a job that runs every few minutes. It
    is also None if none of the runs that are read belongs to a period. For example, a rebuild that
    an operator requested belongs to none.
    """


class RecentTimeToAssign(BaseModel):
    """Seconds from the sending of a request to the commit of its assignment.

    `measured` is the number of assignments in the last five minutes; the other values are None if
    there were none.
    """

    measured: int
    average: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class StoredCheck(BaseModel):
    """The stored result of one check of a guarantee, from the last scheduled run of all checks.

    It has the same fields as `doctor.CheckResult`, which is the result of a check that has just
    been run. A stored result is as old as the last scheduled run (`Figures.examined_at`). `ok`
    is True if the check passed. `count` is the number of breaches, up to a hundred; `examples` are
    some of them.
    """

    check: str
    guarantee: int | None
    ok: bool
    count: int
    examples: list[str]
    repairable: bool


class Figures(BaseModel):
    """All figures for monitoring: dialer queues, sequencers, assignments, jobs, dead letters, CRM.

    `at` is the time of reading, by the database's clock.
    """

    at: datetime
    queues: list[QueueFigures]
    sequencer: SequencerStatus
    """The sequencer of the default lane."""
    lanes: list[SequencerStatus]
    """The status of the sequencer of each lane, the default lane first."""
    holds: int
    holds_lapsing: int
    """Number of active assignments whose lease ends within a minute."""
    holds_lapsed: int
    """Number of active assignments whose lease has ended already."""
    answers_last_hour: dict[str, int]
    ended_last_hour: dict[str, int]
    races_last_hour: dict[str, int]
    time_to_assign: RecentTimeToAssign
    jobs: list[JobFigures]
    dead_letters: int
    """Number of dead letters that were neither sent again nor dismissed."""
    dead_letters_new: int
    """Number of dead letters of the last hour that were neither sent again nor dismissed."""
    unpublished: int
    audit_lag_seconds: float
    """Age of the oldest event that is in no hash chain yet; 0 if every event is in one."""
    findings: list[StoredCheck]
    examined_at: datetime | None
    crm: CrmStatus

    @property
    def crm_up(self) -> bool:
        """True if the CRM can be read."""
        return self.crm.trouble is None


def figures(
    connection: Connection,
    dialer: Dialer,
    crm: Crm | None,
    *,
    application: str,
    lanes: Lanes = ONE_LANE,
) -> Figures:
    """Read all figures for monitoring.

    `application`: the configured PostgreSQL application name, by which the sequencers' connections
    are found. `crm`: the external CRM, if any. The figures are read in several transactions, so
    they may be of slightly different times.
    """
    queues = dialer.policies
    crm_now = crm_status(connection, dialer, crm)

    def counts(query: str) -> dict[str, int]:
        return {str(name): count for name, count in connection.execute(text(query))}

    led = sequencer_statuses(connection, application=application, lanes=lanes, queues=queues)
    holds = connection.execute(text(_HOLDS)).one()
    claimed, quarantined = counts(_CLAIMED), counts(_QUARANTINED)
    ended: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for queue, state, count in connection.execute(text(_ENDED)):
        ended[state] += count
        skipped[queue] += count if state == AssignmentState.SKIPPED else 0
    now: datetime = connection.execute(text("SELECT statement_timestamp()")).scalar_one()
    findings = connection.execute(text(_FINDINGS)).mappings().all()
    letters = connection.execute(text(_DEAD_LETTERS)).one()
    return Figures(
        at=now,
        queues=[
            _queue(each, now, claimed=claimed, skipped=skipped, quarantined=quarantined)
            for each in queue_statuses(connection, queues)
        ],
        sequencer=led[0],
        lanes=led,
        holds=holds.all_holds,
        holds_lapsing=holds.lapsing,
        holds_lapsed=holds.lapsed,
        answers_last_hour=counts(_ANSWERS),
        ended_last_hour=dict(ended),
        races_last_hour=counts(_RACES),
        time_to_assign=RecentTimeToAssign(**connection.execute(text(_TIMES)).mappings().one()),
        jobs=[JobFigures(**row) for row in connection.execute(text(_JOBS)).mappings()],
        dead_letters=letters[0],
        dead_letters_new=letters[1],
        unpublished=connection.execute(text(_UNPUBLISHED)).scalar_one(),
        audit_lag_seconds=lag_seconds(connection),
        findings=[StoredCheck(**row) for row in findings],
        examined_at=min((row["examined_at"] for row in findings), default=None),
        crm=crm_now,
    )


def _queue(
    status: QueueStatus,
    now: datetime,
    *,
    claimed: Mapping[str, int],
    skipped: Mapping[str, int],
    quarantined: Mapping[str, int],
) -> QueueFigures:
    count = claimed.get(status.queue, 0)
    known = count > 0 and status.claimable is not None
    return QueueFigures(
        **status.model_dump(),
        age_seconds=(now - status.published_at).total_seconds() if status.published_at else None,
        claimed_last_hour=count,
        skipped_last_hour=skipped.get(status.queue, 0),
        quarantined=quarantined.get(status.queue, 0),
        runway_minutes=(status.claimable or 0) * 60 / count if known else None,
    )


_HOLDS = f"""
SELECT count(*) AS all_holds,
    count(*) FILTER (WHERE lease_expires_at BETWEEN statement_timestamp()
        AND statement_timestamp() + interval '1 minute') AS lapsing,
    count(*) FILTER (WHERE lease_expires_at < statement_timestamp()) AS lapsed
FROM (SELECT lease_expires_at FROM assignment.assignments WHERE state = 'active'
    ORDER BY lease_expires_at LIMIT {COUNTED_AT_MOST}) AS held
"""
_NEWEST_ANSWERS = f"""
(SELECT outcome, answered_at, received_at, assignment_id FROM assignment.requests
    WHERE answered_at > statement_timestamp() - interval '1 hour'
    ORDER BY answered_at DESC LIMIT {NEWEST}) AS newest
"""
_ANSWERS = f"SELECT outcome, count(*) FROM {_NEWEST_ANSWERS} GROUP BY outcome"
_TIMES = f"""
SELECT count(*) AS measured, avg(seconds) AS average,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) AS p95,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY seconds) AS p99
FROM (SELECT greatest(extract(epoch FROM answered_at - received_at), 0)::float8 AS seconds
    FROM {_NEWEST_ANSWERS}
    WHERE outcome = 'assigned' AND received_at IS NOT NULL
        AND answered_at > statement_timestamp() - interval '5 minutes') AS timed
"""
# Ids follow time, so the last id before the hour bounds the range of the index on (kind, id).
_NEWEST_EVENTS = f"""
(SELECT queue, details FROM assignment.events
    WHERE kind = '%s' AND at > statement_timestamp() - interval '1 hour'
        AND id > coalesce((SELECT id FROM assignment.events
            WHERE at < statement_timestamp() - interval '1 hour' - interval '1 minute'
            ORDER BY at DESC LIMIT 1), 0)
    ORDER BY id DESC LIMIT {NEWEST}) AS newest
"""
_CLAIMED = f"SELECT queue, count(*) FROM {_NEWEST_EVENTS % 'assigned'} GROUP BY queue"
_RACES = f"""
SELECT details->>'kind', count(*) FROM {_NEWEST_EVENTS % "ASSIGNMENT_RACE_CONDITION"} GROUP BY 1
"""
_ENDED = f"""
SELECT queue, state, count(*) FROM (SELECT queue, state FROM assignment.assignments
    WHERE state <> 'active' AND ended_at > statement_timestamp() - interval '1 hour'
    ORDER BY ended_at DESC LIMIT {NEWEST}) AS newest
GROUP BY queue, state
"""
_QUARANTINED = f"""
SELECT s.current_queue_type, count(*)
FROM (SELECT user_id FROM assignment.suppressions
    WHERE kind = 'quarantine' AND lifted_at IS NULL LIMIT {COUNTED_AT_MOST}) AS b
CROSS JOIN LATERAL (SELECT current_queue_type FROM user_call_scores
    WHERE user_id = b.user_id LIMIT 1) AS s
GROUP BY 1
"""
_DEAD_LETTERS = f"""
SELECT count(*), count(*) FILTER (WHERE at > clock_timestamp() - interval '1 hour')
FROM (SELECT at FROM assignment.dead_letters WHERE replayed_at IS NULL AND dismissed_at IS NULL
    ORDER BY at DESC LIMIT {COUNTED_AT_MOST}) AS unseen
"""
_UNPUBLISHED = """
SELECT count(*) FROM assignment.generations WHERE state = 'building' AND built_at IS NOT NULL
"""
_FINDINGS = """
SELECT check_name AS check, guarantee, ok, count, examples, repairable, examined_at
FROM assignment.findings ORDER BY ok, guarantee NULLS LAST, check_name
"""
JOB_NAMES = """names AS (
    (SELECT job FROM assignment.job_runs ORDER BY job LIMIT 1)
    UNION ALL
    SELECT (SELECT r.job FROM assignment.job_runs r WHERE r.job > n.job ORDER BY r.job LIMIT 1)
    FROM names n WHERE n.job IS NOT NULL
)"""
"""SQL of a CTE with the names of all jobs.

Cost: for each job, one lookup in the index on (job, id).
"""
# A job's newest runs are found by the same index.
_JOBS = f"""
WITH RECURSIVE {JOB_NAMES}, runs AS (
    SELECT r.* FROM names n CROSS JOIN LATERAL (
        SELECT * FROM assignment.job_runs WHERE job = n.job ORDER BY id DESC LIMIT {RUNS}
    ) AS r
), days AS (
    SELECT job, queue,
        max(started_at) FILTER (WHERE status = 'succeeded') AS succeeded_at,
        count(*) FILTER (WHERE status = 'failed' AND lately) AS failed_last_day,
        count(*) FILTER (WHERE error = 'locked' AND status = 'skipped' AND lately)
            AS overlapping_last_day,
        -- The periods that ended in the last day, from the first known one on, without a success.
        (floor(extract(epoch FROM statement_timestamp() - min(slot)) / seconds)
            - greatest(0, floor(
                extract(epoch FROM statement_timestamp() - interval '1 day' - min(slot)) / seconds))
            - count(DISTINCT slot) FILTER (WHERE status = 'succeeded'
                AND slot + period > statement_timestamp() - interval '1 day'
                AND slot + period <= statement_timestamp()))::int AS missed_last_day
    FROM (SELECT *, extract(epoch FROM period) AS seconds,
            started_at > statement_timestamp() - interval '1 day' AS lately
        FROM (SELECT *, CASE job WHEN 'queue.regenerate' THEN interval '1 hour'
                ELSE interval '1 day' END AS period FROM runs) AS r) AS r
    GROUP BY job, queue, seconds
)
SELECT DISTINCT ON (r.job, r.queue) r.job, r.queue, r.trigger, r.status, r.started_at,
    extract(epoch FROM r.ended_at - r.started_at)::float8 AS seconds, r.error,
    d.succeeded_at, d.failed_last_day, d.overlapping_last_day, d.missed_last_day
FROM runs r JOIN days d ON d.job = r.job AND d.queue IS NOT DISTINCT FROM r.queue
ORDER BY r.job, r.queue, r.id DESC
"""
