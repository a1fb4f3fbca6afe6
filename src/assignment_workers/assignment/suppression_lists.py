"""Named lists of phone numbers that are not to be called, such as a national register.

A list of any length is loaded into a new table that nothing reads yet. One short command on the
assignment queue then puts the list in force.
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import psycopg
from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    BigInteger,
    CompoundSelect,
    Connection,
    Text,
    any_,
    bindparam,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    text,
    true,
    union_all,
    update,
)

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.generations.entries import OUT, PUBLISHED_STATE
from assignment_workers.assignment.suppressions import target_of
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.errors import UsageError, no_queue
from assignment_workers.phones import (
    KEYED,
    REACH,
    Line,
    Read,
    Reader,
    end_with_parent,
    plain,
    read_chunk,
)
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.tables import (
    Entry,
    Generation,
    Phone,
    SuppressedNumber,
    Suppression,
    SuppressionKind,
    SuppressionList,
    SuppressionListState,
)

CHUNK = 20_000
"""Number of lines of a file that one process reads at a time."""
SHOWN = 10
"""The most unreadable lines of a loaded file that are shown to the operator."""
_NUMBER_COLUMNS = (
    *("number", "phone", "phone_number", "phonenumber", "telephone", "telephone_number", "tel"),
    *("msisdn", "mobile", "cli", "e164"),
)
_EXPIRY_COLUMNS = ("expires_at", "expires", "expiry", "valid_until")
_STAGED, _STANDING, _RETIRED = (sql_text(each) for each in SuppressionListState)


@dataclass(frozen=True)
class Named:
    """The name, the reason and the scope of a list of suppressed phone numbers to import.

    `replaces`: True if this list, once in force, replaces the earlier lists of the same name.
    `queue`: the only dialer queue to which the list applies; None: every queue. `expires_at`: the
    time at which the list's suppressions end; None: no end.
    """

    name: str
    replaces: bool
    reason: str
    by: str
    source: str | None = None
    queue: str | None = None
    expires_at: datetime | None = None


@dataclass
class Staged:
    """The result of loading a file of phone numbers that must not be called."""

    lines: int = 0
    """Number of lines read."""
    numbers: int = 0
    """Number of different phone numbers in the file."""
    unreadable: int = 0
    """Number of lines that are not a phone number."""
    shown: list[str] = field(default_factory=list)
    """The first lines of the file that are not a phone number: at most 10 (`SHOWN`)."""
    forgotten: int = 0
    """Number of phone numbers that were left out, because they are those of erased persons.

    A stored hash suppresses each of these numbers already.
    """
    users: int = 0
    """Number of users who have one of the file's phone numbers now."""
    queues: dict[str, int] = field(default_factory=dict)
    """The number of users who have one of the file's phone numbers now, for each dialer queue.

    Only users in the published generation of the dialer queue are counted.
    """
    waiting: int = 0
    """Number of users who, once the list is in force, are not offered until an operator decides.

    These users may have a number of the file: their phone number is unclear (it cannot be read for
    certain), and its last 7 digits are those of a number in the file. The operator decides whether
    they may be called.
    """
    waiting_queues: dict[str, int] = field(default_factory=dict)
    """The number of users counted in `waiting`, for each dialer queue, in its published generation.
    """
    list_id: int | None = None
    """The number of the list that was stored; None if nothing was stored."""


ReadChunk = Callable[[Sequence[Line]], Read]


