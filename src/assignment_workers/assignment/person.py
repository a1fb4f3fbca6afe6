"""A person's rights: the export of all data stored about a user, and the erasure of such data.

After an erasure, the id of the user stays stored, with times, outcomes and counts; docs/privacy.md
explains why.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.crm import mirror_tables
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.reader import facts_schema
from assignment_workers.assignment.rows import Row, rows_of
from assignment_workers.assignment.suppressions import FORGOTTEN
from assignment_workers.errors import UsageError
from assignment_workers.identity import UserId
from assignment_workers.phones import Reader, plain
from assignment_workers.policy.dialer import DECLARED, Dialer
from assignment_workers.schema.dialer_schema import in_schema, schema_of
from assignment_workers.schema.tables import SuppressionListState

_ENDS = 9
"""Number of last digits of a phone number that are searched for in texts."""
_DIGITS_AT_LEAST = 7
"""Minimum number of digits of a phone number that can identify a person in texts.

A shorter number would also be found in ids and times.
"""


class Stored(BaseModel):
    """All data stored about a user, table by table, without the CRM's own tables."""

    user_id: UserId
    at: datetime
    tables: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Person:
    """A user, with the assignment ids and phone numbers by which stored texts may name the user."""

    user_id: int
    own: UserId
    """The CRM's id of the user."""
    assignments: frozenset[str]
    numbers: frozenset[str]
    """The last 9 digits (`_ENDS`) of each of the user's phone numbers."""
    texts: frozenset[str] = frozenset()
    """The user's phone numbers as they are written in the CRM and in missed calls."""
    e164: frozenset[str] = frozenset()
    """Every phone number in `texts`, in E.164."""

    @property
    def patterns(self) -> list[str]:
        """Patterns for SQL's LIKE, one for each number, to be compared with the digits of a text.

        The last 9 digits (`_ENDS`) of a phone number may be anywhere in the text's digits. A phone
        number with fewer digits may be a part of another number, so it must equal the text's
        digits.
        """
        return [f"%{each}%" if len(each) == _ENDS else each for each in self.numbers]

    def is_named(self, said: str) -> bool:
        """Return True if the text `said` names the person.

        A text names the person by an assignment id, a user id in JSON, or a phone number. The whole
        text may be a Celery message, in JSON, with a body that is encoded in base64. The decoded
        body is then searched as well.
        """
        whole = "\n".join((said, *_decoded(said)))
        if any(each in whole for each in self.assignments):
            return True
        if re.search(rf'"(user|user_id)"\s*:\s*({self._written})', whole):
            return True
        digits = re.sub(r"(?<=\d)[ ().\-/]+(?=\d)", "", whole)
        return any(each in digits for each in self.numbers)

    @property
    def _written(self) -> str:
        """Regular expression that finds the CRM's id of the user as the value of a JSON field."""
        if isinstance(self.own, int):
            return rf'"?{self.own}\b'
        return "|".join(
            re.escape(json.dumps(self.own, ensure_ascii=each)) for each in (True, False)
        )


def find(connection: Connection, dialer: Dialer, user_id: int, reader: Reader) -> Person:
    """Return the user with this id, with the phone numbers of the CRM and of missed calls.

    The stored numbers that were read from the CRM earlier are included, because the CRM may have
    erased the person already. `reader`: the rules for reading phone numbers.
    """
    assignments = connection.execute(
        text("SELECT id::text FROM assignment.assignments WHERE user_id = :user"), {"user": user_id}
    ).scalars()
    found = [
        *_scalars(
            connection,
            f"SELECT phone_number FROM {facts_schema(connection)}.users WHERE id = :user",  # noqa: S608
            user_id,
        ),
        *_scalars(
            connection, "SELECT phone_number FROM crm_mirror.users WHERE id = :user", user_id
        ),
        *_scalars(
            connection,
            "SELECT phone_number FROM public.missed_calls WHERE user_id = :user",
            user_id,
        ),
        *_scalars(connection, "SELECT text FROM assignment.phones WHERE user_id = :user", user_id),
        # Some can be read only with the country that the CRM named.
        *_scalars(
            connection,
            "SELECT unnest(numbers) FROM assignment.phones WHERE user_id = :user",
            user_id,
        ),
    ]
    texts = frozenset(each for each in found if each)
    e164 = frozenset(number for each in texts for number in reader.read(each).e164)
    ends = frozenset(_ends(texts | e164))
    return Person(
        user_id, _own(dialer, connection, user_id), frozenset(assignments), ends, texts, e164
    )


