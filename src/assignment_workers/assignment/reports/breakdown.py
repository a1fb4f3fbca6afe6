"""Service levels of a period by dialer queue, by agents' team, and by time. Reads only.

Cost: a read of all assignments since the beginning of the period, by the primary key, because the
id of an assignment begins with the time of its claim. For each assignment of the period, the
request is looked up by its id, and the agent too. `unanswered` reads other rows: the counts of
answers in the hours of the period.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import Connection, text

from assignment_workers.assignment.answer_counts import LOST
from assignment_workers.schema.tables import AnswerKind

BARS = 48
"""Number of equal parts into which a report's period is divided.

A chart of the report has one bar for each part.
"""


class Share(BaseModel):
    """The counts and times of a period's assignments, for one dialer queue or one team of agents.

    Times are seconds from the sending of a request to the commit of its assignment.
    """

    name: str
    assignments: int
    completed: int
    skipped: int
    released: int
    expired: int
    average: float | None
    p99: float | None


class Part(BaseModel):
    """The number and the times of the assignments in one part of a period.

    The part begins at `at`. Times are seconds from the sending of a request to the commit of its
    assignment.
    """

    at: datetime
    assignments: int
    p50: float | None
    p95: float | None
    p99: float | None


class UnansweredPart(BaseModel):
    """The number of requests that got no usable answer in one part of a period.

    The part begins at `at`.
    """

    at: datetime
    count: int


class Breakdown(BaseModel):
    """The counts and times of a period's assignments: by dialer queue, by team and over time.

    The figures over time are those of equal parts of the period. Queues, teams and parts without an
    assignment are left out.
    """

    queues: list[Share]
    teams: list[Share]
    """The counts and times for each team of agents; agents without a team are under `no team`."""
    parts: list[Part]


def breakdown(connection: Connection, *, since: datetime, until: datetime) -> Breakdown:
    """Return figures of the assignments from `since` to `until`: by queue, by team and over time.

    Figures: counts, and the time from a request to its assignment. For the figures over time, the
    period is divided into `BARS` equal parts.
    """
    parameters = {"since": since, "until": until, "length": (until - since) / BARS}

    def rows(query: str) -> list[Share]:
        found = connection.execute(text(query), parameters).mappings()
        return [Share(**row) for row in found]

    return Breakdown(
        queues=rows(_SHARES.format(name="a.queue")),
        teams=rows(_SHARES.format(name="coalesce(nullif(g.team, ''), 'no team')")),
        parts=parts(connection, since=since, until=until),
    )


def parts(
    connection: Connection,
    *,
    since: datetime,
    until: datetime,
    number: int = BARS,
    queue: str | None = None,
) -> list[Part]:
    """Return the number and times of the assignments in each of `number` equal parts of a period.

    Times are seconds from the sending of a request to the commit of its assignment. The period is
    from `since` to `until`. Parts without an assignment are left out. `queue`: only assignments of
    this dialer queue are counted; None: those of all.
    """
    parameters = {"since": since, "until": until, "length": (until - since) / number}
    query = _PARTS if queue is None else _PARTS_OF_QUEUE
    found = connection.execute(text(query), parameters | ({"queue": queue} if queue else {}))
    return [Part(**row) for row in found.mappings()]


def unanswered(
    connection: Connection, *, since: datetime, until: datetime, number: int = BARS
) -> list[UnansweredPart]:
    """Count the requests without a usable answer in each of the `number` equal parts of a period.

    A request counts if its answer was `too_late` (the deadline had passed), `unavailable`, or an
    internal error. A request also counts if no answer came within the time limit of the client, the
    program that sent the request. A request also counts if the client disconnected before the
    answer was sent.

    The period is from `since` to `until`. Parts without such a request are left out. The gateway
    and the clients counted the requests (`assignment.answer_counts`).
    """
    parameters = {"since": since, "until": until, "length": (until - since) / number}
    parameters["lost"] = sorted({*LOST, AnswerKind.TOO_LATE})
    found = connection.execute(text(_UNANSWERED), parameters).mappings()
    return [UnansweredPart(**row) for row in found]


# An assignment's id begins with the milliseconds of its claim: the primary key bounds the period.
_OF_THE_PERIOD = """
assignment.assignments a
LEFT JOIN LATERAL (
    SELECT greatest(extract(epoch FROM answered_at - received_at), 0)::float8 AS seconds
    FROM assignment.requests WHERE request_id = a.request_id
) AS r ON true
LEFT JOIN agents g ON g.id = a.agent_id
WHERE a.claimed_at BETWEEN :since AND :until
    AND a.id >= rpad(lpad(to_hex(
        floor(extract(epoch FROM cast(:since AS timestamptz)) * 1000)::bigint
    ), 12, '0'), 32, '0')::uuid
"""
_SHARES = f"""
SELECT {{name}} AS name, count(*) AS assignments,
    count(*) FILTER (WHERE a.state = 'completed') AS completed,
    count(*) FILTER (WHERE a.state = 'skipped') AS skipped,
    count(*) FILTER (WHERE a.state = 'released') AS released,
    count(*) FILTER (WHERE a.state = 'expired') AS expired,
    avg(r.seconds) AS average, percentile_cont(0.99) WITHIN GROUP (ORDER BY r.seconds) AS p99
FROM {_OF_THE_PERIOD} GROUP BY 1 ORDER BY 2 DESC, 1
"""
_EACH_PART = f"""
SELECT date_bin(:length, a.claimed_at, :since) AS at, count(*) AS assignments,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY r.seconds) AS p50,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY r.seconds) AS p95,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY r.seconds) AS p99
FROM {_OF_THE_PERIOD} {{condition}} GROUP BY 1 ORDER BY 1
"""
_PARTS_OF_QUEUE = _EACH_PART.format(condition="AND a.queue = :queue")
_PARTS = _EACH_PART.format(condition="")
_UNANSWERED = """
SELECT date_bin(:length, minute, :since) AS at, sum(count)::bigint AS count
FROM (
    SELECT hour + (place - 1) * interval '1 minute' AS minute, count
    FROM assignment.answer_counts CROSS JOIN unnest(by_minute) WITH ORDINALITY AS m (count, place)
    WHERE hour BETWEEN date_trunc('hour', cast(:since AS timestamptz)) AND :until
        AND kind = ANY(:lost) AND count > 0
) AS counted
WHERE minute BETWEEN :since AND :until GROUP BY 1 ORDER BY 1
"""