def lines_of(stream: Iterable[str], column: str | None = None) -> Iterator[Line]:
    """Yield the lines of a file of phone numbers: one phone number a line, or CSV.

    Each yielded line has three values: the position of the line in the file, counted from 1; the
    text of the phone number; and the time at which its suppression ends, or None. In CSV the phone
    number is in `column`. If `column` is None, the phone number is in a column with a usual name
    such as `phone`, otherwise in the first column. The end of the suppression is in a CSV column
    named `expires_at`, `expires`, `expiry` or `valid_until`; a time without a zone is in UTC. The
    end is None if there is no such column, or if its field is empty. Empty lines and lines that
    begin with # are ignored. Raises `UsageError` for a column that does not exist and for an expiry
    that is not a date.
    """
    number = 0

    def said() -> Iterator[str]:
        nonlocal number
        for number, line in enumerate(stream, 1):  # noqa: B007 - the number is read outside
            if line.strip() and not line.lstrip().startswith("#"):
                yield line

    remaining = said()
    first = next(remaining, None)
    if first is None:
        return
    number_of_first = number
    dialect = ";" if first.count(";") > first.count(",") else "\t" if "\t" in first else ","
    rows = csv.reader(itertools.chain([first], remaining), delimiter=dialect)
    head = [each.strip().strip("\ufeff").casefold().replace(" ", "_") for each in next(rows)]
    has_header = not any(sum(map(str.isdigit, each)) > 4 for each in head)  # noqa: PLR2004
    if column is not None and column.casefold().replace(" ", "_") not in head:
        raise UsageError(f"no column {column!r}; there are {', '.join(head)}")
    wanted = (column.casefold().replace(" ", "_"),) if column else _NUMBER_COLUMNS
    place = next((head.index(each) for each in wanted if each in head), 0)
    expiry = next((head.index(each) for each in _EXPIRY_COLUMNS if each in head), None)
    if not has_header:
        place, expiry = (place if column else 0), None
        yield number_of_first, first.split(dialect)[0].strip().strip('"\ufeff'), None
    for row in rows:
        if len(row) > place:
            until = row[expiry].strip() if expiry is not None and len(row) > expiry else ""
            yield number, row[place].strip(), _date(until, number)


def stage(
    connection: Connection,
    lines: Iterable[Line],
    named: Named,
    reader: Reader,
    *,
    queues: Collection[str],
    dry_run: bool = False,
    skip_unreadable: bool = False,
) -> Staged:
    """Load the lines of a file into a new list of suppressed phone numbers that is not in force.

    The command `flip` puts the list in force. `named`: the list's name, reason and scope.
    `reader`: the rules for reading phone numbers. `queues`: the names of the dialer's queues. The
    whole file is loaded in one transaction, which neither waits for another nor blocks one. The
    number of an erased person is left out, because a stored hash suppresses this number already. A
    line that is not a phone number is counted and named in the result. With `skip_unreadable` such
    a line is left out; otherwise nothing is stored, as in a dry run. Raises `UsageError` for an
    unknown dialer queue. Cost: about 40 µs of processor time a line, spread over all processors,
    and a COPY.
    """
    if named.queue is not None and named.queue not in queues:
        raise UsageError(no_queue(named.queue, queues))
    done = Staged()
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # a COPY waits for the reading
    connection.execute(
        text(
            "CREATE TEMPORARY TABLE incoming_numbers"
            " (number text NOT NULL, expires_at timestamptz) ON COMMIT DROP"
        )
    )
    _copy(connection, lines, named, reader, done)
    connection.execute(
        text(
            "CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT number,"
            " CASE WHEN bool_and(expires_at IS NOT NULL) THEN max(expires_at) END AS expires_at"
            " FROM incoming_numbers GROUP BY number"
        )
    )
    connection.execute(text("CREATE INDEX ON incoming (number)"))
    connection.execute(text("ANALYZE incoming"))
    done.numbers = connection.execute(text("SELECT count(*) FROM incoming")).scalar_one()
    done.users, done.queues, done.waiting, done.waiting_queues = _affected(connection)
    if dry_run or (done.unreadable and not skip_unreadable):
        connection.rollback()
        return done
    done.list_id = _store(connection, named, done)
    connection.commit()
    return done