def _own(dialer: Dialer, connection: Connection, user_id: int) -> UserId:
    return user_ids.own(dialer, connection, [user_id])[user_id]


def export(connection: Connection, dialer: Dialer, user_id: int, reader: Reader) -> Stored:
    """Return all data stored about the user, including texts that people typed. Changes nothing.

    `reader`: the rules for reading phone numbers, by which the user's numbers are found.
    """
    person = find(connection, dialer, user_id, reader)
    at = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    parameters = {"user": user_id, "patterns": person.patterns, "name": str(person.own)}
    parameters["e164"] = list(person.e164)
    tables = {name: rows_of(connection, query, **parameters) for name, query in _STORED.items()}
    letters = rows_of(connection, "SELECT * FROM assignment.dead_letters")
    tables["dead_letters"] = [each for each in letters if person.is_named(each["body"])]
    tables |= _left_by_adoption(connection, user_id)
    return user_ids.shown(dialer, connection, Stored(user_id=user_id, at=at, tables=tables))


def forget(
    connection: Connection, dialer: Dialer, crm: Crm | None, user_id: int, reader: Reader
) -> dict[str, int]:
    """Erase the texts and phone numbers of the user; return the number of changed rows by table.

    Before the call, the caller ensures that no agent holds the user and that the user is
    suppressed; afterwards the caller commits. The suppression and a row in the table `forgotten`
    remain, so that the user is never called again.

    A phone number of the user may be in a suppression of that single number, or in an imported list
    of suppressed numbers. Such a number is deleted there. A hash of the number, made with the
    secret key of `reader`, is stored in a suppression instead, so that the number stays suppressed.
    For a list that is not in force, no hash is stored. Raises `UsageError`, with nothing changed,
    if a phone number of the user is in a suppression or a list, and `reader` has no key. Cost:
    reads by the indexes on `user_id`, and one pass each over dead letters, commands and phone
    numbers.
    """
    person = find(connection, dialer, user_id, reader)
    parameters = {"user": user_id, "mark": FORGOTTEN, "name": str(person.own)}
    parameters["patterns"] = person.patterns
    parameters["names"] = [str(person.own), *person.assignments]
    counts = _hash_numbers(connection, person, reader)
    counts |= {
        name: connection.execute(text(statement), parameters).rowcount
        for name, statement in _FORGET.items()
    }
    counts["dead_letters"] = _scrub_letters(connection, person)
    counts["commands"] = _scrub_commands(connection, person)
    for table in _kept_by_adoption(connection):
        delete = text(f'DELETE FROM public."{table}" WHERE user_id = :user')  # noqa: S608
        counts[table] = connection.execute(delete, parameters).rowcount
    declared = dialer.external_facts(DECLARED, {}) if crm is None else crm.declared
    counts |= mirror_tables.erase(connection, declared, user_id)
    return {name: count for name, count in counts.items() if count}


def is_held(connection: Connection, user_id: int) -> int | None:
    """Return the id of the agent who holds the user now, or None.

    The row of the user's active assignment is locked until the transaction ends.
    """
    agent: int | None = connection.execute(
        text(
            "SELECT agent_id FROM assignment.assignments"
            " WHERE user_id = :user AND state = 'active' FOR UPDATE"
        ),
        {"user": user_id},
    ).scalar_one_or_none()
    return agent


