"""The database's schema: inspect it, migrate it, compare it, roll it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy import Connection, text

from assignment_workers.adoption.compare import compare as read_differences
from assignment_workers.adoption.duration import expected_seconds
from assignment_workers.adoption.findings import Inspection
from assignment_workers.adoption.inspect import inspect as read_schema
from assignment_workers.adoption.migrate import migrate as adopt
from assignment_workers.adoption.plan import plan
from assignment_workers.adoption.rollback import rollback as roll_back
from assignment_workers.assignment.crm import fact_views, mirror_tables
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.reports.explain import instant
from assignment_workers.cli.servers import database, database_and_crm, with_database
from assignment_workers.cli.show import AsJson, as_json, as_table, waiting
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.engine import direct_url
from assignment_workers.schema.roles import GATEWAY, READER, ROLES, WORKER, ungranted
from assignment_workers.schema.roles import apply as apply_roles
from assignment_workers.settings import Settings

group = typer.Typer(help="The database's schema.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="schema")


@group.callback()
def schema() -> None:
    """Group the commands of the database's schema.

    The function itself does nothing; Typer calls it before the subcommand.
    """


INSPECT_AT_MOST = timedelta(minutes=10)


@group.command()
def inspect(json: AsJson = False) -> int:
    """Say which schema is deployed, table by table, and what would block a migration.

    Nothing is changed; a database role that may only read is enough. The exit code is 1 if the
    schema differs from the schema of this version.

    The tables of the CRM are checked as well. For a CRM in this database, the tables in the schema
    `crm` are compared with the tables that the packaged dialer reads. The packaged dialer is the
    definition of a dialer that is installed with this project. For a CRM in another database, the
    tables that the configured dialer reads are checked there. Differences in the tables of a CRM do
    not change the exit code, and do not block a migration.
    """
    with _read_only() as (connection, crm), waiting(expected_seconds(connection, "inspect")):
        found = read_schema(connection, crm)
    if json:
        as_json(found.as_json())
    else:
        _show(found)
    return 0 if found.is_ours else 1


@contextmanager
def _read_only() -> Iterator[tuple[Connection, Crm | None]]:
    """Yield a connection in a read-only transaction with one snapshot, and the external CRM."""
    with database_and_crm(checked=False, patience=INSPECT_AT_MOST) as (connection, crm):
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield connection, crm


def _show(found: Inspection) -> None:
    typer.echo(
        f"the schema `assignment` is {'at ' + found.revision if found.revision else 'not there'}, "
        f"this version needs {found.needs}"
    )
    as_table("tables", ("table", "is"), [(each.table, each.verdict) for each in found.tables])
    differences = [
        (each.table, one.than, one.aspect, one.what, one.expected, one.found)
        for each in found.tables
        for one in each.differences
    ]
    if differences:
        columns = ("table", "other than", "aspect", "what", "expected", "found")
        as_table("differences", columns, differences)
    if found.blockers:
        as_table(
            "rows to decide about",
            ("table", "what", "count"),
            [
                (each.table, each.what, "not readable" if each.count is None else each.count)
                for each in found.blockers
            ],
        )
    if found.obstacles:
        rows = [(each.what, each.remedy) for each in found.obstacles]
        as_table("in the way of `schema migrate`", ("what", "remedy"), rows)
    for note in found.notes:
        typer.echo(f"note: {note}")


@group.command()
def migrate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its SQL; run none.")
    ] = False,
    roles: Annotated[
        bool, typer.Option("--roles", help="Make the roles of least privilege, and grant to each.")
    ] = False,
) -> int:
    """Bring the database to the schema of this version.

    If the database has the tables of the old dialer application, this system takes the tables over
    while that application runs.
    """
    url = direct_url(with_database())
    if dry_run:
        with (
            _read_only() as (connection, crm),
            waiting(expected_seconds(connection, "migrate --dry-run")),
        ):
            sql = plan(connection, crm, url)
        typer.echo(sql or f"nothing is missing: the schema is at revision {migrations.head()}")
        return 0
    with database(checked=False) as connection:
        seconds = expected_seconds(connection, "migrate")
    with waiting(seconds, note="; the dialer goes on meanwhile"):
        reached = adopt(url, settings=with_database(), tell=_tell)
    with database(checked=False) as connection:
        fact_views.prepare(connection, loaded(), with_database())
        mirror_tables.prepare(connection, loaded(), with_database())
    typer.echo(f"the schema is at revision {reached}")
    if roles:
        apply_roles(url, passwords=_passwords(with_database()))
        for role, what in ROLES.items():
            typer.echo(f"{role}: {what}")
        return 0
    with database(checked=False) as connection:
        missing = ungranted(connection)
    if missing:
        typer.echo(
            "the database's roles lack rights that this version needs"
            f" ({len(missing)}, such as {missing[0]}):"
            " run `assignment-workers schema migrate --roles`, as with every upgrade"
        )
    return 0


def _tell(line: str) -> None:
    """Print a line of progress; on a terminal it appears above the display of the elapsed time."""
    print(line, flush=True)  # typer's echo cannot write to what rich puts in place of a terminal


def _passwords(given: Settings) -> dict[str, str]:
    found = {
        WORKER: given.worker_password,
        GATEWAY: given.gateway_password,
        READER: given.reader_password,
    }
    return {role: password for role, password in found.items() if password}


@group.command()
def compare(json: AsJson = False) -> int:
    """Count the users whom only this system, or only the old application, would offer.

    Each count is for one dialer queue and one reason (`rule`). The counts marked `theirs` are of
    users whom only the old application would offer. The reason is the first rule of this system
    that the user breaks. If the user has no row in the score table, the reason is `no_score_row`
    instead. If the user has no row in the CRM, it is `not_in_crm`. The counts marked `ours` are of
    users whom only this system would offer. Their reason is `meets every rule`.

    Nothing is changed. The command reads the queue tables of the old application, so it works only
    before `schema migrate` replaces these tables.
    """
    with _read_only() as (connection, crm), waiting(expected_seconds(connection, "compare")):
        found = read_differences(connection, crm, now=instant(connection))
    if json:
        as_json(found)
        return 0
    columns = ("dialer queue", "only", "rule", "users", "such as user")
    rows = [(each.queue, each.only, each.rule, each.users, each.first) for each in found]
    as_table("who is offered by one side only", columns, rows)
    return 0


@group.command()
def rollback() -> int:
    """Give the old application its queue tables back, with the users whom agents hold now.

    For each user whom an agent holds, the old queue table then has a row with the status `assigned`
    and with this agent. In this system, the user is released. Stop every process of this system
    first. Our schema and its records stay.
    """
    with database(checked=False) as connection:
        seconds = expected_seconds(connection, "rollback")
    with waiting(seconds):
        tables = roll_back(direct_url(with_database()))
    for table in tables:
        typer.echo(f"{table} is the dialer's own table again")
    return 0