def _copy(
    connection: Connection, lines: Iterable[Line], named: Named, reader: Reader, done: Staged
) -> None:
    forgotten: dict[str, datetime | None] = {}
    if reader.key is not None:
        hashes = {"prefix": reader.keyed_prefix, "queue": named.queue}
        forgotten = {row.number: row.expires_at for row in connection.execute(_HASHES, hashes)}
    work = partial(read_chunk, reader, forgotten=forgotten, expires_at=named.expires_at)
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    with (
        _reading(_chunks(iter(lines)), work) as made,
        driver.cursor() as cursor,
        cursor.copy("COPY incoming_numbers (number, expires_at) FROM STDIN") as copy,
    ):
        for count, read, unread, left_out in made:
            done.lines += count
            done.forgotten += left_out
            done.unreadable += len(unread)
            done.shown += unread[: SHOWN - len(done.shown)]
            copy.write(read)


def _chunks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    while chunk := list(itertools.islice(lines, CHUNK)):
        yield chunk


@contextmanager
def _reading(chunks: Iterator[list[Line]], work: ReadChunk) -> Iterator[Iterator[Read]]:
    """Provide the results of applying `work` to each chunk of lines, in order.

    A single chunk is processed in this process, several chunks in a pool of processes.
    """
    first = next(chunks, [])
    second = next(chunks, [])
    if not second:
        yield iter([work(first)])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), mp_context=context, initializer=end_with_parent
    ) as pool:
        yield _ahead(pool, work, itertools.chain([first, second], chunks))


def _ahead(
    pool: ProcessPoolExecutor, work: ReadChunk, chunks: Iterator[list[Line]]
) -> Iterator[Read]:
    """Yield the result of `work` for each chunk of lines, in order, computed by the process pool.

    At most eight chunks are in the pool at a time, so the whole file is never in memory.
    """
    under_way = [pool.submit(work, each) for each in itertools.islice(chunks, 8)]
    while under_way:
        yield under_way.pop(0).result()
        under_way += [pool.submit(work, each) for each in itertools.islice(chunks, 1)]


def _affected(connection: Connection) -> tuple[int, dict[str, int], int, dict[str, int]]:
    """Count the users whom the loaded phone numbers affect, in all and by dialer queue.

    The loaded numbers are in the temporary table `incoming`. The first two values are for the users
    who have a loaded number: how many they are, and how many they are in each dialer queue. The
    last two values are the same counts for the users who may have a loaded number. The number of
    such a user is unclear (it cannot be read for certain), and its last 7 digits (`REACH`) are
    those of a loaded number. Once the list is in force, these users are not offered until an
    operator decides whether they may be called.
    """
    connection.execute(_MATCHED_BY_INCOMING)
    connection.execute(_WAITING_BY_INCOMING, {"reach": REACH})
    found: dict[bool, tuple[int, dict[str, int]]] = {}
    for waits in (False, True):
        users = connection.execute(_COUNT_INCOMING, {"waits": waits}).scalar_one()
        queues = connection.execute(_INCOMING_QUEUES, {"waits": waits})
        found[waits] = users, {row[0]: row[1] for row in queues}
    return *found[False], *found[True]


def _store(connection: Connection, named: Named, done: Staged) -> int:
    number: int = connection.execute(
        insert(SuppressionList)
        .values(
            name=named.name,
            replaces=named.replaces,
            source=named.source,
            queue=named.queue,
            expires_at=named.expires_at,
            size=done.numbers,
            reason=named.reason,
            by=named.by,
            since=func.clock_timestamp(),
        )
        .returning(SuppressionList.id)
    ).scalar_one()
    name = _partition(number)
    connection.execute(
        text(
            f"CREATE TABLE {name} (LIKE assignment.suppressed_numbers,"
            f" CONSTRAINT bound CHECK (list_id = {number}))"
        )
    )
    connection.execute(
        text(
            f"INSERT INTO {name} (list_id, number, expires_at)"  # noqa: S608 - numbers of ours
            f" SELECT {number}, number, expires_at FROM incoming"
        )
    )
    connection.execute(text(f"ALTER TABLE {name} ADD PRIMARY KEY (list_id, number)"))
    connection.execute(text(f"CREATE INDEX ON {name} (right(number, 7))"))
    connection.execute(text(f"ANALYZE {name}"))
    # One role owns all of these tables, whichever role imports, because it drops them later.
    owner, mine = connection.execute(_OWNER).one()
    if not mine:
        connection.execute(text(f"ALTER TABLE {name} OWNER TO {owner}"))
    connection.execute(
        text(
            f"ALTER TABLE assignment.suppressed_numbers ATTACH PARTITION {name}"
            f" FOR VALUES IN ({number})"
        )
    )
    return number


