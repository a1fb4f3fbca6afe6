"""The stored phone numbers of users: parsed from the CRM's facts, and looked up by number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Select,
    Text,
    any_,
    bindparam,
    delete,
    exists,
    null,
    select,
)

from assignment_workers.assignment.jobs import Counts, Work
from assignment_workers.phones import plain
from assignment_workers.policy.rules import Numbers
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.tables import Forgotten, Phone, PhoneZone

READ_IN_A_TURN = 100
"""Maximum number of users whose numbers one transaction of the sequencer parses.

Parsing the numbers of this many users takes about 10 ms.
"""
AT_A_TIME = 1_000
"""Number of users whose phone numbers a job parses in one batch, which takes about 0.1 s."""
BATCHES_AT_MOST = 200
BEFORE_A_BUILD = 20
"""Maximum number of batches of changed phone numbers that a build parses before it begins.

Claims parse the phone numbers that remain.
"""

Said = Mapping[str, Any]
"""A user's values in the CRM: `id`, `phone_number`, `country` and `time_zone`."""


def identified(people: Iterable[Said], numbers: Numbers, now: datetime) -> dict[str, Any]:
    """Parse the phone number of each of these users; return the parameters that `store` needs.

    `store` then writes the results to the database. `people`: the users' values in the CRM.
    `numbers`: the rules for reading phone numbers. `now`: the time that is stored with the results.
    """
    stored = []
    zones: set[str] = set()
    for said in sorted(people, key=lambda each: each["id"]):
        written = said["phone_number"]
        country = said["country"] if numbers.country is not None else None
        zone = said["time_zone"] if numbers.time_zone is not None else None
        found = numbers.reader.read(written, country, zone)
        zones |= {*found.zones}
        as_text = plain(written) or None if written else None
        hashed: list[str] = []
        if numbers.reader.key is not None:
            hashed = [numbers.reader.keyed(each) for each in (*found.e164, as_text) if each]
        stored.append(
            {
                "user_id": said["id"],
                "text": written,
                "country": country,
                "time_zone": zone,
                "reader": numbers.reader.tag,
                "numbers": found.e164,
                "keyed": hashed,
                "kinds": found.kinds,
                "tails": found.tails,
                "unread": list(found.unread),
                "plain": as_text,
                "zones": list(found.zones),
                "home": found.country,
                "read_at": now,
            }
        )
    return {"phones": stored, "zones": [{"zone": each} for each in sorted(zones)]}


def read(work: Work, numbers: Numbers, *, batches: int = BATCHES_AT_MOST) -> Counts:
    """Parse users' phone numbers that are new, changed, or were parsed under other settings.

    For each user, the numbers are stored in E.164 form. Each batch is parsed first and then written
    by a short transaction. So a claim that waits for this transaction waits only milliseconds. A
    run parses at most `batches` batches; the next run parses the rest. Users with the highest ids
    come first, because new users are the next to be called.

    Returns three counts of users. `read`: users whose phone number was parsed, also if no number
    was found in the text. `unreadable`: those among them who have a text in which no number was
    found. `forgotten`: users who are not in the CRM any more, and whose stored results were
    deleted. Cost if nothing has changed: one pass over the users and the stored results.
    """
    counts = {"read": 0, "unreadable": 0, "forgotten": 0}
    below = 2**63 - 1
    for _ in range(batches):
        found = work.side_connection.execute(stale(numbers), {"below": below}).mappings().all()
        work.side_connection.commit()
        if found:
            parameters = identified([dict(row) for row in found], numbers, work.now)
            store(work.side_connection, parameters)
            counts["read"] += len(found)
            counts["unreadable"] += sum(
                not each["numbers"] and bool(each["text"]) for each in parameters["phones"]
            )
            below = found[-1]["id"]
            work.store_counts(counts)
        if len(found) < AT_A_TIME:
            counts["forgotten"] = work.side_connection.execute(_FORGET).rowcount
            work.store_counts(counts)
            break
    return counts


