"""The doctor: check the system's guarantees against the tables, and repair wrong entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    text,
    update,
)

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.answers import Done
from assignment_workers.assignment.audit import REACHED
from assignment_workers.assignment.generations.entries import HELD, PUBLISHED, READY, WAITING
from assignment_workers.assignment.history.records import was_set_back
from assignment_workers.assignment.reports.figures import JOB_NAMES, RUNS, StoredCheck
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.outcomes import Outcome
from assignment_workers.policy.rules import FOR_AN_OPERATOR
from assignment_workers.schema import tables
from assignment_workers.schema.tables import Assignment, Entry

NEWEST = 20_000
"""Maximum number of newest records that a check reads.

At 100 claims a second, this covers the time between two scheduled runs.
"""
APART = frozenset({2, 9})
"""The numbers of the two guarantees that keep writers from interleaving.

The guarantees are numbered in docs/how-it-works.md. Guarantee 2: a rebuild disturbs no assignment.
Guarantee 9: only one sequencer writes. The function `interleavings` counts the breaches of both.
"""
HEAD = 100
"""Maximum number of rows that two checks read.

One check finds users whom claims passed over. In each published generation it reads at most this
number of claimable users, those with the best ranks.

The other check finds callbacks that cannot be handed out until an operator acts. It selects the
pending callbacks that meet all of the following conditions. Of these, it reads at most this number
in all, those with the earliest promised times.

- The promised time is more than an hour ago.
- If a dialer was taken over within the last day, the promised time is not before the takeover. A
  callback that was overdue at the takeover is no fault of this system.
- The callback was postponed, and the end of its last postponement is in the future or at most an
  hour ago. A callback that was not postponed, or whose last postponement ended earlier, is left to
  the check of overdue callbacks.