def flip(transaction: FencedTransaction, list_id: int, *, by: str, why: str) -> Done | Refused:
    """Put a loaded list of suppressed phone numbers in force from this commit on.

    If the list was loaded to replace lists of the same name, these are retired. `by`: the operator;
    `why`: the reason. Repeating the command changes nothing. Refused: an unknown list, and one that
    was retired.
    """
    row = transaction.connection.execute(_FIND, {"list_id": list_id}).first()
    if row is None or row.state == SuppressionListState.RETIRED:
        return Refused(code=Code.MALFORMED, reason=f"no suppression list {list_id} that is loaded")
    if row.state == SuppressionListState.STANDING:
        return Done(replayed=True)
    retired = _retire(transaction, row.name) if row.replaces else []
    transaction.connection.execute(
        update(SuppressionList)
        .where(SuppressionList.id == list_id)
        .values(state=_STANDING, stands_since=transaction.now)
    )
    _record_event(
        transaction, row.name, by=by, why=why, list_id=list_id, size=row.size, retired=retired
    )
    return Done(counts={"numbers": row.size, "replaced": len(retired)})


def drop(transaction: FencedTransaction, name: str, *, by: str, why: str) -> Done | Refused:
    """Retire the lists of suppressed phone numbers with this name: they are not in force any more.

    `by`: the operator; `why`: the reason. Refused: no list of this name is in force.
    """
    retired = _retire(transaction, name)
    if not retired:
        return Refused(code=Code.NOT_SUPPRESSED, reason=f"no suppression list {name!r} stands")
    _record_event(transaction, name, by=by, why=why, list_id=None, size=0, retired=retired)
    return Done(counts={"replaced": len(retired)})


def _retire(transaction: FencedTransaction, name: str) -> list[int]:
    retired = transaction.connection.execute(
        update(SuppressionList)
        .where(SuppressionList.name == name, SuppressionList.state == _STANDING)
        .values(state=_RETIRED, retired_at=transaction.now)
        .returning(SuppressionList.id)
    ).scalars()
    return sorted(retired)


def _record_event(transaction: FencedTransaction, name: str, **details: object) -> None:
    transaction.record(
        {"kind": EventKind.SUPPRESSION_LIST_CHANGED, "details": {"list": name, **details}}
    )


def purge_lists(connection: Connection) -> int:
    """Delete the phone numbers of all retired suppression lists; return the number of lists.

    Each list has a table of its own, which is dropped. A list that was loaded more than a day ago
    and never put in force is retired first. `connection` must be in autocommit.
    """
    connection.execute(_ABANDONED)
    gone = connection.execute(_GONE).all()
    for row in gone:
        name = _partition(row.id)
        how = "FINALIZE" if row.pending else "CONCURRENTLY"
        connection.execute(
            text(f"ALTER TABLE assignment.suppressed_numbers DETACH PARTITION {name} {how}")
        )
        connection.execute(text(f"DROP TABLE {name}"))
    return len(gone)


_HASHES = text(
    "SELECT number, expires_at FROM assignment.suppressions WHERE lifted_at IS NULL"
    " AND starts_with(number, :prefix) AND (queue IS NULL OR queue = :queue)"
)
_MATCHED_BY_INCOMING = text(
    "CREATE TEMPORARY TABLE incoming_users ON COMMIT DROP AS"
    " SELECT DISTINCT p.user_id, false AS waits"
    " FROM assignment.phones p, unnest(p.numbers) AS has (number)"
    " JOIN incoming i ON i.number = has.number"
)
_WAITING_BY_INCOMING = text(
    "INSERT INTO incoming_users SELECT DISTINCT p.user_id, true"
    " FROM assignment.phones p, unnest(p.unread) AS has (tail)"
    " JOIN incoming i ON right(i.number, :reach) = has.tail"
    " WHERE NOT EXISTS (SELECT 1 FROM incoming_users m WHERE m.user_id = p.user_id)"
)
_COUNT_INCOMING = text("SELECT count(*) FROM incoming_users WHERE waits = :waits")
_INCOMING_QUEUES = text(
    "SELECT g.queue, count(*) FROM incoming_users u JOIN assignment.entries e USING (user_id)"
    " JOIN assignment.generations g ON g.id = e.generation_id AND g.state = 'published'"
    " WHERE e.state <> 'out' AND u.waits = :waits GROUP BY g.queue ORDER BY g.queue"
)


