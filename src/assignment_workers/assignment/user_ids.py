"""Convert between the CRM's ids of users and the internal integer ids, at every interface.

If the CRM's ids are UUIDs or texts, the table `assignment.user_ids` gives each user an internal
integer id, and the workers use only that id. An interface converts the id that a caller names to
the internal id by `number_of`, and the internal ids in a result to the CRM's ids by `shown`. If the
CRM's ids are integers, they are the internal ids too: both functions return their input and read
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import datetime
from typing import Any, TypeVar, cast
from uuid import UUID
from weakref import WeakKeyDictionary

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, event, text

from assignment_workers.errors import UsageError
from assignment_workers.identity import UserId
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.tables import ID_AT_MOST

T = TypeVar("T")

__all__ = [
    "NOBODY",
    "UserId",
    "number_new",
    "number_of",
    "numbered",
    "own",
    "read",
    "shown",
    "unnumbered",
]

NOBODY = 0
"""An internal integer id that no user has."""
LARGEST = 2**63 - 1
REMEMBERED = 100_000
"""Maximum number of users whose CRM ids a process caches for one database."""
_NAMES = frozenset({"user_id", "user_ids"})
"""Names of fields whose value is the internal integer id of a user, or a list of such ids."""
_TEXTS = frozenset({"reason", "examples", "what"})
"""Names of text fields in which this package may write a user's internal id, as in `user 27`."""
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]|^\\s|\\s$")
_FITS = (
    f"length(n.id) BETWEEN 1 AND {ID_AT_MOST}"
    " AND n.id !~ '[\\u0001-\\u001F\\u007F-\\u009F]|^\\s|\\s$'"
)
"""SQL condition under which the function `read` accepts a text as an id."""
_NUMBERING = 0x75736572
"""Key of the advisory lock of a transaction that gives internal integer ids to several users.

The lock prevents a deadlock of two such transactions that insert the same ids in different orders.
"""
_NAMED = re.compile(r"\b(user )(\d{1,19})\b")

_remembered: WeakKeyDictionary[Engine, dict[int, str]] = WeakKeyDictionary()


def read(dialer: Dialer, given: object) -> UserId:
    """Check a user's id that a caller named; return it in the form of the dialer's CRM.

    A text of digits is accepted as an integer only if the CRM's ids are integers. Raises
    `UsageError`, one line that does not repeat the text, for a value that is not an id.
    """
    kind = dialer.numbered
    if kind is None:
        number = int(given) if isinstance(given, str) and _is_number(given) else given
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= LARGEST:
            return number
        raise UsageError(f"a user's id is a whole number from 1 to {LARGEST}")
    if kind == "uuid":
        try:
            return str(UUID(given if isinstance(given, str) else ""))
        except ValueError:
            raise UsageError("a user's id is a UUID, as a string") from None
    if isinstance(given, str) and 1 <= len(given) <= ID_AT_MOST and not _UNFIT.search(given):
        return given
    raise UsageError(
        f"a user's id is a string of 1 to {ID_AT_MOST} characters, without control characters"
        " and without white space at its ends"
    )


def _is_number(given: str) -> bool:
    return given.isascii() and given.isdigit() and len(given) <= len(str(LARGEST))


def number_of(dialer: Dialer, connection: Connection, user: UserId) -> int:
    """Return the internal integer id of a user; 0 (`NOBODY`) if the user has none.

    `user`: the CRM's id of the user, as `read` returned it.
    """
    return user if isinstance(user, int) else _find(dialer, connection, [user]).get(user, NOBODY)


def numbered(
    dialer: Dialer, connection: Connection, users: Collection[UserId]
) -> dict[UserId, int]:
    """Return the internal integer id of each of these users, by the CRM's id.

    A user without an internal id in `assignment.user_ids` gets one. `users`: the CRM's ids, as
    `read` returned them. The caller commits.
    """
    given = [each for each in users if isinstance(each, str)]
    found: dict[UserId, int] = {each: each for each in users if isinstance(each, int)}
    if given:
        connection.execute(_statement(dialer, _GIVE), {"ids": sorted(set(given))})
        found.update(_find(dialer, connection, given))
    return found


def _find(dialer: Dialer, connection: Connection, users: Collection[str]) -> dict[str, int]:
    rows = connection.execute(_statement(dialer, _FIND), {"ids": list(users)})
    return {row.own: row.user_id for row in rows}