A callback that was read is reported if the reason of its last postponement was a rule that keeps
the user out until an operator acts.
"""


class CheckResult(BaseModel):
    """The result of one check of a guarantee against the tables.

    `count` is the number of breaches, up to a hundred; `examples` are some of them. `repairable` is
    True if `doctor --repair` can mend the breaches.
    """

    check: str
    guarantee: int | None
    ok: bool
    count: int
    examples: list[str]
    repairable: bool


@dataclass(frozen=True)
class Check:
    """A check of a guarantee: a query that returns a line of text for each breach of it.

    `guarantee`: the number of the guarantee in docs/how-it-works.md. It is None for a check of the
    system's state instead, such as a job that runs too long. `cost`: a description of the rows that
    the query reads at most. `repairable`: True if the function `repair` corrects the breaches.
    """

    name: str
    guarantee: int | None
    cost: str
    query: str
    repairable: bool = False

    def bounded(self, outcomes: Sequence[Outcome]) -> TextClause:
        """Return the query of this check with a limit of a hundred rows and its SQL parameters set.

        Each row describes one breach of the guarantee that is checked. `outcomes`: the dialer's
        outcomes of calls. The SQL parameters: `newest`, the number of newest records to read;
        `promising`, the outcomes that need a callback; `terminal`, the outcomes after which a user
        is never offered again.
        """
        values = {
            "newest": NEWEST,
            "promising": [each.name for each in outcomes if each.needs_callback],
            "terminal": [each.name for each in outcomes if each.terminal],
        }
        return text(f"SELECT breach FROM ({self.query}) AS found (breach) LIMIT 100").bindparams(
            **{name: value for name, value in values.items() if f":{name}" in self.query}
        )


def examine(connection: Connection, dialer: Dialer) -> list[CheckResult]:
    """Run every check of the guarantees, and return the results.

    All checks read one snapshot. The cost of each is limited, because old records are not read;
    `history.check` reads the whole history.
    """
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    findings = []
    for check in CHECKS:
        breaches = [
            str(breach) for breach in connection.execute(check.bounded(dialer.outcomes)).scalars()
        ]
        findings.append(
            CheckResult(
                check=check.name,
                guarantee=check.guarantee,
                ok=not breaches,
                count=len(breaches),
                examples=breaches[:5],
                repairable=check.repairable,
            )
        )
    return findings


def store(connection: Connection, findings: Sequence[CheckResult]) -> None:
    """Replace the stored results of all checks with `findings`. The caller commits."""
    connection.execute(delete(tables.Finding))
    connection.execute(
        insert(tables.Finding).values(examined_at=func.clock_timestamp()),
        [each.model_dump(exclude={"check"}) | {"check_name": each.check} for each in findings],
    )


def interleavings(findings: Iterable[CheckResult | StoredCheck]) -> int:
    """Return the number of breaches of guarantees 2 and 9 in these results of checks.

    Such a breach shows that two writers interleaved. Guarantee 2: a rebuild disturbs no assignment.
    Guarantee 9: only one sequencer writes.
    """
    return sum(each.count for each in findings if not each.ok and each.guarantee in APART)


def repair(transaction: FencedTransaction) -> Done:
    """Correct the entries of the published generations, so that they agree with the assignments.

    An entry is the position of a user in a generation. Ready and waiting entries of users with an
    active assignment are marked held. Held entries of other users are marked ready. No assignment
    changes. The answer has two counts. `marked_held`: the entries that were marked held.
    `given_back`: the entries that were marked ready.
    """
    transaction.require_all_lanes()
    marked = transaction.connection.execute(_MARK_HELD)
    freed = transaction.connection.execute(_GIVE_BACK)
    return Done(counts={"marked_held": marked.rowcount, "given_back": freed.rowcount})


_MARK_HELD = (
    update(Entry)
    .where(
        Entry.generation_id.in_(PUBLISHED),
        Entry.user_id == Assignment.user_id,
        Assignment.state == ACTIVE,
        Entry.state.in_([READY, WAITING]),
    )
    .values(state=HELD, available_from=null())
)
_GIVE_BACK = (
    update(Entry)
    .where(
        Entry.generation_id.in_(PUBLISHED),
        Entry.state == HELD,
        ~exists().where(Assignment.user_id == Entry.user_id, Assignment.state == ACTIVE),
    )
    .values(state=READY)
)

# Records of the last day, the newest first, up to a limit: by the index on the time, or on the id
# of an assignment, which begins with the milliseconds of its claim. Rows that belong to a record
# are looked up with LIMIT 1 in a subquery, which the planner cannot turn into a join that reads the
# other table whole.
_DAY = "statement_timestamp() - interval '1 day'"
_MADE = f"""(SELECT * FROM assignment.assignments
    WHERE id >= rpad(lpad(to_hex((extract(epoch FROM {_DAY}) * 1000)::bigint), 12, '0'), 32, '0')
        ::uuid ORDER BY id DESC LIMIT :newest) AS a"""
_ENDED = f"""(SELECT * FROM assignment.assignments
    WHERE state <> 'active' AND ended_at > {_DAY} ORDER BY ended_at DESC LIMIT :newest) AS a"""
_ANSWERED = f"""(SELECT request_id, agent_id, outcome, deadline, assignment_id, answered_at
    FROM assignment.requests WHERE answered_at > {_DAY}
    ORDER BY answered_at DESC LIMIT :newest) AS r"""
_TOLD = f"""(SELECT id, at, kind, term, user_id, agent_id, assignment_id, details
    FROM assignment.events WHERE at > {_DAY} ORDER BY at DESC LIMIT :newest) AS e"""
_MOVES = (
    "'completed', 'skipped', 'deferred', 'closed', 'released', 'expired', 'offer_lapsed',"
    " 'accepted', 'renewed'"
)

_AN_HOUR_AGO = "timezone('UTC', clock_timestamp() - interval '1 hour')"
# Callbacks that were overdue in a dialer taken over today are no fault of this system.
_PROMISED = f"""status = 'pending' AND scheduled_for < {_AN_HOUR_AGO}
    AND scheduled_for >= coalesce((SELECT max(timezone('UTC', published_at))
        FROM assignment.generations WHERE trigger = 'adoption'
        AND published_at > clock_timestamp() - interval '1 day'), '-infinity')"""
_FOR_AN_OPERATOR = ", ".join(f"'{name}'" for name in sorted(FOR_AN_OPERATOR))

HOLDS = "the active holds, by their index"
NEWEST_ROWS = f"the newest {NEWEST:,} of the last day, and a row or two by index for each"
FEW = "a row for each dialer queue"

CHECKS = (
    Check(
        "no user has two active assignments",
        1,
        HOLDS,
        "SELECT 'user ' || user_id FROM assignment.assignments WHERE state = 'active'"
        " GROUP BY user_id HAVING count(*) > 1",
    ),
    Check(
        "no agent has two active assignments",
        1,
        HOLDS,
        "SELECT 'agent ' || agent_id FROM assignment.assignments WHERE state = 'active'"
        " GROUP BY agent_id HAVING count(*) > 1",
    ),
    Check(
        "the indexes that keep holds single are in place",
        1,
        "two rows of the catalogue",
        "SELECT name || ' is missing or invalid' FROM unnest(ARRAY['uq_assignments_active_user',"
        " 'uq_assignments_active_agent']) AS name WHERE NOT EXISTS (SELECT 1 FROM pg_index"
        " WHERE indexrelid = to_regclass('assignment.' || name) AND indisunique AND indisvalid)",
    ),
    Check(
        "every held user is marked held in the published generations",
        2,
        "the active holds, and an entry by its key for each in each published generation",
        "SELECT 'user ' || a.user_id || ' in generation ' || g.id"
        " FROM assignment.assignments a CROSS JOIN assignment.generations g"
        " CROSS JOIN LATERAL (SELECT state FROM assignment.entries"
        " WHERE generation_id = g.id AND user_id = a.user_id LIMIT 1) AS e"
        " WHERE a.state = 'active' AND g.state = 'published' AND e.state IN ('ready', 'waiting')",
        repairable=True,
    ),
    Check(
        "nobody is marked held without an active assignment",
        2,
        "the entries marked held, by their index, and a hold by its index for each",
        "SELECT 'user ' || e.user_id || ' in generation ' || g.id FROM assignment.generations g"
        " CROSS JOIN LATERAL (SELECT user_id FROM assignment.entries"
        " WHERE generation_id = g.id AND state = 'held' OFFSET 0) AS e"
        " WHERE g.state = 'published' AND (SELECT 1 FROM assignment.assignments a"
        " WHERE a.user_id = e.user_id AND a.state = 'active' LIMIT 1) IS NULL",
        repairable=True,
    ),
    Check(
        "every published generation has its entries",
        2,
        FEW,
        "SELECT 'generation ' || id FROM assignment.generations WHERE state = 'published'"
        " AND to_regclass('assignment.entries_' || id) IS NULL",
    ),
    Check(
        "no generation has waited longer than 5 minutes to be published",
        2,
        "the generations, of which there are as many as builds were kept",
        "SELECT 'generation ' || id FROM assignment.generations WHERE state = 'building'"
        " AND built_at < statement_timestamp() - interval '5 minutes'",
    ),
    Check(
        "nobody was handed out who was suppressed or had opted out",
        3,
        NEWEST_ROWS,
        # The CRM's facts at the claim are not stored, so only our own facts are checked.
        f"SELECT 'assignment ' || a.id FROM {_MADE}"
        " WHERE (SELECT 1 FROM assignment.suppressions b WHERE b.user_id = a.user_id"
        " AND b.lifted_at IS NULL AND b.since < a.claimed_at"
        f" AND NOT {was_set_back('b.since')}"
        " AND coalesce(b.queue, a.queue) = a.queue LIMIT 1) = 1"
        " OR (SELECT 1 FROM assignment.assignments t WHERE t.user_id = a.user_id"
        " AND t.outcome = ANY(:terminal) AND t.ended_at < a.claimed_at"
        f" AND NOT {was_set_back('t.ended_at')}"
        " LIMIT 1) = 1",
    ),
    Check(
        "nobody claimable was passed over",
        4,
        f"the {HEAD} best ranks of each published generation, and its newest {NEWEST:,} claims",
        # A user without any record was passed over for no reason: had the agent skipped the user,
        # there would be a record.
        "SELECT 'user ' || e.user_id || ' in generation ' || g.id FROM assignment.generations g"
        " CROSS JOIN LATERAL (SELECT max(a.rank) AS rank FROM (SELECT rank, generation_id"
        f" FROM {_MADE} WHERE source = 'queue') AS a WHERE a.generation_id = g.id) AS worst"
        " CROSS JOIN LATERAL (SELECT user_id, rank FROM assignment.entries"
        " WHERE generation_id = g.id AND state = 'ready'"
        f" ORDER BY rank LIMIT {HEAD}) AS e"
        " WHERE g.state = 'published' AND e.rank < worst.rank AND (SELECT 1"
        " FROM assignment.events v WHERE v.user_id = e.user_id LIMIT 1) IS NULL AND (SELECT 1"
        " FROM assignment.assignments v WHERE v.user_id = e.user_id LIMIT 1) IS NULL",
    ),
    Check(
        "every answered request agrees with its assignment",
        5,
        NEWEST_ROWS,
        f"SELECT 'request ' || r.request_id FROM {_ANSWERED} CROSS JOIN LATERAL"
        " (SELECT agent_id FROM assignment.assignments WHERE id = r.assignment_id LIMIT 1) AS a"
        " WHERE a.agent_id <> r.agent_id",
    ),
    Check(
        "every answer was true when it was given",
        6,
        NEWEST_ROWS,
        "SELECT 'request ' || r.request_id || ' was ' || CASE r.outcome WHEN 'assigned' THEN"
        " 'given a user after its deadline, or one who was not held' ELSE"
        f" 'told too soon that it was late' END FROM {_ANSWERED}"
        " WHERE CASE r.outcome WHEN 'too_late' THEN coalesce(r.deadline > r.answered_at, true)"
        " WHEN 'assigned' THEN coalesce(r.deadline <= r.answered_at, false) OR coalesce((SELECT"
        " NOT r.answered_at BETWEEN a.claimed_at AND coalesce(a.ended_at, 'infinity')"
        " FROM assignment.assignments a WHERE a.id = r.assignment_id LIMIT 1), true) END"
        f" AND NOT {was_set_back('r.answered_at')}",
    ),
    Check(
        "no hold outlives its lease by more than 2 minutes",
        7,
        "what it finds, by the index on leases",
        "SELECT 'assignment ' || id FROM assignment.assignments WHERE state = 'active'"
        " AND lease_expires_at < statement_timestamp() - interval '2 minutes'",
    ),
    Check(
        "every hold was ended and renewed by its own agent",
        8,
        NEWEST_ROWS,
        f"SELECT 'event ' || e.id || ' of assignment ' || e.assignment_id FROM {_TOLD}"
        " CROSS JOIN LATERAL (SELECT agent_id, user_id FROM assignment.assignments"
        " WHERE id = e.assignment_id LIMIT 1) AS a"
        f" WHERE e.kind IN ({_MOVES})"
        " AND (a.agent_id, a.user_id) IS DISTINCT FROM (e.agent_id, e.user_id)",
    ),
    Check(
        "no event is of a term that has not begun",
        9,
        f"the newest {NEWEST:,} events of the last day",
        f"SELECT 'event ' || e.id || ' of term ' || e.term FROM {_TOLD}"
        " WHERE e.term > (SELECT max(term) FROM assignment.sequencer)",
    ),
    Check(
        "no term was begun twice: the database has not moved back",
        9,
        f"the newest {NEWEST:,} events of the last day",
        f"SELECT 'term ' || term FROM {_TOLD} WHERE kind = 'term_begun'"
        " GROUP BY term HAVING count(*) > 1 UNION"
        f" SELECT 'term ' || (details->>'current') FROM {_TOLD}"
        " WHERE kind = 'ASSIGNMENT_RACE_CONDITION' AND details->>'kind' = 'term_begun_twice'",
    ),
    Check(
        "every call that was to be called back has left the promise",
        10,
        NEWEST_ROWS,
        f"SELECT 'assignment ' || a.id FROM {_ENDED} WHERE a.outcome = ANY(:promising)"
        " AND (SELECT 1 FROM assignment.events e WHERE e.user_id = a.user_id"
        " AND e.assignment_id = a.id AND e.kind = 'callback_promised' LIMIT 1) IS NULL",
    ),
    Check(
        "every assignment of the last day has left its event",
        11,
        NEWEST_ROWS,
        f"SELECT 'assignment ' || a.id FROM {_MADE} WHERE a.claimed_at > {_DAY}"
        " AND (SELECT 1 FROM assignment.events e WHERE e.user_id = a.user_id"
        " AND e.assignment_id = a.id AND e.kind = 'assigned' LIMIT 1) IS NULL",
    ),
    Check(
        "every hold that ended in the last day has left the event of its end",
        11,
        NEWEST_ROWS,
        f"SELECT 'assignment ' || a.id FROM {_ENDED}"
        " WHERE (SELECT 1 FROM assignment.events e WHERE e.user_id = a.user_id"
        " AND e.assignment_id = a.id AND e.kind = coalesce(a.ended_how, a.state)"
        " LIMIT 1) IS NULL",
    ),
    Check(
        "nobody is with an agent of the dialer and with another one of ours",
        1,
        "the holds that stand, and the missed calls of the last day that the dialer handed out",
        "SELECT 'callback ' || c.id || ' of user ' || c.user_id FROM assignment.assignments a"
        " JOIN public.callbacks c ON c.user_id = a.user_id AND c.status IN ('assigned', 'accepted')"
        " WHERE a.state = 'active' AND c.assigned_to_agent_id <> a.agent_id"
        # A lease of more than a day is none: a dialer that was taken over may have had such rows.
        " AND c.lease_expires_at > timezone('UTC', clock_timestamp())"
        " AND c.lease_expires_at < timezone('UTC', clock_timestamp() + interval '1 day')"
        " UNION ALL SELECT 'missed call ' || c.id || ' of user ' || c.user_id"
        " FROM public.missed_calls c JOIN assignment.assignments a ON a.user_id = c.user_id"
        " AND a.state = 'active' WHERE c.status = 'assigned'"
        " AND c.missed_at > timezone('UTC', clock_timestamp() - interval '1 day')"
        " AND c.assigned_at > timezone('UTC', clock_timestamp() - interval '10 minutes')"
        " AND c.assigned_to_agent_id <> a.agent_id",
    ),
    Check(
        "no callback is overdue by more than an hour",
        None,
        "the callbacks that are pending and whose time has passed, by their index",
        # A callback that was postponed because its user may not be called now is due after that
        # time.
        "SELECT 'callback ' || id || ' of user ' || user_id FROM public.callbacks"
        f" WHERE {_PROMISED} AND coalesce(available_from < {_AN_HOUR_AGO}, true)"
        " ORDER BY scheduled_for",
    ),
    Check(
        "no callback waits for an operator to see to its user",
        None,
        f"the {HEAD} callbacks that have waited the longest, and the events of their users",
        "SELECT 'callback ' || c.id || ' of user ' || c.user_id || ': ' || e.reason"
        " FROM (SELECT id, user_id FROM public.callbacks"
        f" WHERE {_PROMISED} AND available_from >= {_AN_HOUR_AGO}"
        f" ORDER BY scheduled_for LIMIT {HEAD}) AS c CROSS JOIN LATERAL"
        " (SELECT details->>'reason' AS reason FROM assignment.events WHERE user_id = c.user_id"
        " AND kind = 'callback_postponed' AND details->>'callback_id' = c.id::text"
        f" ORDER BY id DESC LIMIT 1) AS e WHERE e.reason IN ({_FOR_AN_OPERATOR})",
    ),
    Check(
        "the lanes are led by one dialer's file",
        None,
        "a row of each lane",
        "SELECT 'lanes ' || a.lane || ' and ' || b.lane || ' differ: ' || string_agg(part, ', '"
        " ORDER BY part) FROM assignment.sequencer a JOIN assignment.sequencer_signs s USING (lane)"
        " JOIN (assignment.sequencer b JOIN assignment.sequencer_signs t USING (lane))"
        " ON a.lane < b.lane CROSS JOIN LATERAL (SELECT part FROM jsonb_each_text(a.dialer) AS x"
        " (part, digest) FULL JOIN jsonb_each_text(b.dialer) AS y (part, digest) USING (part)"
        " WHERE x.digest IS DISTINCT FROM y.digest) AS parts"
        # A dialer queue that only one of them has is named without its parts.
        " WHERE (jsonb_exists(a.dialer, split_part(part, ': ', 1))"
        " = jsonb_exists(b.dialer, split_part(part, ': ', 1)) OR strpos(part, ': ') = 0)"
        " AND least(s.last_turn_at, t.last_turn_at) > statement_timestamp() - interval '1 minute'"
        " GROUP BY a.lane, b.lane",
    ),
    Check(
        "the mirror of a CRM elsewhere is younger than 20 minutes",
        None,
        "one row",
        "SELECT 'read ' || round(extract(epoch FROM statement_timestamp() - read_at)) || ' s ago'"
        " FROM assignment.crm_reads WHERE read_at < statement_timestamp() - interval '20 minutes'",
    ),
    Check(
        "every event has been in a hash chain within an hour",
        None,
        "a hundred events beyond the chains, by their key",
        "SELECT 'event ' || id || ' of ' || kind FROM (SELECT id, at, kind FROM assignment.events"
        f" WHERE id > {REACHED} ORDER BY id LIMIT 100) AS e"
        " WHERE at < statement_timestamp() - interval '1 hour'",
    ),
    Check(
        "no job has been running for more than an hour",
        None,
        f"the newest {RUNS} runs of each job, by their index",
        f"WITH RECURSIVE {JOB_NAMES} SELECT r.job || ' run ' || r.id FROM names n"
        " CROSS JOIN LATERAL (SELECT job, id, status, started_at FROM assignment.job_runs"
        f" WHERE job = n.job ORDER BY id DESC LIMIT {RUNS}) AS r"
        " WHERE r.status = 'running' AND r.started_at < statement_timestamp() - interval '1 hour'",
    ),
)
