"""Queries for rows that disagree with the events, or with other rows.

Each query returns one text column, with a row for each assignment, request, generation, dialer
queue or term that breaks a guarantee. Old events and old answers to requests are deleted, each
after a retention of their own. Therefore some queries check only rows that are recent enough. The
SQL parameter `:since` is the time from which on all events are still stored. The SQL parameter
`:answers_since` is the time from which on all answers are still stored. Each query is one or two
hash joins over the stored records. This process has only the breaches in memory.
"""

from __future__ import annotations

from typing import NamedTuple

from assignment_workers.assignment.active_assignments import MADE_BY_DIALER


class Record(NamedTuple):
    """A check of one guarantee: a SQL query for the stored objects that break the guarantee.

    `guarantee`: the guarantee's number in docs/how-it-works.md. `query`: each row of its result is
    the name of an object, such as "assignment 12". `what`: a text that follows the name in a
    message to an operator, such as "was made without an event".
    """

    guarantee: int
    what: str
    query: str


def was_set_back(column: str) -> str:
    """Return a SQL condition, true if the clock passed the time in this column twice.

    If the database's clock is set back, it passes the times of a certain period twice. An event of
    the kind `clock_stepped` records when the clock was set back, and by how many seconds. The
    condition is true for a time in that period, or up to a second before or after that period. If
    two times are in that period, only the ids of their events show which time came first. Therefore
    the checks make exceptions for such times. `column`: the SQL name of the column.
    """
    return f"""EXISTS (SELECT 1 FROM assignment.events step WHERE step.kind = 'clock_stepped'
        AND (step.details->>'seconds')::float8 < 0 AND {column} BETWEEN step.at - interval '1 s'
        AND step.at + interval '1 s' * (1 - (step.details->>'seconds')::float8))"""


# A transaction's time is that of its beginning. A hold that an adopted dialer made may end while
# the transaction runs.
DIALERS = f"starts_with(request_id, '{MADE_BY_DIALER}')"