def numbers_of(
    dialer: Dialer, connection: Connection, users: Collection[UserId]
) -> dict[UserId, int]:
    """Return the internal integer id of each of these users, by the CRM's id.

    Users without an internal id in `assignment.user_ids` are left out.
    """
    found: dict[UserId, int] = {each: each for each in users if isinstance(each, int)}
    if texts := [each for each in users if isinstance(each, str)]:
        found.update(_find(dialer, connection, texts))
    return found


def number_in_order(
    dialer: Dialer, connection: Connection, users: Sequence[UserId]
) -> dict[UserId, int]:
    """Return the internal integer id of each of these users, by the CRM's id.

    Users without an internal id in `assignment.user_ids` get one, in the order of `users`. Ids that
    `read` refuses are left out. The caller commits.
    """
    fit = [each for each in dict.fromkeys(users) if isinstance(each, str) and _fits(dialer, each)]
    numbers = numbers_of(dialer, connection, users if dialer.numbered is None else fit)
    new = [each for each in fit if each not in numbers]
    if new:
        # Two transactions that insert the same ids in other orders would wait for each other.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _NUMBERING})
        connection.execute(_statement(dialer, _GIVE), {"ids": new})
        numbers.update(_find(dialer, connection, new))
    return numbers


def _fits(dialer: Dialer, user: str) -> bool:
    try:
        return read(dialer, user) == user
    except UsageError:
        return False


def number_new(
    dialer: Dialer, connection: Connection, rows: str, since: datetime | None = None
) -> int:
    """Give an internal integer id to each user of a SQL query who has none; return the count.

    `rows`: a SQL query with two columns: `id`, the CRM's id of a user, and `created_at`, a time.
    The internal ids are given in the order of these times. `since`: only users whose `created_at`
    is this time, in UTC, or later. A user gets no internal id if the CRM's id is unusable: the
    function `read` of this module would refuse it. The caller commits.
    """
    kind = dialer.numbered
    fits = _FITS if kind == "text" else "n.id IS NOT NULL"
    statement = text(
        f"INSERT INTO assignment.user_ids ({kind}) SELECT n.id FROM ({rows}) n WHERE {fits}"  # noqa: S608
        + (" AND n.created_at >= :since" if since is not None else "")
        + f" AND NOT EXISTS (SELECT FROM assignment.user_ids i WHERE i.{kind} = n.id)"
        " GROUP BY n.id ORDER BY min(n.created_at), n.id ON CONFLICT DO NOTHING"
    )
    return connection.execute(statement, {} if since is None else {"since": since}).rowcount


def unnumbered(dialer: Dialer, connection: Connection, rows: str) -> int:
    """Count the users in the query `rows` who have no internal integer id in `assignment.user_ids`.

    `rows`: a SQL query with the column `id`, the CRM's id of a user. After a call of `number_new`
    with the same query, these are only the users whose CRM id is unusable.
    """
    kind = dialer.numbered
    statement = text(
        f"SELECT count(*) FROM ({rows}) n"  # noqa: S608
        f" WHERE NOT EXISTS (SELECT FROM assignment.user_ids i WHERE i.{kind} = n.id)"
    )
    return int(connection.execute(statement).scalar_one())


def own(dialer: Dialer, at: Connection | Engine, numbers: Iterable[int]) -> dict[int, UserId]:
    """Return the CRM's id of each of these users, by the user's internal integer id.

    `numbers`: the internal ids. An internal id that does not exist is mapped to itself. `at`: the
    connection or engine for reading CRM ids. Only CRM ids that the process has not cached are read.
    A cached id stays valid, because the stored ids of a user never change. Only a failover can lose
    stored ids, and then the cache is cleared (`_memory`).
    """
    wanted = set(numbers)
    if dialer.numbered is None:
        return {each: each for each in wanted}
    memory = _memory(at.engine)
    found: dict[int, UserId] = {each: memory[each] for each in wanted & memory.keys()}
    if missing := list(wanted - found.keys()):
        with _connected(at) as connection:
            rows = connection.execute(_statement(dialer, _OWN), {"numbers": missing})
            read_now = {row.user_id: row.own for row in rows}
        if len(memory) + len(read_now) > REMEMBERED:
            memory.clear()
        memory.update(read_now)
        found.update(read_now)
    return {each: found.get(each, each) for each in wanted}


