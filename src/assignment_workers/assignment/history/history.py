"""Check the guarantees against all records: events, assignments and requests.

A lane is a group of dialer queues. Each lane has one sequencer at a time, which makes the lane's
changes under its term: a fencing token with a number. A new sequencer of the lane gets a new term.

Event ids show the order in which transactions committed: for the events of one lane, and also for
events of different lanes about the same user, agent or dialer queue. Therefore, one pass over the
events in the order of their ids can follow the state that they describe and check each event
against it (`replay`). Then the tables' rows are compared with the events (`records`).

The following is checked; the numbers are those of the guarantees in docs/how-it-works.md. No user
and no agent has two assignments at a time (guarantee 1). A rebuild changes no assignment (2). No
agent on break or offline gets a user (3). Assignments follow the order of the published generation
(4). A request has one answer (5). Answers were true when they were given, as far as rows can show
(6). Leases are not too long, and assignments end in time (7). Only the owner changes an assignment
(8). The terms of sequencers have consecutive numbers, and no sequencer changes anything in a lane
after the next term of that lane began (9). A completed call and the change of its callback are
recorded together (10). Rows and events agree, in both directions (11).

The following is not checked:

- The CRM's facts about a user, by which a claim judged the user (a part of guarantee 3). The CRM
  keeps no history.
- The truth of the answer `empty` (no user is claimable).
- The choice of one of several dialer queues for a request.
- Due callbacks that claims passed over. Other programs promise callbacks too, and no event records
  these promises. So the events do not show all callbacks that were due.
- The dialer's own tables. Other programs write these tables too.

The order is checked only against generations whose entries still exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import Connection, Text, bindparam, func, select, text

from assignment_workers.assignment import settings_versions
from assignment_workers.assignment.generations.publish import LONGEST_TRANSACTION
from assignment_workers.assignment.generations.regenerate import partition
from assignment_workers.assignment.history.records import RECORDS
from assignment_workers.assignment.history.replay import Breach, Fact, Replay, ReplayedAssignment
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.base import Instant
from assignment_workers.schema.tables import Event, LaneTerm
from assignment_workers.settings import Settings


def check(
    connection: Connection, *, dialer: Dialer, settings: Settings, bound: timedelta
) -> list[Breach]:
    """Return the breaches of guarantees in the recorded history; an empty list if there are none.

    `dialer`: the dialer of this process. `settings`: the settings of the environment. Some settings
    (the operational settings, such as calling hours) can be changed by an operator while the system
    runs. Their values are read from the database, and each event is checked against the values that
    were in force at its time. `bound`: the longest time that an assignment may outlast its lease
    while a sequencer leads. Events older than the setting `history_retention` are not replayed,
    because some may be deleted. If the database's clock was changed, times that the change made
    ambiguous are not compared. All is read from one snapshot, so the system may be running;
    `connection` must not be in a transaction yet.
    """
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    return judge(connection, dialer=dialer, settings=settings, bound=bound)


def judge(
    connection: Connection, *, dialer: Dialer, settings: Settings, bound: timedelta
) -> list[Breach]:
    """Return the breaches of guarantees that the recorded events and the stored rows show.

    The caller's transaction must be REPEATABLE READ, so that all queries read one snapshot.
    `dialer`: the dialer of this process. `settings`: the settings of the environment. `bound`: the
    longest time that an assignment may outlast its lease while a sequencer leads.
    """
    now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    since = now - settings.history_retention
    versions = settings_versions.since(connection, since)
    read = [(each.at, each.in_force(dialer, settings)) for each in versions]
    first = next((each for at, each in reversed(read) if at < since), settings)
    replay = Replay(first, bound=bound, later=[each for at, each in read if at >= since])
    _what_stood(connection, replay, since, first)
    for fact in facts(connection, since):
        number, ranks = fact.generation_id, None
        if number is not None and fact.kind == EventKind.GENERATION_PUBLISHED:
            ranks = _ranks(connection, number, since)
        if number is None or ranks is None:
            replay.apply(fact)
        else:
            replay.publish(fact, ranks, missed=_missed(connection, number))
    replay.finish(now)
    return [*replay.breaches, *_disagreements(connection, dialer, settings, now)]


def facts(connection: Connection, since: datetime) -> Iterator[Fact]:
    """Yield the events from the time `since` on, by id; at most 10,000 rows are in memory."""
    rows = connection.execute(
        _FACTS, {"since": since}, execution_options={"stream_results": True, "yield_per": 10_000}
    )
    with rows:
        yield from map(Fact._make, rows)


def _what_stood(
    connection: Connection, replay: Replay, since: datetime, settings: Settings
) -> None:
    """Load into `replay` the state at `since`, the time of the first event that is replayed.

    The state is read from the tables: terms, active assignments, skips, deferrals, published
    generations and paused dialer queues.
    """
    earlier = {"since": since, "skipped_since": since - settings.skip_agent}
    for row in connection.execute(select(LaneTerm.lane, LaneTerm.terms)):
        replay.led(row.lane, row.terms)
    for row in connection.execute(_HELD, earlier):
        replay.stood(
            ReplayedAssignment(
                row.id,
                row.agent_id,
                row.user_id,
                row.lease_expires_at,
                row.queue,
                accepted=row.accepted,
            )
        )
    for row in connection.execute(_SKIPPED, earlier):
        replay.had_skipped(row.agent_id, row.user_id, row.ended_at, row.put_off_until)
    for row in connection.execute(_DEFERRED, earlier):
        replay.had_deferred(row.user_id, row.put_off_until)
    for row in connection.execute(_PUBLISHED, earlier):
        replay.had_published(row.queue, row.id)
    for queue in connection.execute(_PAUSED, earlier).scalars():
        replay.had_paused(queue)


def _ranks(connection: Connection, generation: int, since: datetime) -> dict[int, int] | None:
    """Return the ranks of a generation's users, by user; None if they cannot be known.

    `since`: the time from which events are replayed. The ranks are unknown if the generation is
    purged. The ranks are also unknown if the generation's build began before `since`, or less than
    `LONGEST_TRANSACTION` after `since`. Transactions from before `since`, which are not replayed,
    may have influenced such a build. `LONGEST_TRANSACTION` is the longest duration of a
    transaction.
    """
    parameters = {"generation": generation, "name": partition(generation)}
    begun = {"since": since + LONGEST_TRANSACTION}
    if not connection.execute(_IS_KEPT, parameters | begun).scalar_one_or_none():
        return None
    users, ranks = connection.execute(_RANKS, parameters).one()
    return dict(zip(users or (), ranks or (), strict=True))


def _missed(connection: Connection, generation: int) -> dict[str, int]:
    """Return the completed assignments that the build of this generation did not see.

    These assignments ended too late for the build's snapshot, but before the generation was
    published. The result maps the id of each assignment to its user.
    """
    parameters = {"generation": generation, "longest": LONGEST_TRANSACTION}
    return {row.id: row.user_id for row in connection.execute(_MISSED, parameters)}


def _disagreements(
    connection: Connection, dialer: Dialer, settings: Settings, now: datetime
) -> Iterator[Breach]:
    parameters = {
        "since": now - settings.history_retention,
        "answers_since": now - settings.request_retention,
        "promising": [outcome.name for outcome in dialer.outcomes if outcome.needs_callback],
    }
    for guarantee, what, query in RECORDS:
        for subject in connection.execute(text(query), parameters).scalars():
            yield Breach(guarantee, 0, f"{subject} {what}")


_FACTS = (
    select(
        Event.id,
        Event.at,
        Event.kind,
        Event.term,
        Event.queue,
        Event.user_id,
        Event.agent_id,
        Event.assignment_id.cast(Text),
        Event.request_id,
        Event.generation_id,
        Event.details["rank"].as_integer(),
        Event.details["lease_expires_at"].as_string().cast(Instant),
        Event.details["until"].as_string().cast(Instant),
        Event.details["reassigned_from"].as_string(),
        Event.details["source"].as_string(),
        func.coalesce(
            Event.details["source_id"].as_string(),
            Event.details["callback_id"].as_string(),
            Event.details["missed_call_id"].as_string(),
        ),
        Event.details["scheduled_for"].as_string().cast(Instant),
        Event.details["kept_for"].as_integer(),
        Event.details["state"].as_string(),
        Event.details["lane"].as_string(),
    )
    .where(Event.at >= bindparam("since", type_=Instant))
    .order_by(Event.id)
)

_HELD = text(
    "SELECT id::text, agent_id, user_id, lease_expires_at, queue,"
    " coalesce(accepted_at < :since, false) AS accepted FROM assignment.assignments"
    " WHERE claimed_at < :since AND (ended_at IS NULL OR ended_at >= :since)"
)

_SKIPPED = text(
    "SELECT agent_id, user_id, ended_at, put_off_until FROM assignment.assignments"
    " WHERE state = 'skipped' AND ended_how IS NULL"
    " AND ended_at >= :skipped_since AND ended_at < :since ORDER BY ended_at"
)

_DEFERRED = text(
    "SELECT user_id, put_off_until FROM assignment.assignments"
    " WHERE ended_how = 'deferred' AND ended_at < :since AND put_off_until > :since"
    " ORDER BY ended_at"
)

_PUBLISHED = text(
    "SELECT queue, id FROM assignment.generations"
    " WHERE published_at < :since AND (retired_at IS NULL OR retired_at >= :since)"
)

_PAUSED = text("SELECT name FROM assignment.queues WHERE paused_at < :since")

_IS_KEPT = text(
    "SELECT started_at >= :since AND to_regclass(:name) IS NOT NULL"
    " FROM assignment.generations WHERE id = :generation"
)

_RANKS = text(
    "SELECT array_agg(user_id), array_agg(rank) FROM assignment.entries"
    " WHERE generation_id = :generation"
)

# The build's snapshot decides exactly; the times are for the index on `ended_at`.
_MISSED = text(
    "SELECT a.id::text, a.user_id FROM assignment.generations g JOIN assignment.assignments a"
    " ON a.state = 'completed' AND a.ended_at >= g.started_at - :longest"
    " AND a.ended_at <= g.published_at WHERE g.id = :generation"
    " AND NOT pg_visible_in_snapshot(a.ended_xid::text::xid8, g.snapshot::pg_snapshot)"
)