class Matched(BaseModel):
    """The suppressions of a phone number, and the number of users who have this phone number."""

    text: str
    numbers: list[str]
    kinds: list[str]
    valid: bool
    zones: list[str]
    extension: str | None
    suppressed: bool
    """True if a suppression in `entries` or `lists` applies, in at least one dialer queue."""
    entries: list[dict[str, Any]]
    lists: list[dict[str, Any]]
    users: int
    queues: dict[str, int]
    waiting: int
    """Number of users who have to wait for an operator if this phone number is suppressed.

    The phone number need not be suppressed now: the users are counted in either case. The phone
    number of such a user ends with the same 7 digits, and the user's number or this one is unclear:
    it cannot be read for certain. While this number is suppressed, these users are not offered
    until an operator decides whether they may be called. Users who have the number itself are not
    counted. At most 10,000 users are counted.
    """
    waiting_queues: dict[str, int]


def check(connection: Connection, phone: str, reader: Reader) -> Matched:
    """Return a phone number's E.164 form, its suppressions in force, and its users.

    `reader`: the rules for reading phone numbers. Cost: index look-ups, and one pass over all
    users.
    """
    read = reader.read(phone)
    as_text = plain(phone)
    parameters: dict[str, Any] = {"numbers": read.e164, "plain": as_text}
    compared = list(read.e164)
    if reader.key is not None:
        compared += [reader.keyed(each) for each in (*read.e164, as_text)]
    found = connection.execute(_ENTRIES, parameters | {"numbers": compared}).mappings()
    entries = [dict(row) for row in found]
    for each in entries:
        if (each["number"] or "").startswith(KEYED):  # of one that was forgotten
            each["number"] = None
    lists = [dict(row) for row in connection.execute(_LISTS, parameters).mappings()]
    users, queues = whom(connection, read.e164, as_text)
    waiting, waiting_queues = who_waits(connection, phone, reader)
    return Matched(
        text=phone,
        numbers=read.e164,
        kinds=read.kinds,
        valid=bool(read.numbers) and all(each.valid for each in read.numbers),
        zones=list(read.zones),
        extension=next((each.extension for each in read.numbers if each.extension), None),
        suppressed=bool(entries or lists),
        entries=entries,
        lists=lists,
        users=users,
        queues=queues,
        waiting=waiting,
        waiting_queues=waiting_queues,
    )


def whom(
    connection: Connection, numbers: Sequence[str], as_text: str
) -> tuple[int, dict[str, int]]:
    """Count the users to whom a suppression (ban on calls) applies, in all and by dialer queue.

    `numbers`: the suppressed phone numbers in E.164. If `numbers` is empty, the suppression is of a
    text that is not a phone number, and `as_text` is this text in its form for comparison
    (`phones.plain`). The suppression then applies to each user whose phone text in the CRM has the
    same form for comparison. Cost for such a text: a pass over all users.

    At most 10,000 users (`WHOM_AT_MOST`) are found. The total and the counts by dialer queue are
    numbers of these users. A dialer queue's count includes only users in its published generation.
    """
    parameters = {"numbers": list(numbers), "plain": as_text}
    found = _BY_NUMBER if numbers else _BY_TEXT
    return _in_queues(connection, list(connection.execute(found, parameters).scalars()))


