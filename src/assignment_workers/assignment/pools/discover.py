"""Discovery of users for the pools: new users enter one, and misplaced users are moved.

A pool is the set of users whose score row names a dialer queue; `policy.queues.queue_of` is the one
rule for a user's pool. The job `discover` inserts the score row of a user without one. A user who
has a score row is moved by a command on the assignment queue. The function `assign_to_queue`
carries out the command: it judges the user again, and does not move a user whom an agent holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import InstrumentedAttribute

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.answers import Done
from assignment_workers.assignment.crm import fact_views
from assignment_workers.assignment.crm.external_crm import BATCH_SECONDS, Crm
from assignment_workers.assignment.crm.facts import NewCrmRow, Position
from assignment_workers.assignment.crm.reader import CrmReader
from assignment_workers.assignment.jobs import Counts, Work
from assignment_workers.assignment.transaction import RECORD, EventKind, FencedTransaction
from assignment_workers.identity import new_id
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.facts import NEW_PERSONS, News
from assignment_workers.policy.queues import Policy, queue_of
from assignment_workers.schema.base import NaiveInstant, sql_text
from assignment_workers.schema.bulk import insert_rows, rows
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Assignment, Forgotten, Watermark

OVERLAP = timedelta(minutes=10)
"""Length of the period whose CRM rows each run of the job `discover` reads again.