def _hash_numbers(connection: Connection, person: Person, reader: Reader) -> dict[str, int]:
    """Replace each suppressed phone number of the person, who is being erased, by a keyed hash.

    With the hash, the number stays suppressed although it is no longer stored. `reader` parses
    phone numbers and has the secret key of the hashes. Returns the number of changed rows, by
    table.
    """
    numbers = sorted(person.e164)
    parameters: dict[str, Any] = {
        "numbers": numbers,
        "texts": sorted({plain(each) for each in person.texts}),
        "ends": sorted(person.numbers),
    }
    entries = connection.execute(_ENTRIES, parameters).all()
    listed = connection.execute(_LISTED, parameters).all()
    if not entries and not listed:
        return {}
    if reader.key is None:
        raise UsageError(
            f"the number of user {person.own} is on the do-not-contact list and has to stay"
            " there, as a keyed hash: set ASSIGNMENT_WORKERS_NUMBER_KEY, 32 letters or more, the"
            " same for every process, and forget the user again"
        )
    for entry in entries:
        # A text that contains the number stands for the number.
        kept = entry.number or next(
            (each for each in numbers if each[-_ENDS:] == entry.ending), entry.plain
        )
        hashed = {"id": entry.id, "number": reader.keyed(kept), "mark": FORGOTTEN}
        prolonged = connection.execute(_PROLONG, hashed).rowcount
        connection.execute(_DROP_ENTRY if prolonged else _HASH_ENTRY, hashed)
    for row in listed:
        hashed = {"number": reader.keyed(row.number), "mark": FORGOTTEN}
        if row.state == SuppressionListState.STANDING:
            given_list = {"queue": row.queue, "source": row.name, "expires_at": row.expires_at}
            connection.execute(_HASH_LISTED, hashed | given_list)
        connection.execute(_UNLIST, {"list_id": row.list_id, "number": row.number})
    return {"hashed_entries": len(entries), "hashed_of_lists": len(listed)}


def _scrub_letters(connection: Connection, person: Person) -> int:
    found = connection.execute(text("SELECT id, body FROM assignment.dead_letters")).all()
    ids = [row.id for row in found if person.is_named(row.body)]
    statement = text(
        "UPDATE assignment.dead_letters SET body = :mark, error = :mark, replayable = false,"
        " dismissed_why = CASE WHEN dismissed_why IS NOT NULL THEN :mark END WHERE id = ANY(:ids)"
    )
    connection.execute(statement, {"mark": FORGOTTEN, "ids": ids})
    return len(ids)


def _scrub_commands(connection: Connection, person: Person) -> int:
    """Erase the person's data in the stored commands; return the number of changed commands.

    The data can be in two columns of a command, `answer` and `subject`.

    The column `answer` of a refused command has the reason of the refusal. This reason repeats the
    refused value, which may be a phone number. If the answer names the person, the reason is
    replaced.

    The column `subject` has a text about what the command sets or changes. If the command
    suppresses a phone number, or lifts such a suppression, this text contains the number. If the
    text names the person, it is deleted.
    """
    found = connection.execute(
        text(
            "SELECT id, CASE WHEN answer ? 'reason' THEN answer::text ELSE '' END AS said,"
            " CASE WHEN subject LIKE '% of phone number %' THEN subject ELSE '' END AS subject"
            " FROM assignment.commands"
            " WHERE answer ? 'reason' OR subject LIKE '% of phone number %'"
        )
    ).all()
    answers = {row.id for row in found if person.is_named(row.said)}
    subjects = {row.id for row in found if person.is_named(row.subject)}
    answered = text(
        "UPDATE assignment.commands SET answer = jsonb_set(answer, '{reason}', to_jsonb("
        "CAST(:mark AS text))) WHERE id = ANY(:ids)"
    )
    connection.execute(answered, {"mark": FORGOTTEN, "ids": list(answers)})
    named = text("UPDATE assignment.commands SET subject = NULL WHERE id = ANY(:ids)")
    connection.execute(named, {"ids": list(subjects)})
    return len(answers | subjects)


def _left_by_adoption(connection: Connection, user_id: int) -> dict[str, list[Row]]:
    query = 'SELECT * FROM public."{}" WHERE user_id = :user'
    return {
        table: rows_of(connection, query.format(table), user=user_id)
        for table in _kept_by_adoption(connection)
    }