HOLDS = (
    Record(
        1,
        "was claimed before another hold on its user had ended",
        f"""
        SELECT 'assignment ' || id
        FROM (
            SELECT id, claimed_at, lag(coalesce(ended_at, 'infinity')) OVER earlier AS free_at,
                {DIALERS} OR lag({DIALERS}) OVER earlier AS is_dialers
            FROM assignment.assignments
            WINDOW earlier AS (PARTITION BY user_id ORDER BY claimed_at, ended_at)
        ) AS held
        WHERE claimed_at < free_at AND NOT (coalesce(is_dialers, false) AND free_at < 'infinity')
            AND NOT {was_set_back("claimed_at")}
        """,
    ),
    Record(
        1,
        "was claimed before another hold of its agent had ended",
        f"""
        SELECT 'assignment ' || id
        FROM (
            SELECT id, claimed_at, lag(coalesce(ended_at, 'infinity')) OVER earlier AS free_at,
                {DIALERS} OR lag({DIALERS}) OVER earlier AS is_dialers
            FROM assignment.assignments
            WINDOW earlier AS (PARTITION BY agent_id ORDER BY claimed_at, ended_at)
        ) AS held
        WHERE claimed_at < free_at AND NOT (coalesce(is_dialers, false) AND free_at < 'infinity')
            AND NOT {was_set_back("claimed_at")}
        """,
    ),
    Record(
        2,
        "is told of, and its row is gone",
        """
        SELECT DISTINCT 'assignment ' || e.assignment_id
        FROM assignment.events e LEFT JOIN assignment.assignments a ON a.id = e.assignment_id
        WHERE e.assignment_id IS NOT NULL AND a.id IS NULL
        """,
    ),
    Record(
        2,
        "is not what its event tells",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        JOIN assignment.events e ON e.assignment_id = a.id AND e.kind = 'assigned'
        WHERE (a.user_id, a.agent_id, a.queue, a.request_id, a.generation_id, a.rank, a.claimed_at)
            IS DISTINCT FROM (e.user_id, e.agent_id, e.queue, e.request_id, e.generation_id,
                (e.details->>'rank')::bigint, e.at)
        """,
    ),
    # `ended_xid` is the transaction of the end; `xmin` is the low 32 bits of the transaction that
    # wrote the row.
    Record(
        2,
        "ended in the transaction that published a generation",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        JOIN assignment.events e ON e.kind = 'generation_published' AND e.at = a.ended_at
            AND e.xmin::text = (a.ended_xid % 4294967296)::text
        """,
    ),
    Record(
        8,
        "has a version that its changes do not explain",
        """
        SELECT 'assignment ' || id FROM assignment.assignments
        WHERE version <> CASE state WHEN 'active' THEN 1 ELSE 2 END
        """,
    ),
    Record(
        9,
        "was made under another term than its event",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        JOIN assignment.events e ON e.assignment_id = a.id AND e.kind = 'assigned'
        WHERE a.term <> coalesce(e.term, 0)
        """,
    ),
    Record(
        10,
        "was completed with a callback to come, and none was promised",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        LEFT JOIN assignment.events e
            ON e.assignment_id = a.id AND e.kind = 'callback_promised' AND e.at = a.ended_at
        WHERE a.outcome = ANY(:promising) AND a.ended_at >= :since AND e.id IS NULL
        """,
    ),
    Record(
        10,
        "was the call of a callback, and what became of that is not told",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        LEFT JOIN assignment.events e ON e.assignment_id = a.id AND e.at = a.ended_at
            AND e.kind IN ('callback_kept', 'callback_postponed', 'callback_cancelled',
                'callback_ended_elsewhere')
        WHERE a.source = 'callback' AND a.state = 'completed' AND a.ended_at >= :since
            AND e.id IS NULL
        """,
    ),
    Record(
        11,
        "was made without an event",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        LEFT JOIN assignment.events e ON e.assignment_id = a.id AND e.kind = 'assigned'
        WHERE a.claimed_at >= :since AND e.id IS NULL
        """,
    ),
    Record(
        11,
        "ended without an event",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        LEFT JOIN assignment.events e ON e.assignment_id = a.id
            AND e.kind = coalesce(a.ended_how, a.state) AND e.at = a.ended_at
            AND e.details->>'outcome' IS NOT DISTINCT FROM a.outcome
        WHERE a.ended_at >= :since AND e.id IS NULL
        """,
    ),
    Record(
        11,
        "is active, and an event tells of its end",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        JOIN assignment.events e ON e.assignment_id = a.id
        WHERE a.state = 'active' AND e.kind IN ('completed', 'skipped', 'deferred', 'closed',
            'released', 'expired', 'offer_lapsed')
        """,
    ),
    Record(
        11,
        "has another lease than its events tell",
        """
        SELECT 'assignment ' || a.id
        FROM assignment.assignments a
        JOIN (
            SELECT assignment_id, max((details->>'lease_expires_at')::timestamptz) AS until
            FROM assignment.events WHERE kind IN ('assigned', 'accepted', 'renewed')
            GROUP BY assignment_id
        ) AS e ON e.assignment_id = a.id
        WHERE a.lease_expires_at IS DISTINCT FROM e.until
        """,
    ),
)