The period ends at the newest row that earlier runs have read. A row may be committed some time
after its `created_at`, so an earlier run may have missed the row. The job `reconcile` finds the
users of rows that were committed even later.
"""
AT_A_TIME = 1_000
"""Maximum number of CRM rows or users that one transaction handles."""
BATCHES_AT_MOST = 100
"""Maximum number of transactions of one run for one CRM table; the next run continues."""
WINDOW = 10_000
"""Number of users whom one query of the job `reconcile` judges, in a few hundred milliseconds."""
WINDOWS_AT_MOST = 100

RECONCILIATION = "reconciliation"
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

Send = Callable[[list[int]], None]
"""Function that sends the command to move the users with these ids to their right dialer queues."""


def discover(
    work: Work,
    dialer: Dialer,
    crm: Crm | None,
    policies: Mapping[str, Policy],
    send: Send,
    *,
    randomness: Random,
) -> Counts:
    """Insert a score row for every new user of the CRM, in the dialer queue where the user belongs.

    New rows are read from the CRM's table of persons, and from the CRM tables whose new rows may
    put a person into another dialer queue (`dialer.news`). If a row's user has a score row that
    names a wrong dialer queue or none, the function `send` is called with the user's id; it sends
    the command that moves the user.

    Each table is read in the order of `created_at` and id. A run begins ten minutes (`OVERLAP`)
    before the newest row of the earlier runs, because some rows are committed late. The progress is
    committed with the results, so an interrupted run misses no row. A run makes at most
    `BATCHES_AT_MOST` transactions per table; the next run continues. A repeated run changes nothing
    more. Raises `CrmUnavailable` if the CRM cannot be read; the committed part stays. `randomness`
    is used to make ids. Returns counts: score rows `created`, users `sent` (passed to `send`), and
    the rows read of each CRM table, by the name of the table.
    """
    counts = {"created": 0, "sent": 0, **{news.name: 0 for news in dialer.all_news}}
    run = _Run(work, dialer, crm, tuple(policies.values()), send, randomness, counts)
    for news in dialer.all_news:
        run.sweep(news)
    return counts


def reconcile(
    work: Work,
    dialer: Dialer,
    crm: Crm | None,
    policies: Mapping[str, Policy],
    send: Send,
) -> Counts:
    """Find users who are in a wrong dialer queue or in none, and send the command to move them.

    A user is in the dialer queue that the user's score row names. That queue is wrong if the CRM's
    facts put the user into another queue, or if the dialer has no queue of that name. Users whom an
    agent holds, who have converted or who are not in the CRM are left alone. `send`: the function
    that sends the command. Users are read in the order of their ids. A run reads at most a million
    users (`WINDOWS_AT_MOST` times `WINDOW`); the next run continues.

    Returns counts: the users read (`looked_at`), and the users in the wrong place: in no dialer
    queue (`in_none`), in a wrong one (`in_wrong`), or under an unknown name (`other_word`). If the
    CRM is in our database and its ids are not integers, a run that begins with the first user also
    counts the users whose id cannot be used (`unfit`); they are never offered.
    """
    counts = {"looked_at": 0, "in_none": 0, "in_wrong": 0, "other_word": 0}
    after = int(_watermark(work.side_connection, RECONCILIATION).key or -1)
    if after < 0 and crm is None:
        rows = _number(work.side_connection, dialer, NEW_PERSONS, None)
        if rows is not None:
            counts["unfit"] = user_ids.unnumbered(dialer, work.side_connection, rows)
    for _ in range(WINDOWS_AT_MOST):
        window = {"after": after, "window": WINDOW, **_any(policies).building(work.now)}
        number, last = work.side_connection.execute(_WINDOW, window).one()
        wrong = (
            [] if last is None else _wrong(work.side_connection, policies, window | {"upto": last})
        )
        for row in wrong:
            counts[row.which] += 1
        _send_all(send, [row.user_id for row in wrong])
        counts["looked_at"] += number
        is_over = number < WINDOW
        after = -1 if is_over else last
        ended = {"key": None, "swept_at": work.now} if is_over else {"key": str(after)}
        _store_counts(work, RECONCILIATION, counts, **ended)
        if is_over:
            break
    return counts


def assign_to_queue(
    transaction: FencedTransaction, users: Sequence[int], policies: Mapping[str, Policy]
) -> Done:
    """Move these users to the dialer queues where they belong, and record each change as an event.

    The CRM facts are read in this transaction. A user without a score row gets one. Users who are
    in the right dialer queue, whom an agent holds or who have converted are left alone. Inactive
    score rows stay inactive.
    """
    # otherwise another lane could assign a user from the dialer queue that the user leaves
    transaction.require_all_lanes()
    judged = _judge(transaction.crm_reader, tuple(policies.values()), users, transaction.now)
    created = _create(transaction.connection, judged, transaction.now, transaction.new_id)
    moves = [
        {"user_id": row.user_id, "before": row.current, "place": row.place}
        for row in judged
        if row.has_row and row.which is not None
    ]
    moved = (
        transaction.connection.execute(_MOVE, {"moves": moves, "now": transaction.now}).all()
        if moves
        else []
    )
    transaction.record(
        *created,
        *(
            {
                "kind": EventKind.POOL_CHANGED,
                "queue": row.place,
                "user_id": row.user_id,
                "details": {"moved_from": row.before, "moved_to": row.place},
            }
            for row in moved
        ),
    )
    return Done(counts={"created": len(created), "moved": len(moved)})


@dataclass(frozen=True)
class _Run:
    """One run of the job `discover`, with its counts so far."""

    work: Work
    dialer: Dialer
    crm: Crm | None
    policies: tuple[Policy, ...]
    send: Send
    randomness: Random
    counts: Counts

    def sweep(self, news: News) -> None:
        """Read the new rows of a CRM table, and insert score rows for new users.

        `news`: the CRM table. Users in a wrong dialer queue are not moved here; the function
        `self.send` sends the command that moves them. The reading continues where an earlier run
        stopped. It ends at the table's end or after 100 transactions (`BATCHES_AT_MOST`).
        """
        work, source = self.work, news.name
        mark = _watermark(work.side_connection, source)
        seen = mark.seen or mark.reached or _BEGINNING
        position: Position = (mark.reached - OVERLAP if mark.reached else _BEGINNING), None
        if mark.at is not None and mark.key is not None:
            position = mark.at, json.loads(mark.key)
        if self.crm is None:
            since = position[0] if mark.reached else None
            _number(work.side_connection, self.dialer, news, since)
        for _ in range(BATCHES_AT_MOST):
            found = self._since(news, position)
            if found:
                self._see_to(sorted(self._users(found)))
                self.counts[source] += len(found)
                position = found[-1].created_at, found[-1].key
                seen = max(seen, position[0])
            if len(found) < AT_A_TIME:
                # Never later than now, because a row of tomorrow must not hide those of today.
                reached = min(seen, work.now)
                ended = {"seen": None, "at": None, "key": None, "swept_at": work.now}
                _store_counts(work, source, self.counts, reached=reached, **ended)
                return
            at, key = position
            _store_counts(
                work, source, self.counts, seen=seen, at=at, key=json.dumps(key, default=str)
            )

    def _since(self, news: News, after: Position) -> list[NewCrmRow]:
        if self.crm is not None:
            return self.crm.since(news, after, limit=AT_A_TIME)
        at, key = after
        found = self.work.side_connection.execute(
            _since_here(news, key is not None), {"after": at, "key": key}
        )
        return [NewCrmRow(row.created_at, row.key, row.user_id) for row in found]

    def _users(self, found: Sequence[NewCrmRow]) -> set[int]:
        """Return the integer ids of the users in these CRM rows.

        If the ids of an external CRM are not integers, the users' internal integer ids in
        `assignment.user_ids` are returned; a new user gets one. Users whose CRM id is unusable are
        left out.
        """
        ids = [each.user_id for each in found]
        if self.dialer.numbered is None or self.crm is None:
            return {each for each in ids if isinstance(each, int)}
        connection = self.work.side_connection
        numbers = user_ids.number_in_order(self.dialer, connection, ids)
        connection.commit()
        return set(numbers.values())

    def _see_to(self, users: list[int]) -> None:
        now, side_connection = self.work.now, self.work.side_connection
        crm_reader = CrmReader(side_connection, self.dialer, self.crm, patience=BATCH_SECONDS)
        judged = _judge(crm_reader, self.policies, users, now)
        events = _create(side_connection, judged, now, lambda: new_id(now, self.randomness))
        if events:
            dated = [{**event, "at": now, "term": None} for event in events]
            side_connection.execute(RECORD, {"events": dated})
        wrong = [row.user_id for row in judged if row.has_row and row.which is not None]
        _send_all(self.send, wrong)
        self.counts["created"] += len(events)
        self.counts["sent"] += len(wrong)


def _send_all(send: Send, users: list[int]) -> None:
    for begin in range(0, len(users), AT_A_TIME):
        send(users[begin : begin + AT_A_TIME])


def _judge(
    crm_reader: CrmReader, policies: tuple[Policy, ...], users: Sequence[int], now: datetime
) -> list[Row[*tuple[Any, ...]]]:
    parameters = {"users": list(users), **policies[0].building(now)}
    found = crm_reader.judge(_placing(policies), parameters, users=users)
    return [row for row in found if row.in_crm and row.user_id not in crm_reader.unknown]


def _create(
    connection: Connection,
    judged: Sequence[Row[*tuple[Any, ...]]],
    now: datetime,
    make_id: Callable[[], object],
) -> list[dict[str, Any]]:
    """Insert a score row for each of these users who has none; return the events to record.

    `judged`: rows with the user and the dialer queue where the user belongs. `make_id`: the
    function that makes the id of a score row.
    """
    new = [
        {
            "id": make_id(),
            "user_id": row.user_id,
            "current_score": 0,
            "current_queue_type": row.place,
            "created_at": now,
            "updated_at": now,
        }
        for row in judged
        if not row.has_row
    ]
    made = set(connection.execute(_CREATE, {"rows": new}).scalars()) if new else set()
    return [
        {
            "kind": EventKind.DISCOVERED,
            "queue": row["current_queue_type"],
            "user_id": row["user_id"],
            "details": {"moved_to": row["current_queue_type"]},
        }
        for row in new
        if row["user_id"] in made
    ]


def _any(policies: Mapping[str, Policy]) -> Policy:
    return next(iter(policies.values()))


def _wrong(
    connection: Connection, policies: Mapping[str, Policy], window: Mapping[str, Any]
) -> Sequence[Row[*tuple[Any, ...]]]:
    return connection.execute(_misplaced(tuple(policies.values())), window).all()


def _number(
    connection: Connection, dialer: Dialer, news: News, since: datetime | None
) -> str | None:
    """Give each user in a CRM table an internal integer id, in `assignment.user_ids`; commit.

    Internal ids stand for the CRM's ids if these are not integers. A user who has an internal id
    already keeps that id. `news`: the CRM table. `since`: only users of rows created at or after
    this time get an internal id; None: users of all rows.

    Returns a SQL query. For each row of the table, whatever `since` is, the query selects the CRM's
    id of the user as `id`, and the row's creation time as `created_at`. Returns None, and does
    nothing, if the CRM's ids are integers. Returns None, too, if the table has no column with a
    user's id or none with the creation time.
    """
    if dialer.numbered is None:
        return None
    rows = fact_views.persons_of(dialer, news)
    if rows is not None:
        at = None if since is None else since.astimezone(UTC).replace(tzinfo=None)
        user_ids.number_new(dialer, connection, rows, at)
        connection.commit()
    return rows


def _watermark(connection: Connection, source: str) -> Watermark | Row[*tuple[Any, ...]]:
    connection.execute(upsert(Watermark).values(source=source).on_conflict_do_nothing())
    return connection.execute(select(Watermark.__table__).where(Watermark.source == source)).one()


def _store_counts(work: Work, source: str, counts: Counts, **values: object) -> None:
    """Commit the work so far, with the job's counts and the position up to which users were read.

    The position is stored in the table of `Watermark`, in the row of `source`. `source`: the name
    of the CRM table that is read, or `reconciliation` for the job `reconcile`. `values`: the new
    values of columns in that row, by the column's name.
    """
    work.side_connection.execute(
        update(Watermark).where(Watermark.source == source).values(**values)
    )
    work.store_counts(counts)


@dataclass(frozen=True)
class _Standing:
    """SQL expressions that compare a user's present dialer queue with the right one.

    `current`: the present dialer queue. `place`: the right one, by the CRM's facts.
    """

    current: ColumnElement[str | None] | InstrumentedAttribute[str | None]
    place: ColumnElement[str | None]
    which: ColumnElement[str | None]
    """The reason for which the user has to be moved; null if the user is not to be moved.

    `in_none`: the user belongs to a dialer queue, but is in none. `in_wrong`: the user is in a
    dialer queue other than the right one. `other_word`: the user's score row names a queue that the
    dialer does not have. Null: the user is in the right dialer queue, or the CRM's facts put the
    user into no dialer queue. Null, too: an agent holds the user, the user has converted, or the
    user is not in the CRM.
    """


def _standing(
    policies: tuple[Policy, ...], user: ColumnElement[int] | InstrumentedAttribute[int]
) -> _Standing:
    current = UserCallScore.current_queue_type
    place = queue_of(policies)
    known = [sql_text(policy.queue) for policy in policies]
    is_other = and_(current.is_not(None), current.not_in(known))
    held = exists(
        select(1)
        .select_from(Assignment)
        .where(Assignment.user_id == user, Assignment.state == ACTIVE)
    )
    left_alone = or_(CrmUser.id.is_(None), held, *(policy.converted() for policy in policies))
    is_elsewhere = and_(place.is_not(None), current.is_distinct_from(place))
    which = case(
        (left_alone, null()),
        (is_other, sql_text("other_word")),
        (and_(is_elsewhere, current.is_(None)), sql_text("in_none")),
        (is_elsewhere, sql_text("in_wrong")),
        else_=null(),
    )
    return _Standing(current, place, which)


@expression_cache
def _placing(policies: tuple[Policy, ...]) -> Select[*tuple[Any, ...]]:
    """Select, for each user of the SQL parameter `users`, the present and the right dialer queue.

    The column `has_row` is true if the user has a score row. The column `in_crm` is true if the
    user is in the CRM.
    """
    people = (
        select(func.unnest(bindparam("users", type_=ARRAY(BigInteger))).label("user_id"))
        .cte("people")
        .prefix_with("MATERIALIZED")
    )
    stands = _standing(policies, people.c.user_id)
    return _joined(
        select(
            people.c.user_id,
            UserCallScore.user_id.is_not(None).label("has_row"),
            CrmUser.id.is_not(None).label("in_crm"),
            stands.current.label("current"),
            stands.place.label("place"),
            stands.which.label("which"),
        ),
        people,
    )


def _joined(of: Select[*tuple[Any, ...]], people: FromClause) -> Select[*tuple[Any, ...]]:
    return (
        of.select_from(people)
        .outerjoin(UserCallScore, UserCallScore.user_id == people.c.user_id)
        .outerjoin(CrmUser, CrmUser.id == people.c.user_id)
        .order_by(people.c.user_id)
    )


_WINDOW_IDS = (
    select(CrmUser.id.label("user_id"))
    .where(CrmUser.id > bindparam("after", type_=BigInteger))
    .order_by(CrmUser.id)
    .limit(bindparam("window", type_=BigInteger))
    .subquery()
)
_WINDOW = select(func.count(), func.max(_WINDOW_IDS.c.user_id)).select_from(_WINDOW_IDS)


@expression_cache
def _misplaced(policies: tuple[Policy, ...]) -> Select[*tuple[Any, ...]]:
    """Select the users who are in a wrong dialer queue or in none.

    Only users with an id greater than `after` and at most `upto`, two SQL parameters, are judged.
    """
    stands = _standing(policies, CrmUser.id)
    return (
        select(CrmUser.id.label("user_id"), stands.which.label("which"))
        .outerjoin(UserCallScore, UserCallScore.user_id == CrmUser.id)
        .where(
            CrmUser.id > bindparam("after", type_=BigInteger),
            CrmUser.id <= bindparam("upto", type_=BigInteger),
            stands.which.is_not(None),
        )
        .order_by(CrmUser.id)
    )


@expression_cache
def _since_here(news: News, goes_on: bool) -> Select[*tuple[Any, ...]]:  # noqa: FBT001
    at = bindparam("after", type_=NaiveInstant)
    after = (
        tuple_(news.created_at, news.key) > tuple_(at, bindparam("key", type_=news.key.type))
        if goes_on
        else news.created_at >= at
    )
    query = select(
        news.created_at.label("created_at"),
        news.key.label("key"),
        news.person.label("user_id"),
    )
    if news.joined is not None:
        query = query.select_from(news.joined)
    return (
        query.where(after, news.person.is_not(None))
        .order_by(news.created_at, news.key)
        .limit(literal_column(str(AT_A_TIME)))
    )


_new = insert_rows(
    UserCallScore,
    UserCallScore.id,
    UserCallScore.user_id,
    UserCallScore.current_score,
    UserCallScore.current_queue_type,
    UserCallScore.created_at,
    UserCallScore.updated_at,
    unless=Forgotten.user_id,
)
_CREATE = _new.on_conflict_do_nothing(index_elements=[UserCallScore.user_id]).returning(
    UserCallScore.user_id
)

_moves = rows("moves", user_id=BigInteger(), before=Text(), place=Text())
_MOVE = (
    update(UserCallScore)
    .where(
        UserCallScore.user_id == _moves.c.user_id,
        UserCallScore.current_queue_type.is_not_distinct_from(_moves.c.before),
    )
    .values(current_queue_type=_moves.c.place, updated_at=bindparam("now", type_=NaiveInstant))
    .returning(UserCallScore.user_id, _moves.c.before, _moves.c.place)
)
"""SQL that moves users to other dialer queues, by an update of their score rows.

A row is updated only if it still names the dialer queue that it named when the new one was
determined. So a change that another program made meanwhile is not undone.
"""
