"""Migrations: they end at the models, can be run again, and adopt a dialer's own tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from assignment_workers.assignment.suppressions import suppressions
from assignment_workers.errors import SchemaMismatch
from assignment_workers.schema import migrate, online
from assignment_workers.schema.base import Base, DialerBase
from assignment_workers.schema.engine import connect
from assignment_workers.schema.tables import SuppressionKind

CATALOGUE = """
SELECT 'column', c.oid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod)
       || ' ' || a.attnotnull || ' ' || a.attidentity::text || ' '
       || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind IN ('r', 'p') AND c.relnamespace::regnamespace::text IN ('assignment', 'public')
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
FROM pg_constraint
WHERE connamespace::regnamespace::text IN ('assignment', 'public') AND contype <> 'n'
UNION ALL
SELECT 'index', schemaname || '.' || tablename, indexname, indexdef FROM pg_indexes
WHERE schemaname IN ('assignment', 'public')
"""


@contextmanager
def connected(database_url: str) -> Iterator[Connection]:
    engine = connect(database_url, name="test", statement_timeout=timedelta(seconds=30))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def upgrade_to(database_url: str, revision: str) -> None:
    """Bring an empty database to the schema of an older version."""
    engine = connect(database_url, name="test", statement_timeout=timedelta(seconds=30))
    try:
        with engine.connect() as connection:
            command.upgrade(migrate._config(connection), revision)
    finally:
        engine.dispose()


def catalogue(connection: Connection) -> set[tuple[str, ...]]:
    """Every column, constraint and index, as PostgreSQL understood it, but for Alembic's own."""
    found = connection.execute(text(CATALOGUE))
    return {tuple(row) for row in found if not row[1].endswith(migrate.VERSION_TABLE)}


def test_hazard_b15_the_migrated_schema_is_that_of_the_models(database_url: str) -> None:
    # Without a search path every schema is named, as in the models.
    with connected(f"{database_url}?options=-csearch_path%3Dpg_catalog") as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: (
                    kind != "schema" or name in {"assignment", "public"}
                ),
                "include_object": lambda _, name, *__: name != migrate.VERSION_TABLE,
            },
        )
        # It takes several, though its types do not say so.
        models: Any = [Base.metadata, DialerBase.metadata]
        assert compare_metadata(context, models) == []


def test_checks_defaults_and_partial_indexes_are_those_of_the_models(
    database_url: str, empty_database_url: str
) -> None:
    with connected(empty_database_url) as connection:
        connection.execute(text("CREATE SCHEMA assignment"))
        Base.metadata.create_all(connection)
        DialerBase.metadata.create_all(connection)
        modelled = catalogue(connection)
    with connected(database_url) as connection:
        assert catalogue(connection) ^ modelled == set()


def test_an_upgrade_can_be_run_again(empty_database_url: str) -> None:
    assert migrate.plan(empty_database_url) != ""
    assert migrate.upgrade(empty_database_url) == migrate.head()
    with connected(empty_database_url) as connection:
        before = catalogue(connection)
        connection.execute(text("UPDATE assignment.sequencer SET term = 7"))
        migrate.check(connection)
    assert migrate.upgrade(empty_database_url) == migrate.head()
    assert migrate.plan(empty_database_url) == ""
    with connected(empty_database_url) as connection:
        assert catalogue(connection) == before
        assert list(connection.execute(text("SELECT lane, term FROM assignment.sequencer"))) == [
            ("default", 7)
        ]
        assert set(connection.execute(text("SELECT name FROM assignment.queues")).scalars()) == {
            "unsigned_users",
            "outstanding_requests",
        }


def test_an_upgrade_leaves_a_dialers_own_tables_and_rows_as_they_are(
    empty_database_url: str,
) -> None:
    with connected(empty_database_url) as connection:
        DialerBase.metadata.create_all(connection)
        connection.execute(text("ALTER TABLE agents ADD COLUMN theirs text DEFAULT 'kept'"))
        connection.execute(text("INSERT INTO agents (id, email) VALUES (26, 'a@example.com')"))
        before = {row for row in catalogue(connection) if not row[1].startswith("assignment.")}
    migrate.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        after = {row for row in catalogue(connection) if not row[1].startswith("assignment.")}
        assert after == before
        assert list(connection.execute(text("SELECT id, theirs FROM agents"))) == [(26, "kept")]
        migrate.check(connection)


