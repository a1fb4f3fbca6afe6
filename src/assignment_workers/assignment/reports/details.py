"""Single items for operators: a dialer queue, a user, an agent, a job, a race. Reads only.

A race is a conflict between two writers that was detected and resolved. Lists have a limit. Rows
have ids and times but no names of users or agents. The column `who` of an operator's action names
the operator. Texts that people typed may be in the details of events and in the column `why`. In
the row of an agent, this column has the reason of the agent's state. In the row of an operator's
action, it has the reason of the action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection, bindparam, func, select, text

from assignment_workers.assignment import phones, user_ids
from assignment_workers.assignment.phones import owners
from assignment_workers.assignment.reports.breakdown import Part
from assignment_workers.assignment.reports.figures import COUNTED_AT_MOST, NEWEST
from assignment_workers.assignment.reports.service_levels import ServiceLevels, service_levels
from assignment_workers.assignment.rows import Row, rows_of
from assignment_workers.errors import UsageError
from assignment_workers.identity import UserId
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.tables import AgentStatus, Phone

SAMPLED = 20_000
"""Approximate number of score rows that `funnel` samples to estimate its counts.

The counts are the numbers of users whom each rule excludes. The sample is taken from the rows of
all dialer queues, because PostgreSQL samples a table before it selects the rows of one dialer
queue. If the table has fewer rows, no sample is taken, and all rows of the dialer queue are read.

The function `longest` takes no sample. For it, the same number is the maximum number of claimable
users, those with the best ranks, that are read.
"""
LOOKED_BACK = 20_000
"""Number of newest assignments, of all agents, among which one agent's assignments are searched."""


USER_DIGITS = 18
AGENT_DIGITS = 9
AGENTS_ON_A_PAGE = 50
AGENT_FILTERS = {
    "all": "true",
    "holding": "a.id IS NOT NULL",
    "offered": "a.id IS NOT NULL AND a.accepted_at IS NULL",
    "idle": "g.is_active AND a.id IS NULL",
    "inactive": "NOT g.is_active",
    **{each.value: f"s.state = '{each.value}'" for each in AgentStatus},
}
"""The SQL condition of each filter of the list of agents, by the filter's name."""
AGENT_ORDERS = {
    "hold": "a.id IS NULL, g.is_active DESC, g.id",
    "agent": "g.id",
    "team": "nullif(g.team, '') NULLS LAST, g.id",
    "state": "s.state NULLS LAST, s.since, g.id",
    "held": "a.claimed_at NULLS LAST, g.id",
    "lease": "a.lease_expires_at NULLS LAST, g.id",
}
"""The SQL `ORDER BY` of each order of the list of agents, by the order's name."""


@dataclass(frozen=True)
class AgentList:
    """The choice of a page of the list of agents: filter, team, order and page number.

    `state`: the name of a filter in `AGENT_FILTERS`, such as `idle`. `sort`: the name of an order
    in `AGENT_ORDERS`, such as `lease`. `team`: only agents of this team; None: of every team.
    """

    state: str = "all"
    team: str | None = None
    sort: str = "hold"
    page: int = 1


class PoolFunnel(BaseModel):
    """The numbers of excluded users, by rule, and of eligible users in a dialer queue's pool.

    A pool is all users whose score row names the dialer queue.
    """

    counts: dict[str, int]
    """Maps the name of each rule to the number of users for whom it is the first broken rule.

    The rules are those of the dialer queue, in the order in which a user is checked against them. A
    user who breaks several rules is counted only once, at the first of these rules. The key
    `eligible`, which comes first, has the number of users who break no rule.
    """
    is_estimate: bool
    pool: int
    """Number of users in the pool, counted or estimated."""


class AgentAnswer(BaseModel):
    """The answer to one request of an agent for a user."""

    at: datetime
    queue: str | None
    """The dialer queue that the request named; None if any queue allowed to the agent would do."""
    outcome: str
    user_id: UserId | None
    """The assigned user; None if no user was assigned."""
    why: str | None
    """The reason why no user was assigned.

    For the outcome `empty`: a reason for each dialer queue. For a refusal: the code of the refusal.
    """
    reason: str | None


class RecentService(ServiceLevels):
    """The service levels of the last hour."""

    lost: int
    """Number of assignments that an event records but that have no row."""


