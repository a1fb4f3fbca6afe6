"""Turn queue rows that the dialer has assigned to agents into assignments of this system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from assignment_workers.adoption.sources import SourceTable, score
from assignment_workers.assignment.active_assignments import held
from assignment_workers.assignment.answers import Assigned, RequestAnswer
from assignment_workers.assignment.claims import idempotency
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.tables import Assignment
from assignment_workers.settings import Settings


def place_holds(
    connection: Connection, sources: Sequence[SourceTable], numbers: Mapping[str, int]
) -> None:
    """Choose the assigned rows of the dialer's tables that are to become assignments.

    The rows and the choice are stored in the temporary table `found_holds`. The function
    `take_over` inserts the assignments later in the same transaction. Each row that is not chosen
    is recorded in `adoption_decisions`, with the reason. The users of the chosen rows get the first
    positions in the generations (builds). `numbers` has the generation of each dialer queue.
    """
    connection.execute(text(holds_statement(sources)))
    connection.execute(text(JUDGE_HOLDS))
    connection.execute(_LEAVE_OTHERS, {"generations": list(numbers.values())})
    for each in sources:
        given = {"queue": each.queue, "generation": numbers[each.queue]}
        connection.execute(_PLACE_HOLDS, given)


def take_over(
    transaction: FencedTransaction, numbers: Mapping[str, int], settings: Settings
) -> None:
    """Insert an assignment for each row of the dialer that `place_holds` chose in this transaction.

    The rows are queue rows that the dialer has assigned to agents. Each assignment counts as
    claimed and accepted at the start of this transaction, and its lease begins then. An event is
    recorded for each assignment. A request of the agent is stored too, with the assignment as its
    answer. The dialer had no requests, so this request is made up. `numbers` has the generation
    (build) of each dialer queue.
    """
    kept = transaction.connection.execute(_HOLDS_KEPT).mappings().all()
    made: list[dict[str, Any]] = [
        {
            "id": transaction.new_id(),
            "request_id": f"adopted-{row['row_id']}-{numbers[row['queue']]}",
            "user_id": row["user_id"],
            "agent_id": row["agent_id"],
            "queue": row["queue"],
            "generation_id": numbers[row["queue"]],
            "rank": row["rank"],
            "score": row["score"],
            "reason": row["reason"] or "adopted",
            "term": transaction.term,
            "source": "queue",
            "state": "active",
            "version": 1,
            "claimed_at": transaction.now,
            "lease_expires_at": transaction.now + settings.lease,
            "accepted_at": transaction.now,
        }
        for row in kept
    ]
    if made:
        transaction.connection.execute(_INSERT_HOLDS, {"rows": made})
    entries.hold(transaction, [each["user_id"] for each in made])
    transaction.connection.execute(
        idempotency.STORE, {"answered": idempotency.answered(transaction, _answers(made))}
    )
    transaction.record(
        *(
            {
                "kind": EventKind.ASSIGNED,
                "queue": each["queue"],
                "user_id": each["user_id"],
                "agent_id": each["agent_id"],
                "assignment_id": each["id"],
                "request_id": each["request_id"],
                "generation_id": each["generation_id"],
                "details": {
                    "rank": each["rank"],
                    "lease_expires_at": each["lease_expires_at"],
                    "adopted": True,
                },
            }
            for each in made
        )
    )


def _answers(made: list[dict[str, Any]]) -> dict[ClaimRequest, RequestAnswer]:
    return {
        ClaimRequest(each["agent_id"], each["request_id"], each["queue"]): Assigned(
            assignment=held(each)
        )
        for each in made
    }


def holds_statement(sources: Iterable[SourceTable]) -> str:
    """Return the SQL that copies the assigned rows of these tables to a temporary table.

    The SQL `JUDGE_HOLDS` then decides which of the copied rows become assignments.
    """
    holds = " UNION ALL ".join(_holds(sources))
    return f"CREATE TEMPORARY TABLE found_holds ON COMMIT DROP AS {holds}"


def _holds(sources: Iterable[SourceTable]) -> Iterator[str]:
    for each in sources:
        yield (
            f"SELECT '{each.queue}' AS queue, '{each.table}' AS found_in, q.id AS row_id,"
            f" q.user_id, {each.agent} AS agent_id, q.assigned_at,"
            f" {score('q')} AS score, q.queue_reason AS reason,"
            " NULL::text AS rule"
            f" FROM public.{each.table} q WHERE q.status = 'assigned'"
        )


# An agent keeps the newest hold. Of several agents then left on a user, the newest one keeps them.
JUDGE_HOLDS = """
    UPDATE found_holds SET rule = 'assigned with no agent: back in the queue'
    WHERE agent_id IS NULL;
    UPDATE found_holds h SET rule = 'the agent does not exist: back in the queue'
    WHERE rule IS NULL AND NOT EXISTS (SELECT FROM public.agents a WHERE a.id = h.agent_id);
    UPDATE found_holds h SET rule = 'held already by an assignment'
    WHERE rule IS NULL AND EXISTS (SELECT FROM assignment.assignments a
        WHERE a.state = 'active' AND (a.user_id = h.user_id OR a.agent_id = h.agent_id));
    UPDATE found_holds h SET rule = 'an older hold of the agent: back in the queue'
    FROM (SELECT row_id, row_number() OVER (
              PARTITION BY agent_id ORDER BY assigned_at DESC NULLS LAST, row_id) AS n
          FROM found_holds WHERE rule IS NULL) AS numbered
    WHERE numbered.row_id = h.row_id AND numbered.n > 1;
    UPDATE found_holds h SET rule = 'an older hold of the user: the newest agent keeps them'
    FROM (SELECT row_id, row_number() OVER (
              PARTITION BY user_id ORDER BY assigned_at DESC NULLS LAST, row_id) AS n
          FROM found_holds WHERE rule IS NULL) AS numbered
    WHERE numbered.row_id = h.row_id AND numbered.n > 1;
    INSERT INTO assignment.adoption_decisions (at, found_in, row_id, user_id, agent_id, rule)
    SELECT clock_timestamp(), found_in, row_id, user_id, agent_id, rule FROM found_holds
    WHERE rule IS NOT NULL ON CONFLICT DO NOTHING
"""


_LEAVE_OTHERS = text("""
    DELETE FROM assignment.entries e USING found_holds h
    WHERE h.rule IS NULL AND e.user_id = h.user_id AND e.generation_id = ANY(:generations)
""")


# Held users were claimed first, so their positions come before all others: the order is kept.
_PLACE_HOLDS = text("""
    INSERT INTO assignment.entries (generation_id, user_id, rank, score)
    SELECT :generation, user_id, row_number() OVER (ORDER BY assigned_at, row_id)
           - count(*) OVER (), score
    FROM found_holds WHERE rule IS NULL AND queue = :queue
""")


_HOLDS_KEPT = text("""
    SELECT queue, row_id, user_id, agent_id, score, reason,
           row_number() OVER (PARTITION BY queue ORDER BY assigned_at, row_id)
              - count(*) OVER (PARTITION BY queue) AS rank
    FROM found_holds WHERE rule IS NULL ORDER BY queue, rank
""")


_INSERT_HOLDS = insert_rows(
    Assignment,
    *(
        getattr(Assignment, name)
        for name in (
            "id",
            "request_id",
            "user_id",
            "agent_id",
            "queue",
            "generation_id",
            "rank",
            "score",
            "reason",
            "term",
            "source",
            "state",
            "version",
            "claimed_at",
            "lease_expires_at",
            "accepted_at",
        )
    ),
)
