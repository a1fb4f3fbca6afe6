"""The mirror's tables follow the declaration, and hold what the CRM has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, Text, exists, select

from assignment_workers.assignment import jobs, user_ids
from assignment_workers.assignment.crm import mirror, mirror_tables
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.jobs import Job
from assignment_workers.dialer import (
    Dialer,
    Outcome,
    Person,
    PersonId,
    Persons,
    Queue,
    Rule,
    Time,
    fact_table,
)
from assignment_workers.dialer.check import unread
from assignment_workers.policy.process_dialer import loaded
from tests.integration.assignment.crm.seeing import TIMEOUT, attached
from tests.support.dialers import DIALERS, using
from tests.support.example_crm import ExampleCrm, example_elsewhere
from tests.support.world import World

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'crm_mirror' ORDER BY 1"


@pytest.fixture
def clinic(world: World, postgres_server: str) -> Iterator[tuple[ExampleCrm, Crm]]:
    with (
        using(DIALERS["clinic"]),
        example_elsewhere("clinic", postgres_server) as there,
        reading(world, there) as crm,
    ):
        yield there, crm


@contextmanager
def reading(world: World, there: ExampleCrm) -> Iterator[Crm]:
    """Let the world read this CRM as its dialer declares it."""
    world.set(crm_database_url=there.url, crm_timeout=TIMEOUT)
    with attached(world) as made:
        yield made


def read(world: World, crm: Crm) -> dict[str, int]:
    ran = jobs.run(
        world.engine,
        Job(mirror.READING, "hand"),
        partial(mirror.read_whole, dialer=loaded(), crm=crm),
    )
    assert ran.skipped is None
    return ran.counts


@pytest.mark.skipif("claims" not in DIALERS, reason="the packaged dialer is not installed")
def test_the_mirror_of_an_earlier_release_serves_the_packaged_dialer_as_it_is(world: World) -> None:
    before = world.rows(TABLES)
    with world.engine.begin() as connection:
        for word in ("original", "people"):
            for optional in ({}, {"country": "country_code"}):
                declared = DIALERS["claims"].external_facts(word, optional)
                assert mirror_tables.make(connection, declared) == []
    assert world.rows(TABLES) == before


def test_another_declaration_makes_its_tables_and_drops_the_others(world: World) -> None:
    world.execute("INSERT INTO assignment.crm_reads VALUES (true, now(), 1, '{}')")
    declared = DIALERS["charity"].external_facts("original", {})
    with world.engine.begin() as connection:
        assert mirror_tables.make(connection, declared)
        assert mirror_tables.make(connection, declared) == []
    names = ["debits", "gifts", "guests", "pledges", "users"]
    assert world.column(TABLES) == sorted([*names, *(f"incoming_{each}" for each in names)])
    assert world.column("SELECT read_at FROM assignment.crm_reads") == []


def test_rows_without_a_key_are_counted_off_and_only_changes_are_written(
    world: World, clinic: tuple[ExampleCrm, Crm]
) -> None:
    there, crm = clinic
    assert read(world, crm)["changed"] == 60 + 20 + 12 + 8
    assert read(world, crm)["changed"] == 0
    same = "SELECT {}, patient_no, due_at, state FROM clinic.recalls WHERE recall_no = 3"
    for number in (901, 902):
        there.change(f"INSERT INTO clinic.recalls {same.format(number)}")
    assert read(world, crm)["changed"] == 2
    there.change("DELETE FROM clinic.recalls WHERE recall_no = 901")
    there.change("UPDATE clinic.recalls SET state = 'done' WHERE recall_no = 6")
    counts = read(world, crm)
    assert counts["changed"] == 1 + 2
    assert counts["recalls"] == 21
    assert world.value("SELECT count(*) FROM crm_mirror.recalls WHERE state = 'done'") == 1
    numbers = world.column("SELECT id FROM crm_mirror.users ORDER BY created_at")
    ids = user_ids.own(loaded(), world.engine, numbers)
    assert numbers == sorted(numbers), "who is newer has the higher number"
    assert [str(ids[each])[-2:] for each in numbers] == [f"{each:02}" for each in range(1, 61)]


def test_a_role_that_is_there_for_another_database_gets_no_table(
    world: World, clinic: tuple[ExampleCrm, Crm]
) -> None:
    world.execute(
        "DO $$ BEGIN CREATE ROLE assignment_worker;"
        " EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    _, crm = clinic
    assert read(world, crm)["recalls"]
    owner = "SELECT tableowner FROM pg_tables WHERE schemaname = 'crm_mirror'"
    assert "assignment_worker" not in world.column(owner)


def test_who_is_forgotten_leaves_the_mirror_and_stays_away(
    world: World, clinic: tuple[ExampleCrm, Crm]
) -> None:
    _, crm = clinic
    read(world, crm)
    with world.engine.begin() as connection:
        user = user_ids.number_of(loaded(), connection, f"c11c0000-0000-4000-8000-{15:012}")
        found = mirror_tables.erase(connection, crm.declared, user)
    assert found == {
        "crm_mirror.users": 1,
        "crm_mirror.appointments": 1,
        "crm_mirror.recalls": 1,
        "crm_mirror.results": 0,
    }
    world.execute("INSERT INTO assignment.forgotten (user_id, at) VALUES (:u, now())", u=user)
    read(world, crm)
    for table, column in (("users", "id"), ("recalls", "patient_id")):
        sql = f"SELECT count(*) FROM crm_mirror.{table} WHERE {column} = :u"
        assert world.value(sql, u=user) == 0


def test_unusable_ids_are_counted_and_left_out(world: World, postgres_server: str) -> None:
    further = (
        "INSERT INTO charity.donors VALUES (' blank', '+442079460999', true, '2025-01-01');"
        "INSERT INTO charity.guests VALUES (900, ' blank');"
    )
    with (
        using(DIALERS["charity"]),
        example_elsewhere("charity", postgres_server, further) as there,
        reading(world, there) as crm,
    ):
        counts = read(world, crm)
    assert (counts["users"], counts["unfit"], counts["guests"]) == (50, 1, 25)


# -- tables that belong to a person by way of another one, beside others --------------------------

visits = fact_table(
    "visits", Column("no", Integer, primary_key=True), Column("person_id", PersonId), of="visit"
)
bills = fact_table("bills", Column("visit", ForeignKey(visits.c.no)), Column("sum", Integer))
notes = fact_table("notes", Column("visit", ForeignKey(visits.c.no)), Column("said", Text))
calls = fact_table("calls", Column("person_id", PersonId), Column("at", Time))


def some(table: Any, *conditions: Any) -> Any:
    return exists(select(1).select_from(table).where(*conditions))


branching = Dialer(
    queues=[
        Queue(
            "a",
            "A",
            rules=[
                Rule(
                    "no_bill",
                    some(bills.join(visits), visits.c.person_id == Person.id, bills.c.sum > 1),
                    means="m",
                ),
                Rule(
                    "no_note",
                    some(notes.join(visits), visits.c.person_id == Person.id, notes.c.said == "x"),
                    means="m",
                ),
                Rule(
                    "no_call",
                    some(calls, calls.c.person_id == Person.id, calls.c.at.is_not(None)),
                    means="m",
                ),
            ],
        )
    ],
    outcomes=[Outcome("b", "B")],
    persons=Persons(id_type=Text()),
)
BRANCHING = """
    CREATE TABLE users (id text PRIMARY KEY, phone_number text, created_at timestamp);
    CREATE TABLE visit (no integer PRIMARY KEY, person_id text);
    CREATE TABLE bills (visit integer, sum integer);
    CREATE TABLE notes (visit integer, said text);
    CREATE TABLE calls (person_id text, at timestamp);
    INSERT INTO users VALUES ('a', '1', '2026-01-01'), ('b', '2', '2026-01-02'), ('c', '3', NULL);
    INSERT INTO visit VALUES (1, 'a'), (2, 'a'), (3, 'b'), (4, 'nobody');
    INSERT INTO bills VALUES (1, 10), (1, 10), (2, 20), (4, 5);
    INSERT INTO notes VALUES (1, 'x'), (1, 'y'), (3, 'z');
    INSERT INTO calls VALUES ('a', '2026-02-01'), ('b', NULL);