def _kept_by_adoption(connection: Connection) -> list[str]:
    """Return the names of a dialer's tables that were renamed when its database was taken over.

    Only tables with a `user_id` are returned. The names end in `_before_adoption`. Tables that this
    database role may not read are included, so that they cause an error and are not skipped.
    """
    return list(
        connection.execute(
            text(
                "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
                " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
                " AND c.relname LIKE '%\\_before\\_adoption' AND a.attname = 'user_id'"
            )
        ).scalars()
    )


def _exists(connection: Connection, table: str) -> bool:
    return bool(
        connection.execute(
            text("SELECT to_regclass(:table) IS NOT NULL"),
            {"table": in_schema(table, schema_of(connection))},
        ).scalar()
    )


def _scalars(connection: Connection, query: str, user_id: int) -> Collection[str | None]:
    """Return the values that a query about the user selects, one from each row of its result.

    `query`: a SQL query of one column, with the SQL parameter `user`. Its fourth word must be the
    name of the table that the query reads. Returns an empty list if the table does not exist or
    cannot be read.
    """
    if not _exists(connection, query.split()[3]):
        return []
    try:
        with connection.begin_nested():
            return list(connection.execute(text(query), {"user": user_id}).scalars())
    except DBAPIError:
        return []


def _ends(numbers: Iterable[str]) -> Iterable[str]:
    for each in numbers:
        digits = re.sub(r"[^0-9]", "", each)
        if len(digits) >= _DIGITS_AT_LEAST:
            yield digits[-_ENDS:]


def _decoded(said: str) -> Iterable[str]:
    """Yield the decoded body of a Celery message, if the text is a message with a base64 body."""
    try:
        body = json.loads(said)
        encoded = body.get("body") if isinstance(body, Mapping) else None
        if isinstance(encoded, str):
            yield base64.b64decode(encoded).decode("utf-8", "replace")
    except ValueError:
        return


