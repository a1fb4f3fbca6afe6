"""Values that a dialer's columns hold in the field, by the type that the schema gives them."""

from __future__ import annotations

from random import Random

import psycopg

from tests.adoption.dialers import Part, columns_of

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
TEXTS = ("", " ", "O'Brien\\n", "\U0001f4de\u200d\U0001f525", "null", "%s :x {}", "x" * 100_000)
TIMES = (
    "infinity",
    "-infinity",
    "0001-01-01",
    "4000-01-01 BC",
    "9999-12-31 23:59:59.999",
    "12026-01-01",
    "1970-01-01",
    "2026-11-28 10:00",
)
NUMBERS = {
    "INTEGER": (-(2**31), 2**31 - 1, -1, 0, 1, 7, 8, 999),
    "BIGINT": (-(2**63), 2**63 - 1, -1, 0, 1, 2, 3, 4, 5, 6),
}
JSONS = ("null", "[]", "{}", '"text"', '["unsigned_users"]', "[null, 1]", '[["deep"]]')
SAFE = {"email", "id"}
"""Columns that are unique: what they hold is made by number."""


def row(chance: Random, number: int, columns: dict[str, Part]) -> dict[str, object]:
    """A row of a table whose columns are these."""
    return {name: value(chance, number, part) for name, part in columns.items()}


def value(chance: Random, number: int, part: Part) -> object:
    """Something that the column may hold; null where it may be, one time in five."""
    kind = part.type_or_columns
    may_be_null = part.not_null_or_unique != "not null"
    if may_be_null and chance.random() < 0.2:
        return None
    if kind == "UUID":
        zero = part.name == "id" and number == 0
        return "0" * 32 if zero else f"{chance.getrandbits(128):032x}"
    if kind.startswith("TIMESTAMP"):
        return chance.choice(TIMES)
    if kind in NUMBERS:
        return chance.choice(NUMBERS[kind])
    if kind == "BOOLEAN":
        return chance.random() < 0.5
    if kind == "JSONB":
        return chance.choice(JSONS)
    if kind.startswith("DECIMAL"):
        return chance.choice((0, -1, 9.99))
    if kind == "TEXT[]":
        return chance.choice(([], ["a", None]))
    return _text(chance, number, part)


def _text(chance: Random, number: int, part: Part) -> str:
    width = int(part.type_or_columns.partition("(")[2].rstrip(")") or 1_000_000)
    if part.name == "email":
        return f"{number}@example.com"
    choices = {
        "status": STATUSES,
        "queue_type": QUEUES,
        "current_queue_type": QUEUES,
        "previous_queue_type": QUEUES,
        "phone_number": PHONES,
    }
    return chance.choice(choices.get(part.name, TEXTS))[:width]


def spoil(
    connection: psycopg.Connection, tables: dict[str, str], seed: int, rows: int = 40
) -> None:
    """Fill the tables, each of the schema that is named, with `rows` rows of dirt.

    What a foreign key or a unique index of a table refuses is not there.
    """
    chance = Random(seed)
    for table, schema in tables.items():
        columns = columns_of(schema, table)
        if table == "agents":
            columns = {name: part for name, part in columns.items() if name != "id"}
        names = ", ".join(columns)
        places = ", ".join(["%s"] * len(columns))
        for number in range(rows):
            made = row(chance, number, columns)
            try:
                connection.execute(
                    f"INSERT INTO {table} ({names}) VALUES ({places})".encode(),
                    list(made.values()),
                )
            except (psycopg.errors.IntegrityError, psycopg.errors.UniqueViolation):
                continue