"""


def test_tables_on_different_ways_do_not_multiply_each_other(
    world: World, postgres_server: str
) -> None:
    assert list(unread(branching)) == []
    with (
        using(branching),
        example_elsewhere("clinic", postgres_server, BRANCHING) as there,
        reading(world, there) as crm,
    ):
        read(world, crm)
        with world.engine.begin() as connection:
            numbers = user_ids.numbered(loaded(), connection, ["a", "b", "c"])
        found = crm.facts({number: own for own, number in numbers.items()})
        a, b, c = (numbers[each] for each in "abc")
        facts = {
            name: sorted(tuple(map(str, row.values())) for row in rows)
            for name, rows in found.parameters.items()
        }
        mirrored = {}
        for each in crm.declared.sources:
            columns = ", ".join(f'"{name}"' for name in each.types)
            rows = world.rows(f"SELECT {columns} FROM crm_mirror.{each.name}")
            mirrored[f"crm_{each.name}"] = sorted(tuple(map(str, row)) for row in rows)
        assert found.unreadable == frozenset()
        assert [len(facts[f"crm_{each}"]) for each in ("users", "visits", "bills", "notes")] == [
            *(3, 3, 3, 3)
        ]
        assert sorted(each["person_id"] for each in found.parameters["crm_calls"]) == [a, b]
        assert {each["id"] for each in found.parameters["crm_users"]} == {a, b, c}
        # The mirror has the rows of a visit whose person is not in the CRM, too: nobody reads them.
        astray = {"4", "5"}
        mirrored["crm_bills"] = [row for row in mirrored["crm_bills"] if set(row) != astray]
        assert facts == mirrored
        with world.engine.begin() as connection:
            erased = mirror_tables.erase(connection, crm.declared, a)
    assert erased == {
        "crm_mirror.users": 1,
        "crm_mirror.visits": 2,
        "crm_mirror.bills": 3,
        "crm_mirror.notes": 2,
        "crm_mirror.calls": 1,
    }


def test_a_table_without_a_way_to_a_person_is_refused_in_one_line() -> None:
    lonely = fact_table("lonely", Column("who", Text))
    rule = Rule("x", some(lonely, lonely.c.who == Person.phone_number), means="m")
    queue = replace(branching.queues[0], rules=[rule])
    (said,) = unread(replace(branching, queues=[queue]))
    assert said.startswith("table lonely: neither a PersonId nor a ForeignKey leads to a person")