_ENTRIES = text(
    "SELECT id, number, plain, right(regexp_replace(phone, '[^0-9]', '', 'g'), 9) AS ending"
    " FROM assignment.suppressions WHERE lifted_at IS NULL AND phone IS NOT NULL AND ("
    "number = ANY(:numbers) OR number IS NULL AND (plain = ANY(:texts)"
    " OR right(regexp_replace(phone, '[^0-9]', '', 'g'), 9) = ANY(:ends)))"
)
_LISTED = text(
    "SELECT n.list_id, n.number, l.name, l.state, l.queue,"
    " least(n.expires_at, l.expires_at) AS expires_at FROM assignment.suppression_lists l"
    " JOIN assignment.suppressed_numbers n ON n.list_id = l.id AND n.number = ANY(:numbers)"
)
_HASH_ENTRY = text(
    "UPDATE assignment.suppressions SET number = :number, phone = :mark, plain = NULL,"
    " tail = NULL, unsure = false, reason = :mark WHERE id = :id"
)
# The hash exists already if somebody with this number was forgotten before. Only one entry of a
# number may stand, an expired one too, so the existing entry takes the longer of both terms.
_PROLONG = text(
    "UPDATE assignment.suppressions o SET expires_at ="
    " CASE WHEN o.expires_at IS NOT NULL AND s.expires_at IS NOT NULL"
    " THEN greatest(o.expires_at, s.expires_at) END FROM assignment.suppressions s"
    " WHERE s.id = :id AND o.id <> s.id AND o.number = :number AND o.lifted_at IS NULL"
    " AND o.queue IS NOT DISTINCT FROM s.queue"
)
_DROP_ENTRY = text("DELETE FROM assignment.suppressions WHERE id = :id")
_HASH_LISTED = text(
    "INSERT INTO assignment.suppressions AS s"
    " (kind, number, phone, queue, source, reason, since, by, expires_at)"
    " VALUES ('do_not_contact', :number, :mark, :queue, :source, :mark, clock_timestamp(),"
    " 'person forget', :expires_at) ON CONFLICT (number, coalesce(queue, ''))"
    " WHERE lifted_at IS NULL AND number IS NOT NULL DO UPDATE SET expires_at ="
    " CASE WHEN s.expires_at IS NOT NULL AND excluded.expires_at IS NOT NULL"
    " THEN greatest(s.expires_at, excluded.expires_at) END"
)
_UNLIST = text(
    "DELETE FROM assignment.suppressed_numbers WHERE list_id = :list_id AND number = :number"
)
# An extension or a second number may follow the number.
_OF_NUMBERS = "regexp_replace({}, '[^0-9]', '', 'g') LIKE ANY(:patterns)"
_STORED = {
    "user_call_scores": "SELECT * FROM public.user_call_scores WHERE user_id = :user",
    "assignments": "SELECT * FROM assignment.assignments WHERE user_id = :user ORDER BY id",
    "entries": "SELECT * FROM assignment.entries WHERE user_id = :user",
    "events": (
        "SELECT e.*, e.details || coalesce(t.texts, '{}') AS details FROM assignment.events e"
        " LEFT JOIN assignment.event_texts t ON t.event_id = e.id"
        " WHERE e.user_id = :user ORDER BY e.id"
    ),
    "suppressions": (
        "SELECT * FROM assignment.suppressions WHERE user_id = :user OR "  # noqa: S608
        + _OF_NUMBERS.format("phone")
    ),
    "phones": "SELECT * FROM assignment.phones WHERE user_id = :user",
    "suppressed_numbers": (
        "SELECT l.name, n.* FROM assignment.suppression_lists l"
        " JOIN assignment.suppressed_numbers n ON n.list_id = l.id AND n.number = ANY(:e164)"
    ),
    "callbacks": "SELECT * FROM public.callbacks WHERE user_id = :user",
    "missed_calls": (
        "SELECT * FROM public.missed_calls WHERE user_id = :user OR "  # noqa: S608
        + _OF_NUMBERS.format("phone_number")
    ),
    "conversions": "SELECT * FROM public.conversions WHERE user_id = :user",
    "operator_actions": "SELECT * FROM assignment.operator_actions WHERE subject = :name",
    "forgotten": "SELECT * FROM assignment.forgotten WHERE user_id = :user",
    "user_ids": "SELECT * FROM assignment.user_ids WHERE user_id = :user",
}
_FORGET = {
    "forgotten": (
        "INSERT INTO assignment.forgotten (user_id, at) VALUES (:user, clock_timestamp())"
        " ON CONFLICT DO NOTHING"
    ),
    "assignments": (
        "UPDATE assignment.assignments SET notes = NULL WHERE user_id = :user AND notes IS NOT NULL"
    ),
    "event_texts": (
        "DELETE FROM assignment.event_texts WHERE event_id IN"  # noqa: S608
        " (SELECT id FROM assignment.events WHERE user_id = :user) OR "
        + _OF_NUMBERS.format("texts->>'phone'")
    ),
    "suppressions": (
        "UPDATE assignment.suppressions SET reason = :mark,"
        " lifted_why = CASE WHEN lifted_why IS NOT NULL THEN :mark END"
        " WHERE user_id = :user"
    ),
    "lifted": (
        "DELETE FROM assignment.suppressions WHERE lifted_at IS NOT NULL AND "  # noqa: S608
        + _OF_NUMBERS.format("phone")
    ),
    "callbacks": (
        "UPDATE public.callbacks SET callback_reason = NULL, status ="
        " CASE status WHEN 'pending' THEN 'cancelled' ELSE status END WHERE user_id = :user"
    ),
    "missed_calls": (
        "UPDATE public.missed_calls SET phone_number = '', caller_name = NULL, status ="  # noqa: S608
        " CASE WHEN status IN ('pending', 'for_operator') THEN 'cancelled' ELSE status END"
        " WHERE user_id = :user OR " + _OF_NUMBERS.format("phone_number")
    ),
    "conversions": (
        "UPDATE public.conversions SET conversion_reason = NULL WHERE user_id = :user"
        " AND conversion_reason IS NOT NULL"
    ),
    "operator_actions": (
        "UPDATE assignment.operator_actions SET why = CASE WHEN why IS NOT NULL THEN :mark END,"
        " outcome = split_part(outcome, ':', 1)"
        " WHERE subject = ANY(:names) OR starts_with(subject, :name || ' ')"
    ),
    "phones": "DELETE FROM assignment.phones WHERE user_id = :user",
    "user_call_scores": "DELETE FROM public.user_call_scores WHERE user_id = :user",
}