def test_a_database_without_our_schema_or_with_another_dialers_is_named(
    empty_database_url: str,
) -> None:
    with connected(empty_database_url) as connection:
        with pytest.raises(SchemaMismatch, match="is not there, this version needs"):
            migrate.check(connection)
    migrate.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        connection.execute(text("DROP TABLE conversions"))
        with pytest.raises(SchemaMismatch, match=r"public\.conversions is not there"):
            migrate.check(connection)
        connection.execute(text("ALTER TABLE callbacks DROP COLUMN retry_count"))
        with pytest.raises(SchemaMismatch, match=r"callbacks lacks retry_count: run `assig"):
            migrate.check(connection)


@pytest.mark.parametrize(
    ("serves", "is_refused"),
    [(migrate.head(), False), ("0001", False), ("9998", True), (None, True)],
)
def test_a_newer_schema_serves_an_older_version_for_as_long_as_it_says_so(
    empty_database_url: str, serves: str | None, is_refused: bool
) -> None:
    migrate.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        comment = "NULL" if serves is None else f"'Serves versions from revision {serves}'"
        connection.execute(text("UPDATE assignment.schema_revision SET version_num = '9999'"))
        connection.execute(text(f"COMMENT ON TABLE assignment.schema_revision IS {comment}"))
    with connected(empty_database_url) as connection:
        if is_refused:
            with pytest.raises(SchemaMismatch, match="newer version that no longer serves"):
                migrate.check(connection)
        else:
            migrate.check(connection)
    for each in (migrate.upgrade, migrate.plan):
        with pytest.raises(SchemaMismatch, match="revision 9999, of a newer version than this"):
            each(empty_database_url)


def test_an_upgrade_records_which_versions_the_schema_serves(empty_database_url: str) -> None:
    upgrade_to(empty_database_url, "0029")
    migrate.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        found = connection.execute(
            text("SELECT obj_description('assignment.schema_revision'::regclass, 'pg_class')")
        ).scalar_one()
    assert found == f"Serves versions from revision {migrate.SERVES_FROM}"


def of_0_1(database_url: str, revision: str = "0015") -> None:
    """A database as release 0.1 left it, or a build after it."""
    upgrade_to(database_url, revision)
    with connected(database_url) as connection:
        connection.execute(text("ALTER TABLE assignment.schema_revision RENAME TO alembic_version"))


@pytest.mark.parametrize("revision", ["0001", "0015", "0016", "0029"])
def test_the_revision_of_0_1_stays_where_its_processes_look_for_it(
    empty_database_url: str, revision: str
) -> None:
    """They start on no other. What is newer stands in a table of its own."""
    of_0_1(empty_database_url, revision)
    with connected(empty_database_url) as connection:
        assert migrate.revision(connection) == revision
        with pytest.raises(SchemaMismatch, match=f"at revision {revision}, this version needs"):
            migrate.check(connection)
    assert "INSERT INTO assignment.schema_revision" in migrate.plan(empty_database_url)
    migrate.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        old = connection.execute(text("SELECT version_num FROM assignment.alembic_version"))
        assert old.scalar_one() == min(revision, migrate.OF_0_1)
        migrate.check(connection)
    assert migrate.plan(empty_database_url) == ""


def test_0_1_and_this_version_write_and_read_the_reason_of_a_conversion(
    empty_database_url: str,
) -> None:
    of_0_1(empty_database_url)
    write = (
        "INSERT INTO public.conversions (user_id, previous_queue_type, conversion_type, {},"
        " converted_at) VALUES (:user, 'unsigned_users', 'signed', 'why', now())"
    )
    with connected(empty_database_url) as connection:
        connection.execute(text(write.format("reason")), {"user": 1})
    migrate.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        connection.execute(text(write.format("reason")), {"user": 2})
        connection.execute(text(write.format("conversion_reason")), {"user": 3})
        connection.execute(
            text("UPDATE public.conversions SET reason = 'changed' WHERE user_id = 2")
        )
        found = connection.execute(
            text("SELECT reason, conversion_reason FROM public.conversions ORDER BY user_id")
        )
        assert {tuple(each) for each in found} == {("why", "why"), ("changed", "changed")}