def who_waits(connection: Connection, phone: str, reader: Reader) -> tuple[int, dict[str, int]]:
    """Count the users who have to wait for an operator if this phone number is suppressed.

    Returns the count in all and by dialer queue. The phone number need not be suppressed now: the
    users are counted in either case.

    The phone number of such a user ends with the same 7 digits (`REACH`), and the user's number or
    the number `phone` is unclear: it cannot be read for certain. While `phone` is suppressed, the
    rule `number_unclear` holds these users back until an operator decides whether they may be
    called. Users who have the number itself are not counted.

    At most 10,000 users (`WHOM_AT_MOST`) are found. The total and the counts by dialer queue are
    numbers of these users. Cost: a pass over the users' numbers.
    """
    target = target_of(phone, reader, raw=True)
    if isinstance(target, str) or target.tail is None:
        return 0, {}
    parameters = {
        "tails": [target.tail],
        "numbers": [target.number] if target.number else [],
        "plain": target.plain if target.by_text else None,
    }
    found = _BY_ANY_TAIL if target.unsure else _BY_UNREAD_TAIL
    return _in_queues(connection, list(connection.execute(found, parameters).scalars()))


def _in_queues(connection: Connection, users: list[int]) -> tuple[int, dict[str, int]]:
    queues = connection.execute(_QUEUES, {"users": users}).all() if users else []
    return len(users), {row[0]: row[1] for row in queues}


def standing_lists(connection: Connection) -> list[dict[str, Any]]:
    """Return the lists of suppressed phone numbers that are in force, ordered by name.

    A list is in force from the command `flip` until it is retired. An operator retires a list by
    dropping it, or by loading another list that replaces it. A list whose expiry has passed
    suppresses no number any more, but it is returned until it is retired.
    """
    return [dict(row) for row in connection.execute(_STAND).mappings()]


def exported(connection: Connection, dialer: Dialer) -> Iterator[tuple[object, ...]]:
    """Yield do-not-contact suppressions, one row each; `EXPORTED` names the columns.

    First come the suppressions of single users and of single phone numbers. Of these, lifted and
    expired ones are left out. Then come the phone numbers of the imported lists that were put in
    force and not retired. Of these, a number is included even if the number or its list has
    expired. The column `expires_at` has the time of the expiry. The rows are streamed. Numbers of
    erased persons, of which only a hash is stored, are left out.
    """
    streamed = connection.execution_options(stream_results=True, yield_per=10_000)
    for rows in streamed.execute(_EXPORT).partitions():
        ids = user_ids.own(dialer, connection, (row.user_id for row in rows if row.user_id))
        for row in rows:
            own = {"user_id": ids[row.user_id]} if row.user_id else {}
            yield tuple({**row._asdict(), **own}.values())


EXPORTED = (
    *("number", "phone", "user_id", "list", "queue", "reason", "source", "since", "by"),
    "expires_at",
)
WHOM_AT_MOST = 10_000
_BY_NUMBER = (
    select(Phone.user_id)
    .where(Phone.numbers.op("&&")(bindparam("numbers", type_=ARRAY(Text))))
    .limit(WHOM_AT_MOST)
)
_BY_TEXT = select(Phone.user_id).where(Phone.plain == bindparam("plain")).limit(WHOM_AT_MOST)
_BY_ANY_TAIL, _BY_UNREAD_TAIL = (
    select(Phone.user_id)
    .where(
        tails.bool_op("&&")(bindparam("tails", type_=ARRAY(Text))),
        not_(Phone.numbers.bool_op("&&")(bindparam("numbers", type_=ARRAY(Text)))),
        Phone.plain.is_distinct_from(bindparam("plain", type_=Text)),
    )
    .limit(WHOM_AT_MOST)
    for tails in (Phone.tails, Phone.unread)
)


def _date(said: str, line: int) -> datetime | None:
    if not said:
        return None
    try:
        found = datetime.fromisoformat(said)
    except ValueError:
        raise UsageError(f"line {line}: {said!r:.40} is no date such as 2027-03-31") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _partition(number: int) -> str:
    return f"assignment.suppressed_numbers_{number:d}"