def answers_to(
    connection: Connection,
    dialer: Dialer,
    agent: int,
    *,
    since: datetime,
    until: datetime,
    at_most: int,
) -> list[AgentAnswer]:
    """Return the newest `at_most` answers to an agent's requests in a period, the oldest first.

    Cost: a read of the answers to all agents in the period.
    """
    rows = connection.execute(
        _ANSWERS, {"agent": agent, "since": since, "until": until, "at_most": at_most}
    )
    found = [AgentAnswer(**row) for row in rows.mappings()][::-1]
    return user_ids.shown(dialer, connection, found)


def minutes(connection: Connection) -> list[Part]:
    """Return the number and the times of the assignments in each minute of the last hour.

    Times are seconds from the sending of a request to the commit of its assignment. Minutes without
    an assignment are left out. Only the newest 50,000 answers to requests are read (`NEWEST`).
    """
    return [Part(**row) for row in rows_of(connection, _MINUTES)]


def service(connection: Connection) -> RecentService:
    """Return the service levels of the last hour, and the number of lost assignments.

    The service levels include the success rate and the availability. They are computed from at most
    the newest 50,000 answers of that hour (`NEWEST`). An assignment is lost if an event of that
    hour records it but the assignment has no row. At most the newest 50,000 such events are read.
    """
    now = connection.execute(text("SELECT statement_timestamp()")).scalar_one()
    levels = service_levels(connection, since=now - timedelta(hours=1), until=now, newest=NEWEST)
    return RecentService(**dict(levels), lost=connection.execute(text(_LOST)).scalar_one())


def holds(connection: Connection, *, limit: int) -> list[Row]:
    """Return at most `limit` active assignments, beginning with the lease that ends first."""
    return rows_of(connection, _HOLDS, limit=limit)


def agents(connection: Connection, listed: AgentList) -> list[Row]:
    """Return one page of agents. Each row has `total`, the number of agents on all pages."""
    query = _AGENTS.format(condition=AGENT_FILTERS[listed.state], order=AGENT_ORDERS[listed.sort])
    return rows_of(
        connection,
        query,
        team=listed.team,
        limit=AGENTS_ON_A_PAGE,
        skipped=(listed.page - 1) * AGENTS_ON_A_PAGE,
    )


def teams(connection: Connection) -> list[Row]:
    """Return a row for each team, with counts of its agents and of its calls in the last hour.

    `agents` counts the active agents, and `holding` the agents who hold a user. `on_call` and
    `on_break` count the agents who are on a call or on break. `available` counts the active agents
    who are available and hold no user. `calls` counts the completed calls; only the newest `NEWEST`
    ended assignments of all agents are read. Agents without a team form the team `-`. The team with
    the most calls comes first.
    """
    return rows_of(connection, _TEAMS)


def call_centre(connection: Connection) -> Row:
    """Return one row with figures of the pending callbacks and of the last hour's conversions.

    `promised_at` is the earliest time that was promised for a pending callback. `promises` is the
    number of pending callbacks. `overdue` is the number of pending callbacks whose promised time is
    more than ten minutes in the past. Only the `COUNTED_AT_MOST` pending callbacks with the
    earliest promised times are read. `conversions` is the number of users who converted in the last
    hour; counting stops at `NEWEST`.
    """
    return rows_of(connection, _CALL_CENTRE)[0]


def find(
    connection: Connection, dialer: Dialer, said: str, numbers: Sequence[str] = ()
) -> list[Row]:
    """Return the users, agents and assignments that a search text names, each as `kind` and `id`.

    `said`: the search text. It is the CRM's id of a user, the number of an agent (with or without
    the word `agent` before it), the id of an assignment, or the id of a request. For the id of a
    request, the assignment that was made for the request is returned. If the request got no
    assignment, the agent who made the request is returned. `numbers`: phone numbers in E.164, by
    which users are found as well. Cost: a few index lookups.
    """
    word, _, number = said.partition(" ")
    agent = number.strip() if word.lower() == "agent" else said
    try:
        assignment: UUID | None = UUID(said)
    except ValueError:
        assignment = None
    found = rows_of(
        connection,
        _FIND,
        user=_user(connection, dialer, said),
        agent=_number(agent, AGENT_DIGITS),
        assignment=assignment,
        said=said,
    )
    by_number = owners(connection, numbers) if numbers else {}
    users = sorted({user for each in by_number.values() for user in each})
    found += [{"kind": "user", "id": user} for user in users]
    ids = user_ids.own(
        dialer, connection, (int(row["id"]) for row in found if row["kind"] == "user")
    )
    return [
        row | {"id": str(ids[int(row["id"])])} if row["kind"] == "user" else row for row in found
    ]