ANSWERS = (
    Record(
        4,
        "was given a user of a dialer queue that it did not ask for",
        """
        SELECT 'request ' || r.request_id
        FROM assignment.requests r JOIN assignment.assignments a ON a.request_id = r.request_id
        WHERE a.queue <> r.queue
        """,
    ),
    Record(
        5,
        "is answered with another agent's assignment",
        """
        SELECT 'request ' || r.request_id
        FROM assignment.requests r JOIN assignment.assignments a ON a.id = r.assignment_id
        WHERE a.agent_id <> r.agent_id
        """,
    ),
    Record(
        5,
        "has an assignment and another answer",
        """
        SELECT 'request ' || r.request_id
        FROM assignment.requests r JOIN assignment.assignments a ON a.request_id = r.request_id
        WHERE a.id IS DISTINCT FROM r.assignment_id
        """,
    ),
    Record(
        5,
        "has an assignment and no answer",
        f"""
        SELECT 'request ' || a.request_id
        FROM assignment.assignments a
        LEFT JOIN assignment.requests r ON r.request_id = a.request_id
        WHERE a.claimed_at >= :answers_since AND r.request_id IS NULL
            AND NOT {DIALERS.replace("request_id", "a.request_id")}
        """,
    ),
    Record(
        5,
        "has two answers in one row",
        """
        SELECT 'request ' || request_id FROM assignment.requests
        WHERE (outcome, assignment_id::text)
            IS DISTINCT FROM (answer->>'outcome', answer->'assignment'->>'id')
        """,
    ),
    Record(
        6,
        "is answered with an assignment that was not active at that instant",
        f"""
        SELECT 'request ' || r.request_id
        FROM assignment.requests r JOIN assignment.assignments a ON a.id = r.assignment_id
        WHERE NOT r.answered_at BETWEEN a.claimed_at AND a.ended_at
            AND NOT {was_set_back("r.answered_at")}
        """,
    ),
    Record(
        6,
        "was given a user after its deadline, or was told too soon that it was late",
        """
        SELECT 'request ' || request_id FROM assignment.requests
        WHERE CASE outcome
            WHEN 'assigned' THEN deadline <= answered_at
            WHEN 'too_late' THEN deadline IS NULL OR deadline > answered_at
        END
        """,
    ),
    Record(
        6,
        "was told of a pause while there was none",
        f"""
        WITH pauses AS (
            SELECT queue, kind, at, lead(at, 1, 'infinity') OVER told AS next_at,
                row_number() OVER told = 1 AS is_first
            FROM assignment.events WHERE kind IN ('queue_paused', 'queue_resumed')
            WINDOW told AS (PARTITION BY queue ORDER BY id)
        ), paused AS (
            SELECT queue, at AS since, next_at AS until FROM pauses WHERE kind = 'queue_paused'
            UNION ALL
            SELECT queue, '-infinity', at FROM pauses WHERE kind = 'queue_resumed' AND is_first
            UNION ALL
            SELECT name, paused_at, 'infinity' FROM assignment.queues WHERE paused_at < :since
        )
        SELECT 'request ' || r.request_id
        FROM assignment.requests r
        LEFT JOIN paused p ON p.queue = r.queue AND r.answered_at BETWEEN p.since AND p.until
        WHERE r.outcome = 'paused' AND r.queue IS NOT NULL AND r.answered_at >= :since
            AND p.queue IS NULL AND NOT {was_set_back("r.answered_at")}
        """,
    ),
    Record(
        9,
        "was begun twice: the database moved back, and lost what it had committed since",
        """
        SELECT DISTINCT 'term ' || (details->>'current') FROM assignment.events
        WHERE kind = 'ASSIGNMENT_RACE_CONDITION' AND details->>'kind' = 'term_begun_twice'
        """,
    ),
    Record(
        9,
        "was answered under a term that had not begun or was over",
        f"""
        WITH terms AS (
            SELECT term, at, lead(at, 1, 'infinity')
                OVER (PARTITION BY coalesce(details->>'lane', 'default') ORDER BY id) AS until
            FROM assignment.events WHERE kind = 'term_begun'
        )
        SELECT 'request ' || r.request_id
        FROM assignment.requests r
        CROSS JOIN (SELECT max(term) AS last FROM assignment.sequencer) AS s
        LEFT JOIN terms t ON t.term = r.term
        WHERE r.term > s.last OR NOT r.answered_at BETWEEN t.at AND t.until
            AND NOT {was_set_back("r.answered_at")}
        """,
    ),
)

QUEUES = (
    Record(
        2,
        "is told of, and its row is gone",
        """
        SELECT DISTINCT 'generation ' || e.generation_id
        FROM assignment.events e LEFT JOIN assignment.generations g ON g.id = e.generation_id
        WHERE e.generation_id IS NOT NULL AND g.id IS NULL
        """,
    ),
    Record(
        11,
        "is not what its events tell",
        """
        SELECT 'generation ' || g.id
        FROM assignment.generations g
        LEFT JOIN (
            SELECT generation_id, max(at) FILTER (WHERE kind = 'generation_published') AS published,
                max(at) FILTER (WHERE kind = 'generation_retired') AS retired,
                bool_or(kind = 'generation_failed') AS failed
            FROM assignment.events
            WHERE kind IN ('generation_published', 'generation_retired', 'generation_failed')
            GROUP BY generation_id
        ) AS e ON e.generation_id = g.id
        WHERE g.started_at >= :since AND (g.published_at, g.retired_at, g.state) IS DISTINCT FROM (
            e.published, e.retired, CASE WHEN e.failed THEN 'failed'
            WHEN e.retired IS NOT NULL THEN 'retired'
            WHEN e.published IS NOT NULL THEN 'published' ELSE 'building' END)
        """,
    ),
    Record(
        11,
        "is not paused or resumed as its last event tells",
        """
        SELECT 'dialer queue ' || q.name
        FROM assignment.queues q
        LEFT JOIN (
            SELECT DISTINCT ON (queue) queue, kind, at
            FROM assignment.events WHERE kind IN ('queue_paused', 'queue_resumed')
            ORDER BY queue, id DESC
        ) AS e ON e.queue = q.name
        WHERE q.paused_at IS DISTINCT FROM CASE e.kind WHEN 'queue_paused' THEN e.at END
            AND NOT (e.kind IS NULL AND q.paused_at < :since)
        """,
    ),
)

RECORDS = (*HOLDS, *ANSWERS, *QUEUES)
