"""Every guarantee that the database can show, checked.

And what can be mended without a loss, mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from sqlalchemy import (
    Connection,
    TextClause,
    delete,
    exists,
    func,
    insert,
    null,
    select,
    text,
    update,
)

from assignment_workers.assignment.answers import Done
from assignment_workers.assignment.entries import HELD, PUBLISHED, READY, WAITING
from assignment_workers.assignment.holds import ACTIVE
from assignment_workers.assignment.turn import Turn
from assignment_workers.schema import tables
from assignment_workers.schema.tables import Assignment, Entry


class Finding(BaseModel):
    """One check. `count` is how many breaches there are, `examples` some of them."""

    check: str
    guarantee: int | None
    ok: bool
    count: int
    examples: list[str]
    repairable: bool


@dataclass(frozen=True)
class Check:
    """A query whose rows, of one text column each, are breaches. At most a hundred are read."""

    name: str
    guarantee: int | None
    query: str
    repairable: bool = False

    @property
    def bounded(self) -> TextClause:
        """The query, read no further than a hundred rows."""
        return text(f"SELECT breach FROM ({self.query}) AS found (breach) LIMIT 100")  # noqa: S608


def examine(connection: Connection) -> list[Finding]:
    """Run every check in one read-only snapshot of the database, so that none sees half a turn."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    findings = []
    for check in CHECKS:
        breaches = [str(breach) for breach in connection.execute(check.bounded).scalars()]
        findings.append(
            Finding(
                check=check.name,
                guarantee=check.guarantee,
                ok=not breaches,
                count=len(breaches),
                examples=breaches[:5],
                repairable=check.repairable,
            )
        )
    return findings


def keep(connection: Connection, findings: Sequence[Finding]) -> None:
    """Replace what was found before, all together. The caller commits."""
    connection.execute(delete(tables.Finding))
    connection.execute(
        insert(tables.Finding).values(examined_at=func.clock_timestamp()),
        [each.model_dump(exclude={"check"}) | {"check_name": each.check} for each in findings],
    )


def repair(turn: Turn) -> Done:
    """Bring the entries of the published generations in line with the holds.

    No assignment changes.
    """
    published = Entry.generation_id.in_(PUBLISHED)
    held = exists(
        select(1)
        .select_from(Assignment)
        .where(Assignment.user_id == Entry.user_id, Assignment.state == ACTIVE)
    )
    marked = turn.connection.execute(
        update(Entry)
        .where(published, Entry.state.in_([READY, WAITING]), held)
        .values(state=HELD, available_from=null())
    )
    freed = turn.connection.execute(
        update(Entry).where(published, Entry.state == HELD, ~held).values(state=READY)
    )
    return Done(counts={"marked_held": marked.rowcount, "given_back": freed.rowcount})


CHECKS = (
    Check(
        "no user has two active assignments",
        1,
        "SELECT 'user ' || user_id FROM assignment.assignments WHERE state = 'active'"
        " GROUP BY user_id HAVING count(*) > 1",
    ),
    Check(
        "no agent has two active assignments",
        1,
        "SELECT 'agent ' || agent_id FROM assignment.assignments WHERE state = 'active'"
        " GROUP BY agent_id HAVING count(*) > 1",
    ),
    Check(
        "the indexes that keep holds single are in place",
        1,
        "SELECT name || ' is missing or invalid' FROM unnest(ARRAY['uq_assignments_active_user',"
        " 'uq_assignments_active_agent']) AS name WHERE NOT EXISTS (SELECT 1 FROM pg_index"
        " WHERE indexrelid = to_regclass('assignment.' || name) AND indisunique AND indisvalid)",
    ),
    Check(
        "every held user is marked held in the published generations",
        2,
        "SELECT 'user ' || a.user_id || ' in generation ' || e.generation_id"
        " FROM assignment.assignments a JOIN assignment.entries e ON e.user_id = a.user_id"
        " JOIN assignment.generations g ON g.id = e.generation_id AND g.state = 'published'"
        " WHERE a.state = 'active' AND e.state IN ('ready', 'waiting')",
        repairable=True,
    ),
    Check(
        "nobody is marked held without an active assignment",
        2,
        "SELECT 'user ' || e.user_id || ' in generation ' || e.generation_id"
        " FROM assignment.generations g JOIN assignment.entries e ON e.generation_id = g.id"
        " WHERE g.state = 'published' AND e.state = 'held' AND NOT EXISTS (SELECT 1"
        " FROM assignment.assignments a WHERE a.user_id = e.user_id AND a.state = 'active')",
        repairable=True,
    ),
    Check(
        "every published generation has its entries",
        2,
        "SELECT 'generation ' || id FROM assignment.generations WHERE state = 'published'"
        " AND to_regclass('assignment.entries_' || id) IS NULL",
    ),
    Check(
        "no generation has waited longer than 5 minutes to be published",
        2,
        "SELECT 'generation ' || id FROM assignment.generations WHERE state = 'building'"
        " AND built_at < statement_timestamp() - interval '5 minutes'",
    ),
    Check(
        "every answered request agrees with its assignment",
        5,
        "SELECT 'request ' || r.request_id FROM assignment.requests r"
        " JOIN assignment.assignments a ON a.id = r.assignment_id WHERE a.agent_id <> r.agent_id"
        " AND r.answered_at > statement_timestamp() - interval '1 day'",
    ),
    Check(
        "no hold outlives its lease by more than 2 minutes",
        7,
        "SELECT 'assignment ' || id FROM assignment.assignments WHERE state = 'active'"
        " AND lease_expires_at < statement_timestamp() - interval '2 minutes'",
    ),
    Check(
        "no event is of a term that has not begun",
        9,
        "SELECT 'event ' || e.id || ' of term ' || e.term FROM assignment.events e"
        " JOIN assignment.sequencer s ON s.lane = 'default' WHERE e.term > s.term"
        " AND e.at > statement_timestamp() - interval '1 day'",
    ),
    Check(
        "every assignment of the last day has left its event",
        11,
        "SELECT 'assignment ' || a.id FROM assignment.assignments a"
        " WHERE a.claimed_at > statement_timestamp() - interval '1 day'"
        # An id begins with the milliseconds of the claim: the primary key bounds what is read.
        " AND a.id >= rpad(lpad(to_hex((extract(epoch FROM statement_timestamp()"
        " - interval '1 day') * 1000)::bigint), 12, '0'), 32, '0')::uuid AND NOT EXISTS (SELECT 1"
        " FROM assignment.events e WHERE e.user_id = a.user_id AND e.assignment_id = a.id"
        " AND e.kind = 'assigned')",
    ),
    Check(
        "no callback is overdue by more than an hour",
        None,
        "SELECT 'callback ' || id || ' of user ' || user_id FROM public.callbacks"
        " WHERE status = 'pending' AND scheduled_for"
        " < timezone('UTC', clock_timestamp() - interval '1 hour') ORDER BY scheduled_for",
    ),
    Check(
        "no job has been running for more than an hour",
        None,
        "SELECT job || ' run ' || id FROM assignment.job_runs WHERE status = 'running'"
        " AND started_at < statement_timestamp() - interval '1 hour'",
    ),
)