def _user(connection: Connection, dialer: Dialer, said: str) -> int:
    try:
        return user_ids.number_of(dialer, connection, user_ids.read(dialer, said))
    except UsageError:
        return user_ids.NOBODY


def _number(said: str, digits: int) -> int:
    is_one = said.isascii() and said.isdigit() and len(said) <= digits
    return int(said) if is_one else 0


def agent_counts(connection: Connection) -> Row:
    """Return one row of counts of agents.

    The columns count all agents, active agents, agents who hold a user, agents with an offer that
    is not accepted, idle agents, and agents in each state.
    """
    return rows_of(connection, _AGENT_COUNTS)[0]


def agent(connection: Connection, agent_id: int) -> Row | None:
    """Return one agent's row; None if the agent does not exist."""
    return next(iter(rows_of(connection, _AGENT, agent=agent_id)), None)


def agent_assignments(connection: Connection, agent_id: int, *, limit: int) -> list[Row]:
    """Return at most `limit` assignments of the agent, the newest first.

    Only the newest 20,000 assignments of all agents are searched (`LOOKED_BACK`).
    """
    return rows_of(connection, _AGENT_ASSIGNMENTS, agent=agent_id, limit=limit)


def assignment(connection: Connection, assignment_id: UUID) -> Row | None:
    """Return one assignment's row; None if the assignment does not exist."""
    return next(iter(rows_of(connection, _ASSIGNMENT, assignment=assignment_id)), None)


def user(connection: Connection, user_id: int) -> Row | None:
    """Return a user's score row; None if the user has none."""
    return next(iter(rows_of(connection, _USER, user=user_id)), None)


def user_places(connection: Connection, user_id: int) -> list[Row]:
    """Return the user's rank and state in each published generation, by dialer queue."""
    return rows_of(connection, _USER_PLACES, user=user_id)


def user_assignments(connection: Connection, user_id: int, *, limit: int) -> list[Row]:
    """Return at most `limit` assignments of the user, the newest first."""
    return rows_of(connection, _USER_ASSIGNMENTS, user=user_id, limit=limit)


def user_events(connection: Connection, user_id: int, *, limit: int) -> list[Row]:
    """Return at most `limit` events of the user, the newest first."""
    return rows_of(connection, _USER_EVENTS, user=user_id, limit=limit)


def assignment_events(connection: Connection, assignment_id: UUID, user_id: int) -> list[Row]:
    """Return the newest 100 events of an assignment of the user, the newest first."""
    return rows_of(connection, _ASSIGNMENT_EVENTS, assignment=assignment_id, user=user_id)


def head(connection: Connection, generation: int, *, limit: int) -> list[Row]:
    """Return the claimable users of a generation with the best ranks, in the order of rank."""
    return rows_of(connection, _HEAD, generation=generation, limit=limit)


def waiting(connection: Connection, generation: int, *, limit: int) -> list[Row]:
    """Return at most `limit` waiting users of a generation; the earliest end of a wait is first."""
    return rows_of(connection, _WAITING, generation=generation, limit=limit)


def longest(connection: Connection, queue: str, *, limit: int) -> list[Row]:
    """Return the claimable users of the dialer queue whose last call was longest ago.

    At most `limit` users are returned, the longest ago first. For a user who was never called, the
    time at which the score row was created counts instead. Only the 20,000 claimable users with the
    best ranks are considered (`SAMPLED`).
    """
    return rows_of(connection, _LONGEST, queue=queue, limit=limit)


def event_counts(connection: Connection, queue: str) -> list[Row]:
    """Count the last hour's events about the users of a dialer queue, such as assignments.

    The result has one row for each combination of kind, reason and outcome: at most 50 rows, those
    with the greatest counts. Not counted: acceptances, renewals, races, and events about the queue
    itself, such as a pause. Reads the newest `NEWEST` events of all dialer queues, and counts those
    of this queue.
    """
    return rows_of(connection, _EVENT_COUNTS, queue=queue)


def generations(connection: Connection, queue: str, *, limit: int) -> list[Row]:
    """Return at most `limit` generations of the dialer queue, the newest first."""
    return rows_of(connection, _GENERATIONS, queue=queue, limit=limit)


