"""A person whose number and words stand in every table, and the search for them."""

from __future__ import annotations

from assignment_workers.assignment import person
from assignment_workers.assignment.suppressions import (
    FORGOTTEN,
    do_not_contact,
)
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import World

PHONE = "+44 7700 900123"
MARK = "MARK"
KEY = "a-key-of-32-letters-or-more-for-numbers"
READER = Reader(key=KEY)


def forget(world: World, user: int) -> dict[str, int]:
    world.run(do_not_contact, reader=Reader(), user=user, reason=FORGOTTEN, by="operator")
    with world.engine.begin() as connection:
        return person.forget(connection, loaded(), None, user, READER)


def everywhere(world: World, *wanted: str) -> list[str]:
    """Where one of these stands, in any column of text or JSON but the CRM's own."""
    columns = world.rows(
        "SELECT format('%I.%I', table_schema, table_name), column_name"
        " FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog',"
        " 'information_schema', 'crm') AND data_type IN ('text', 'character varying', 'json',"
        " 'jsonb', 'ARRAY')"
    )
    return [
        f"{table}.{column}"
        for table, column in columns
        for each in wanted
        if world.value(
            f"SELECT count(*) FROM {table} WHERE \"{column}\"::text LIKE '%' || :wanted || '%'",
            wanted=each,
        )
    ]