_OWNER = text(
    "SELECT quote_ident(tableowner), tableowner = current_user FROM pg_tables"
    " WHERE schemaname = 'assignment' AND tablename = 'suppressed_numbers'"
)
_FIND = (
    select(
        SuppressionList.name,
        SuppressionList.state,
        SuppressionList.replaces,
        SuppressionList.size,
    )
    .where(SuppressionList.id == bindparam("list_id", type_=BigInteger))
    .with_for_update()
)
_GONE = text(
    "SELECT l.id, i.inhdetachpending AS pending FROM assignment.suppression_lists l"
    " JOIN pg_inherits i ON i.inhrelid = to_regclass('assignment.suppressed_numbers_' || l.id)"
    " WHERE l.state = 'retired'"
)
_ABANDONED = text(
    "UPDATE assignment.suppression_lists SET state = 'retired', retired_at = now()"
    " WHERE state = 'staged' AND since < now() - interval '1 day'"
)
_unexpired = or_(Suppression.expires_at.is_(None), Suppression.expires_at > func.now())
_ENTRIES = select(
    Suppression.id,
    Suppression.phone,
    Suppression.number,
    Suppression.queue,
    Suppression.reason,
    Suppression.source,
    Suppression.since,
    Suppression.by,
    Suppression.expires_at,
).where(
    Suppression.lifted_at.is_(None),
    _unexpired,
    Suppression.phone.is_not(None),
    or_(
        Suppression.number == any_(bindparam("numbers", type_=ARRAY(Text))),
        Suppression.number.is_(None) & (Suppression.plain == bindparam("plain")),
    ),
)
_STAND = (
    select(
        SuppressionList.id,
        SuppressionList.name,
        SuppressionList.size,
        SuppressionList.queue,
        SuppressionList.source,
        SuppressionList.reason,
        SuppressionList.by,
        SuppressionList.stands_since,
        SuppressionList.expires_at,
    )
    .where(SuppressionList.state == _STANDING)
    .order_by(SuppressionList.name, SuppressionList.id)
)
_LISTS = _STAND.join(SuppressedNumber, SuppressedNumber.list_id == SuppressionList.id).where(
    SuppressedNumber.number == any_(bindparam("numbers", type_=ARRAY(Text))),
    or_(SuppressionList.expires_at.is_(None), SuppressionList.expires_at > func.now()),
    or_(SuppressedNumber.expires_at.is_(None), SuppressedNumber.expires_at > func.now()),
)
_QUEUES = (
    select(Generation.queue, func.count())
    .select_from(Entry)
    .join(Generation, Generation.id == Entry.generation_id)
    .where(
        Generation.state == PUBLISHED_STATE,
        Entry.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
        Entry.state != OUT,
    )
    .group_by(Generation.queue)
    .order_by(Generation.queue)
)
_EXPORT: CompoundSelect[*tuple[Any, ...]] = union_all(
    select(
        Suppression.number,
        Suppression.phone,
        Suppression.user_id,
        literal_column("NULL::text").label("list"),
        Suppression.queue,
        Suppression.reason,
        Suppression.source,
        Suppression.since,
        Suppression.by,
        Suppression.expires_at,
    ).where(
        Suppression.lifted_at.is_(None),
        _unexpired,
        Suppression.kind == sql_text(SuppressionKind.DO_NOT_CONTACT),
        # A keyed hash is of no use to another system.
        func.coalesce(~Suppression.number.startswith(KEYED), true()),
    ),
    select(
        SuppressedNumber.number,
        literal_column("NULL::text"),
        literal_column("NULL::bigint"),
        SuppressionList.name,
        SuppressionList.queue,
        SuppressionList.reason,
        SuppressionList.source,
        SuppressionList.stands_since,
        SuppressionList.by,
        func.least(SuppressedNumber.expires_at, SuppressionList.expires_at),
    )
    .join(SuppressionList, SuppressionList.id == SuppressedNumber.list_id)
    .where(SuppressionList.state == _STANDING),
)