def job_runs(connection: Connection, job: str, *, limit: int) -> list[Row]:
    """Return at most `limit` runs of the job, the newest first."""
    return rows_of(connection, _JOB_RUNS, job=job, limit=limit)


def races(connection: Connection, *, limit: int) -> list[Row]:
    """Return at most `limit` events of races (conflicts between two writers), the newest first."""
    return rows_of(connection, _RACES, limit=limit)


def event(connection: Connection, number: int) -> Row | None:
    """Return one event's row by its id; None if it does not exist."""
    return next(iter(rows_of(connection, _EVENT, number=number)), None)


def actions(connection: Connection, *, limit: int) -> list[Row]:
    """Return at most `limit` actions of operators, the newest first."""
    return rows_of(connection, _ACTIONS, limit=limit)


def action(connection: Connection, number: int) -> Row | None:
    """Return the row of one operator's action by its number; None if it does not exist."""
    return next(iter(rows_of(connection, _ACTION, number=number)), None)


def funnel(connection: Connection, policy: Policy, now: datetime) -> PoolFunnel:
    """Count the users of a dialer queue by the first rule that each of them breaks.

    `policy`: the rules of the dialer queue. If there are more than 20,000 score rows (`SAMPLED`),
    the counts are estimated from a random sample of about that number of rows.
    """
    rows = float(connection.execute(text(_SCORE_ROWS)).scalar_one())
    share = min(1.0, SAMPLED / rows) if rows > 0 else 1.0
    broken = policy.broken_rule().label("broken")
    pool = select(UserCallScore.id).where(UserCallScore.current_queue_type == policy.queue)
    if share < 1.0:
        table = UserCallScore.__table__.tablesample(func.system(bindparam("percent", share * 100)))
        pool = select(table.c.id).where(table.c.current_queue_type == policy.queue)
    sample = pool.subquery("sample")
    query = (
        select(broken, func.count())
        .select_from(sample)
        .join(UserCallScore, UserCallScore.id == sample.c.id)
        .outerjoin(CrmUser, CrmUser.id == UserCallScore.user_id)
        .outerjoin(Phone, Phone.user_id == UserCallScore.user_id)
        .group_by("broken")
    )
    zones = phones.zones(connection) if policy.hours else ()
    found = {row[0]: row[1] for row in connection.execute(query, policy.at(now, zones))}
    names = ["eligible", *(rule.name for rule in policy.rules)]
    counts = {
        name: round(found.get(None if name == "eligible" else name, 0) / share) for name in names
    }
    return PoolFunnel(counts=counts, is_estimate=share < 1.0, pool=sum(counts.values()))


