"""The database's schema: bring it to ours."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.cli.servers import resolved
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.engine import direct_url

app = typer.Typer(help="The database's schema.", no_args_is_help=True)


@app.callback()
def schema() -> None:
    """The database's schema."""


@app.command()
def migrate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the SQL that is missing; run none.")
    ] = False,
) -> int:
    """Bring the database to the schema of this version.

    What is there of the dialer's is adopted.
    """
    url = direct_url(resolved())
    if dry_run:
        sql = migrations.plan(url)
        typer.echo(sql or f"nothing is missing: the schema is at revision {migrations.head()}")
        return 0
    typer.echo(f"the schema is at revision {migrations.upgrade(url)}")
    return 0