def test_somebody_elses_view_in_the_way_is_named_in_one_line(empty_database_url: str) -> None:
    database_url = empty_database_url
    upgrade_to(database_url, "0014")
    with connected(database_url) as connection:
        connection.execute(text("CREATE VIEW public.ours AS SELECT rank FROM assignment.entries"))
    with pytest.raises(SchemaMismatch, match=r"cannot be changed: .*; .*view ours depends on"):
        migrate.upgrade(database_url)
    with connected(database_url) as connection:
        assert migrate.revision(connection) == "0014"
        connection.execute(text("DROP VIEW public.ours"))
    assert migrate.upgrade(database_url) == migrate.head()


def test_bars_of_0_1_0_are_suppressions_after_the_upgrade_with_their_events(
    empty_database_url: str,
) -> None:
    upgrade_to(empty_database_url, "0015")
    with connected(empty_database_url) as connection:
        connection.execute(
            text(
                "INSERT INTO assignment.bars (kind, user_id, reason, since, by)"
                " VALUES ('do_not_contact', 7, 'asked', now(), 'ann')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO assignment.events (at, kind)"
                " VALUES (now(), 'barred'), (now(), 'bar_lifted'), (now(), 'assigned')"
            )
        )
    migrate.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        found = connection.execute(text("SELECT user_id, reason FROM assignment.suppressions"))
        assert [tuple(row) for row in found] == [(7, "asked")]
        kinds = connection.execute(text("SELECT kind FROM assignment.events ORDER BY id"))
        assert kinds.scalars().all() == ["suppressed", "suppression_lifted", "assigned"]


def test_suppressions_of_numbers_are_read_anew_and_those_that_cannot_be_are_listed(
    empty_database_url: str,
) -> None:
    upgrade_to(empty_database_url, "0015")
    written = ["020 7946 0000", "+44 (0)20 7946-0000", "650-253-0002", "0207?946 0001"]
    with connected(empty_database_url) as connection:
        for place, phone in enumerate(written):
            connection.execute(
                text(
                    "INSERT INTO assignment.bars (kind, phone, phone_end, reason, since, by)"
                    " VALUES ('do_not_contact', :phone, :end, 'asked', now(), 'ann')"
                ),
                {"phone": phone, "end": f"{place}"},
            )
    migrate.upgrade(empty_database_url, phone_region="GB")
    with connected(empty_database_url) as connection:
        found = connection.execute(
            text("SELECT number, tail, unsure, lifted_why FROM assignment.suppressions ORDER BY id")
        ).all()
        assert [tuple(row) for row in found] == [
            ("+442079460000", "9460000", False, None),
            ("+442079460000", "9460000", False, "the same number as another suppression"),
            # Of another country: who ends alike waits until somebody writes it with its country.
            ("+446502530002", "2530002", True, None),
            (None, "9460001", True, None),
        ]
        by_text = suppressions(connection, SuppressionKind.DO_NOT_CONTACT, by_text=True)
        assert [each.phone for each in by_text] == ["0207?946 0001"]
        old = connection.execute(text("SELECT phone_end FROM assignment.bars ORDER BY id"))
        assert old.scalars().all()[0] == "079460000"


def test_suppressions_are_read_beside_an_older_version_and_again_after_a_run_that_was_killed(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade_to(empty_database_url, "0023")
    barred = (
        "INSERT INTO assignment.bars (kind, phone, phone_end, reason, since, by)"
        " VALUES ('do_not_contact', :phone, :phone, 'asked', now(), 'ann')"
    )
    with connected(empty_database_url) as connection:
        for phone in ("020 7946 0000", "020 7946 0001"):
            connection.execute(text(barred), {"phone": phone})
    index, begun = online.index, list[str]()

    def beside(name: str, *args: Any, **kwargs: Any) -> None:
        begun.append(name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        index(name, *args, **kwargs)
        if name == "ix_suppressions_unsure":
            with connected(empty_database_url) as connection:
                for phone in ("+44 20 7946 0000", "+44 20 7946 0002", "0207?946 0003"):
                    connection.execute(text(barred), {"phone": phone})

    monkeypatch.setattr(online, "index", beside)
    with pytest.raises(KeyboardInterrupt):
        migrate.upgrade(empty_database_url, phone_region="GB")
    migrate.upgrade(empty_database_url, phone_region="GB")
    with connected(empty_database_url) as connection:
        found = connection.execute(
            text("SELECT number, lifted_why FROM assignment.suppressions ORDER BY id")
        ).all()
        assert [tuple(row) for row in found] == [
            ("+442079460000", None),
            ("+442079460001", None),
            ("+442079460000", "the same number as another suppression"),
            ("+442079460002", None),
            (None, None),
        ]