_ANSWERS = text("""
SELECT r.answered_at AS at, r.queue, r.outcome, a.user_id, r.answer ->> 'reason' AS reason,
       coalesce(
           (SELECT string_agg(key || ': ' || value, ', ' ORDER BY key)
            FROM jsonb_each_text(nullif(r.answer -> 'why', 'null'))),
           r.answer ->> 'code'
       ) AS why
FROM assignment.requests r LEFT JOIN assignment.assignments a ON a.id = r.assignment_id
WHERE r.agent_id = :agent AND r.answered_at BETWEEN :since AND :until
ORDER BY r.answered_at DESC LIMIT :at_most
""")
_SCORE_ROWS = (
    "SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = 'public.user_call_scores'::regclass"
)
_SHOWN = (
    "id, user_id, agent_id, queue, source, rank, score, reason, state, version, term, claimed_at,"
    " lease_expires_at, ended_at, outcome, generation_id, request_id"
)
_TOLD = (
    "id, at, kind, term, queue, user_id, agent_id, assignment_id, request_id, generation_id,"
    " details || coalesce((SELECT texts FROM assignment.event_texts WHERE event_id = events.id),"
    " '{}') AS details"
)
_MINUTES = f"""
SELECT date_trunc('minute', answered_at) AS at, count(*) AS assignments,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) AS p95,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY seconds) AS p99
FROM (SELECT answered_at, outcome,
        greatest(extract(epoch FROM answered_at - received_at), 0)::float8 AS seconds
    FROM assignment.requests WHERE answered_at > statement_timestamp() - interval '1 hour'
    ORDER BY answered_at DESC LIMIT {NEWEST}) AS newest
WHERE outcome = 'assigned'
GROUP BY 1 ORDER BY 1
"""
_LOST = f"""
SELECT count(*) FROM (SELECT assignment_id FROM assignment.events
    WHERE at > statement_timestamp() - interval '1 hour' AND kind = 'assigned'
    ORDER BY at DESC LIMIT {NEWEST}) AS n
WHERE NOT EXISTS (SELECT 1 FROM assignment.assignments a WHERE a.id = n.assignment_id)
"""
_HOLDS = f"""
SELECT {_SHOWN} FROM assignment.assignments WHERE state = 'active'
ORDER BY lease_expires_at LIMIT :limit
"""
_AGENTS = """
SELECT g.id, g.is_active, nullif(g.team, '') AS team, a.id AS assignment_id, a.user_id, a.queue,
    a.claimed_at, a.lease_expires_at, a.accepted_at, s.state, s.since, s.why,
    count(*) OVER () AS total
FROM agents g LEFT JOIN assignment.assignments a ON a.agent_id = g.id AND a.state = 'active'
LEFT JOIN assignment.agents_state s ON s.agent_id = g.id
WHERE {condition} AND (cast(:team AS text) IS NULL OR coalesce(nullif(g.team, ''), '-') = :team)
ORDER BY {order} LIMIT :limit OFFSET :skipped
"""
_TEAMS = f"""
SELECT coalesce(nullif(g.team, ''), '-') AS team, count(*) FILTER (WHERE g.is_active) AS agents,
    count(a.id) AS holding, count(*) FILTER (WHERE s.state = 'on_call') AS on_call,
    count(*) FILTER (WHERE g.is_active AND a.id IS NULL AND s.state = 'available') AS available,
    count(*) FILTER (WHERE s.state = 'break') AS on_break,
    coalesce(sum(c.calls), 0)::bigint AS calls
FROM agents g LEFT JOIN assignment.assignments a ON a.agent_id = g.id AND a.state = 'active'
LEFT JOIN assignment.agents_state s ON s.agent_id = g.id
LEFT JOIN (SELECT agent_id, count(*) FILTER (WHERE state = 'completed') AS calls
    FROM (SELECT agent_id, state FROM assignment.assignments
        WHERE state <> 'active' AND ended_at > statement_timestamp() - interval '1 hour'
        ORDER BY ended_at DESC LIMIT {NEWEST}) AS newest
    GROUP BY agent_id) AS c ON c.agent_id = g.id
GROUP BY 1 ORDER BY calls DESC, 1
"""
_CALL_CENTRE = f"""
SELECT p.*, (SELECT count(*) FROM (SELECT FROM conversions
        WHERE converted_at > timezone('UTC', statement_timestamp()) - interval '1 hour'
        LIMIT {NEWEST}) AS lately) AS conversions
FROM (SELECT min(scheduled_for) AT TIME ZONE 'UTC' AS promised_at, count(*) AS promises,
        count(*) FILTER (WHERE scheduled_for < timezone('UTC', statement_timestamp())
            - interval '10 minutes') AS overdue
    FROM (SELECT scheduled_for FROM callbacks WHERE status = 'pending'
        ORDER BY scheduled_for LIMIT {COUNTED_AT_MOST}) AS pending) AS p
"""
_FIND = """
SELECT 'user' AS kind, user_id::text AS id FROM user_call_scores WHERE user_id = :user
UNION SELECT 'agent', id::text FROM agents WHERE id = :agent
UNION SELECT 'assignment', id::text FROM assignment.assignments WHERE id = cast(:assignment AS uuid)
UNION SELECT 'assignment', id::text FROM assignment.assignments WHERE request_id = :said
UNION SELECT 'agent', agent_id::text FROM assignment.requests
    WHERE request_id = :said AND assignment_id IS NULL
ORDER BY kind DESC, id
"""
_AGENT_COUNTS = """
SELECT count(*) AS agents, count(*) FILTER (WHERE g.is_active) AS active,
    count(a.id) AS holding, count(*) FILTER (WHERE g.is_active AND a.id IS NULL) AS idle,
    count(a.id) FILTER (WHERE a.accepted_at IS NULL) AS offered,
    count(*) FILTER (WHERE s.state = 'available') AS available,
    count(*) FILTER (WHERE s.state = 'on_call') AS on_call,
    count(*) FILTER (WHERE s.state = 'wrap_up') AS wrap_up,
    count(*) FILTER (WHERE s.state = 'break') AS on_break,
    count(*) FILTER (WHERE s.state = 'offline') AS offline
FROM agents g LEFT JOIN assignment.assignments a ON a.agent_id = g.id AND a.state = 'active'
LEFT JOIN assignment.agents_state s ON s.agent_id = g.id
"""
_AGENT = "SELECT id, is_active, is_ai_agent, allowed_queues FROM agents WHERE id = :agent"
_AGENT_ASSIGNMENTS = f"""
SELECT {_SHOWN} FROM (SELECT * FROM assignment.assignments ORDER BY id DESC LIMIT {LOOKED_BACK})
    AS newest
WHERE agent_id = :agent ORDER BY id DESC LIMIT :limit
"""
_ASSIGNMENT = f"SELECT {_SHOWN} FROM assignment.assignments WHERE id = :assignment"
_USER = """
SELECT user_id, current_score, total_attempts, successful_calls, last_outcome, last_call_at,
    next_call_after, current_queue_type, is_active FROM user_call_scores WHERE user_id = :user
"""
_USER_PLACES = """
SELECT g.queue, g.id AS generation, e.rank, e.score, e.state, e.available_from, e.reason
FROM assignment.generations g JOIN assignment.entries e ON e.generation_id = g.id
WHERE g.state = 'published' AND e.user_id = :user ORDER BY g.queue
"""
_USER_ASSIGNMENTS = f"""
SELECT {_SHOWN} FROM assignment.assignments WHERE user_id = :user
ORDER BY claimed_at DESC LIMIT :limit
"""
_USER_EVENTS = f"""
SELECT {_TOLD} FROM assignment.events WHERE user_id = :user ORDER BY id DESC LIMIT :limit
"""
_ASSIGNMENT_EVENTS = f"""
SELECT {_TOLD} FROM assignment.events WHERE user_id = :user AND assignment_id = :assignment
ORDER BY id DESC LIMIT 100
"""
_HEAD = """
SELECT user_id, rank, score FROM assignment.entries
WHERE generation_id = :generation AND state = 'ready' ORDER BY rank LIMIT :limit
"""
_WAITING = """
SELECT user_id, rank, score, available_from FROM assignment.entries
WHERE generation_id = :generation AND state = 'waiting' ORDER BY available_from LIMIT :limit
"""
_LONGEST = f"""
SELECT e.user_id, e.rank, e.score, s.last_call_at, s.created_at, s.total_attempts
FROM (SELECT e.user_id, e.rank, e.score FROM assignment.entries e
    WHERE e.generation_id = (SELECT id FROM assignment.generations
        WHERE queue = :queue AND state = 'published') AND e.state = 'ready'
    ORDER BY e.rank LIMIT {SAMPLED}) AS e
JOIN user_call_scores s ON s.user_id = e.user_id
ORDER BY coalesce(s.last_call_at, s.created_at), e.rank LIMIT :limit
"""
_EVENT_COUNTS = f"""
SELECT kind, details->>'reason' AS reason, details->>'outcome' AS outcome, count(*) AS users
FROM (SELECT kind, queue, details FROM assignment.events
    WHERE at > statement_timestamp() - interval '1 hour' ORDER BY at DESC LIMIT {NEWEST}) AS newest
WHERE queue = :queue AND kind NOT IN ('accepted', 'renewed', 'ASSIGNMENT_RACE_CONDITION',
    'generation_published', 'generation_retired', 'queue_paused', 'queue_resumed')
GROUP BY 1, 2, 3 ORDER BY users DESC, kind LIMIT 50
"""
_GENERATIONS = """
SELECT id, state, trigger, started_at, built_at, published_at, size, error
FROM assignment.generations WHERE queue = :queue ORDER BY id DESC LIMIT :limit
"""
_JOB_RUNS = """
SELECT id, job, queue, trigger, slot, status, started_at,
    extract(epoch FROM ended_at - started_at)::float8 AS seconds, counts, error
FROM assignment.job_runs WHERE job = :job ORDER BY id DESC LIMIT :limit
"""
_RACES = f"""
SELECT {_TOLD} FROM assignment.events WHERE kind = 'ASSIGNMENT_RACE_CONDITION'
ORDER BY id DESC LIMIT :limit
"""
_EVENT = f"SELECT {_TOLD} FROM assignment.events WHERE id = :number"
_ACTED = "id, at, who, action, subject, why, outcome"
_ACTIONS = f"SELECT {_ACTED} FROM assignment.operator_actions ORDER BY id DESC LIMIT :limit"
_ACTION = f"SELECT {_ACTED} FROM assignment.operator_actions WHERE id = :number"