def _memory(engine: Engine) -> dict[int, str]:
    """Return the cache that maps internal integer ids of users to the CRM's ids, for one database.

    `engine`: the engine of that database. Each new connection of the engine clears the cache,
    because the new connection may be the first after a failover. The standby that then serves the
    database may lack the latest rows of `assignment.user_ids`, and give the internal ids of these
    lost rows to other users.
    """
    if engine not in _remembered:
        memory: dict[int, str] = {}
        event.listen(engine, "connect", lambda *_: memory.clear())
        _remembered[engine] = memory
    return _remembered[engine]


@contextmanager
def _connected(at: Connection | Engine) -> Iterator[Connection]:
    if isinstance(at, Connection):
        yield at
        return
    with at.connect() as connection:
        yield connection


def shown(dialer: Dialer, at: Connection | Engine, facts: T) -> T:
    """Return a copy of `facts` with the CRM's ids of users in place of the internal integer ids.

    `at`: the connection or engine with which the CRM's ids are read. Internal ids are replaced in
    the fields `user_id` and `user_ids`. In some texts they are also replaced after the word `user`.
    These are the texts of refusals, and the texts of the results of checks. A check looks for
    breaches of the system's guarantees, which docs/how-it-works.md lists; the command `doctor` runs
    such checks. Mappings, lists, dataclasses and models are copied. Texts that people typed stay
    unchanged.
    """
    if dialer.numbered is None:
        return facts
    numbers: list[int] = []
    _walk("", facts, numbers.append)
    if not numbers:
        return facts
    ids = own(dialer, at, numbers)
    return cast(T, _walk("", facts, lambda number: ids.get(number, number)))


def _walk(name: str, value: object, of: Any, *, ours: bool = False) -> object:  # noqa: ANN401
    """Return a copy of `value` in which `of(id)` replaces each internal integer id of a user.

    `of`: a function that gets an internal id and returns the value to put in its place. `name`: the
    name of the field that has `value`. `ours`: True if this package wrote the texts in `value`,
    such as the reason of a refusal; False if people may have typed them.

    Ids are replaced in two cases. First, an integer is replaced if `name` is one of `_NAMES`, such
    as `user_id`. Second, in a text such as `user 27`, the number after the word `user` is replaced
    if `ours` is True and `name` is one of `_TEXTS`, such as `reason`. Texts that people typed stay
    unchanged.
    """
    match value:
        case bool():
            return value
        case int():
            return of(value) if name in _NAMES else value
        case str():
            if not ours or name not in _TEXTS:
                return value
            return _NAMED.sub(lambda found: f"{found[1]}{of(int(found[2]))}", value)
        case Mapping():
            return {key: _walk(str(key), each, of) for key, each in value.items()}
        case list():
            return [_walk(name, each, of, ours=ours) for each in value]
        case tuple() if type(value) is tuple:
            return tuple(_walk(name, each, of, ours=ours) for each in value)
        case BaseModel():
            said = {key: getattr(value, key) for key in type(value).model_fields}
            is_ours = getattr(value, "outcome", None) == "refused" or hasattr(value, "guarantee")
            changed = {key: _walk(key, each, of, ours=is_ours) for key, each in said.items()}
            return value.model_copy(update=changed)
        case _ if is_dataclass(value) and not isinstance(value, type):
            said = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
            is_ours = hasattr(value, "guarantee")
            changed = {key: _walk(key, each, of, ours=is_ours) for key, each in said.items()}
            return replace(value, **changed)
        case _:
            return value


def _statement(dialer: Dialer, sql: str) -> Any:  # noqa: ANN401 - SQLAlchemy's text
    kind = dialer.numbered or "text"
    return text(sql.format(kind=kind))


_GIVE = (
    "INSERT INTO assignment.user_ids ({kind}) SELECT n.id"
    " FROM unnest(CAST(:ids AS {kind}[])) WITH ORDINALITY n(id, place)"
    " WHERE NOT EXISTS (SELECT FROM assignment.user_ids i WHERE i.{kind} = n.id)"
    " ORDER BY n.place ON CONFLICT DO NOTHING"
)
_FIND = (
    "SELECT user_id, CAST({kind} AS text) AS own FROM assignment.user_ids"
    " WHERE {kind} = ANY(CAST(:ids AS {kind}[]))"
)
_OWN = (
    "SELECT user_id, CAST({kind} AS text) AS own FROM assignment.user_ids"
    " WHERE user_id = ANY(CAST(:numbers AS bigint[])) AND {kind} IS NOT NULL"
)