def store(connection: Connection, parameters: Mapping[str, Any]) -> None:
    """Store the users' phone numbers and time zones. `parameters`: the result of `identified`."""
    connection.execute(STORE, parameters)
    connection.execute(STORE_ZONES, parameters)


def zones(connection: Connection) -> frozenset[str]:
    """Return the names of all time zones in which users live, each name once."""
    return frozenset(connection.execute(ZONES).scalars())


def said_of(numbers: Numbers, users: Sequence[int]) -> tuple[Select[*tuple[Any, ...]], Said]:
    """Return a query for the phone numbers, countries and time zones of `users`.

    The second returned value has the query's parameters. The query reads a CRM in our own database.
    `numbers`: the rules for reading phone numbers.
    """
    of_users = _said(numbers).where(CrmUser.id == any_(bindparam("users", type_=ARRAY(BigInteger))))
    return of_users, {"users": list(users)}


def stale(numbers: Numbers) -> Select[*tuple[Any, ...]]:
    """Return the query for the next users whose phone number has to be parsed.

    The number has to be parsed if it is new, has changed, or was parsed under other settings than
    `numbers`. If `numbers` names a column of the CRM for the user's country, the number also has to
    be parsed when the country has changed. The same holds for the time zone. The query returns only
    users with ids below the SQL parameter `below`, at most `AT_A_TIME`. The user with the highest
    id comes first. Erased users are left out.
    """
    return (
        _said(numbers)
        .outerjoin(Phone, Phone.user_id == CrmUser.id)
        .where(
            ~numbers.current,
            CrmUser.id < bindparam("below", type_=BigInteger),
            ~exists().where(Forgotten.user_id == CrmUser.id),
        )
        .order_by(CrmUser.id.desc())
        .limit(AT_A_TIME)
    )


def owners(connection: Connection, numbers: Iterable[str]) -> dict[str, list[int]]:
    """Return, for each of these phone numbers (E.164), the ids of the users who have this number.

    A number that no user has is left out. Cost: look-ups in the index on phone numbers.
    """
    asked = sorted(set(numbers))
    found: dict[str, list[int]] = {}
    for user, has in connection.execute(_OWNERS, {"numbers": asked}):
        for number in set(has) & set(asked):
            found.setdefault(number, []).append(user)
    return found


def _said(numbers: Numbers) -> Select[*tuple[Any, ...]]:
    country, zone = (null() if of is None else of for of in (numbers.country, numbers.time_zone))
    return select(
        CrmUser.id, CrmUser.phone_number, country.label("country"), zone.label("time_zone")
    )


_stored = insert_rows(
    Phone,
    Phone.user_id,
    Phone.text,
    Phone.country,
    Phone.time_zone,
    Phone.reader,
    Phone.numbers,
    Phone.keyed,
    Phone.kinds,
    Phone.tails,
    Phone.unread,
    Phone.plain,
    Phone.zones,
    Phone.home,
    Phone.read_at,
    parameter="phones",
    unless=Forgotten.user_id,
)
STORE = _stored.on_conflict_do_update(
    index_elements=[Phone.user_id],
    set_={
        column.name: _stored.excluded[column.name]
        for column in Phone.__table__.c
        if not column.primary_key
    },
)
STORE_ZONES = insert_rows(PhoneZone, PhoneZone.zone, parameter="zones").on_conflict_do_nothing()
ZONES = select(PhoneZone.zone)
"""SQL query for the names of the time zones in which users live. It returns a few rows."""

_OWNERS = select(Phone.user_id, Phone.numbers).where(
    Phone.numbers.op("&&")(bindparam("numbers", type_=ARRAY(Text)))
)
_FORGET = delete(Phone).where(
    ~exists(select(1).where(CrmUser.id == Phone.user_id)),
    exists(select(1).select_from(CrmUser.__table__.alias("any_user"))),
)
