"""Values that a dialer's columns hold in the field, by the type that the catalogue gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

import psycopg

from tests.adoption.dialers import OUTSTANDING, UNSIGNED

TABLES = (
    "agents",
    "user_call_scores",
    "callbacks",
    "missed_calls",
    "conversions",
    UNSIGNED,
    OUTSTANDING,
)
"""The tables that are taken over or shared, those that others refer to first."""
STATUSES = [
    "pending",
    "assigned",
    "accepted",
    "completed",
    "cancelled",
    "skipped",
    "inactive",
    "invalid",
    "borrowed",
]
QUEUES = ("unsigned_users", "outstanding_requests", "manual_call", "", "UNSIGNED_USERS")
PHONES = ("+447700900123", "07700 900123", "anonymous", "", "+", "00", "ext. 136", "\u0660\u0661")
TEXTS = ("", " ", "O'Brien\\n", "\U0001f4de\u200d\U0001f525", "null", "%s :x {}", "\u202egnp")
LONG = 100_000
"""Letters of a text that no index holds."""
TIMES = (
    "infinity",
    "-infinity",
    "0001-01-01",
    "4000-01-01 BC",
    "9999-12-31 23:59:59.999",
    "12026-01-01",
    "1970-01-01",
    *(
        f"{datetime.now(UTC) + away:%Y-%m-%d %H:%M}"
        for away in (-timedelta(days=2), -timedelta(minutes=5), timedelta(days=3))
    ),
)
USERS = tuple(range(1, 13))
"""Ids that many rows have, whatever the table."""
BITS = {"smallint": 15, "integer": 31, "bigint": 63}
JSONS = ("null", "[]", "{}", '"text"', '["unsigned_users"]', "[null, 1]", '[["deep"]]', "1e400")
CHOICES = {
    "status": STATUSES,
    "queue_type": QUEUES,
    "current_queue_type": QUEUES,
    "previous_queue_type": QUEUES,
    "phone_number": PHONES,
}


@dataclass(frozen=True)
class Column:
    """A column as PostgreSQL's catalogue has it. `others`: a query for the values it refers to."""

    name: str
    type: str
    required: bool
    others: str | None


_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, (
        SELECT format('SELECT %%I FROM %%s ORDER BY 1', r.attname, k.confrelid::regclass)
        FROM pg_constraint k JOIN pg_attribute r ON r.attrelid = k.confrelid
        AND r.attnum = k.confkey[1]
        WHERE k.contype = 'f' AND k.conrelid = a.attrelid AND k.conkey = ARRAY[a.attnum] LIMIT 1)
    FROM pg_attribute a WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0
    AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
"""


def spoil(connection: psycopg.Connection, seed: int, rows: int = 40) -> None:
    """Fill each of `TABLES` that is there, all its columns, with `rows` rows of dirt.

    A row that a key, a check or an index of the table refuses is left out.
    """
    chance = Random(seed)
    for table in TABLES:
        columns = [Column(*each) for each in connection.execute(_COLUMNS, [table])]
        others = {
            each.name: [row[0] for row in connection.execute(each.others.encode())]
            for each in columns
            if each.others
        }
        names = ", ".join(f'"{each.name}"' for each in columns)
        places = ", ".join(["%s"] * len(columns))
        for number in range(rows if columns else 0):
            made = [value(chance, number, each, others.get(each.name)) for each in columns]
            try:
                connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", made)
            except (psycopg.IntegrityError, psycopg.DataError, psycopg.errors.ProgramLimitExceeded):
                continue


def value(chance: Random, number: int, column: Column, others: list[object] | None) -> object:
    """Something that the column may hold; null where it may be, one time in five."""
    if not column.required and chance.random() < 0.2:
        return None
    if others is not None:
        return chance.choice(others) if others else None
    kind, _, width = column.type.partition("(")
    if column.name == "id" and kind in BITS:
        return [2 ** BITS[kind] - 1, -(2 ** BITS[kind]), -1, 0, *range(900, 1000)][number]
    if kind == "uuid":
        return f"{0 if column.name == 'id' and number == 0 else chance.getrandbits(128):032x}"
    if kind in BITS:
        ends = (-(2 ** BITS[kind]), 2 ** BITS[kind] - 1, -1, 0, 999)
        return chance.choice(ends if chance.random() < 0.5 else USERS)
    if kind.startswith("timestamp") or kind == "date":
        return chance.choice(TIMES)
    if kind in ("text", "character varying", "character"):
        limit = re.match(r"\d+", width)
        return _text(chance, number, column.name)[: int(limit[0]) if limit else None]
    return chance.choice(_OF_TYPE[kind])


_OF_TYPE: dict[str, tuple[object, ...]] = {
    "boolean": (True, False),
    "json": JSONS,
    "jsonb": JSONS,
    "numeric": (0, -1, 9.99),
    "text[]": ([], ["a", None]),
}


def _text(chance: Random, number: int, name: str) -> str:
    if name == "email":
        return f"{number}@example.com"
    if name not in CHOICES and chance.random() < 0.1:
        return f"{chance.getrandbits(4 * LONG):0{LONG}x}"
    return chance.choice(CHOICES.get(name, TEXTS))
