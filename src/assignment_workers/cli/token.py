"""The gateway's API tokens: create, list, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.cli.servers import database
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.errors import UsageError
from assignment_workers.gateway import tokens
from assignment_workers.schema.tables import TokenRole

app = typer.Typer(help="API tokens of the gateway's callers.", no_args_is_help=True)


@app.command()
def create(
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(TokenRole)}.")],
    agent: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="The agent whose token it is.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    json: AsJson = False,
) -> int:
    """Make a token and print it: this once, it cannot be shown again."""
    with database() as connection:
        made = tokens.create(connection, role, agent_id=agent, note=note)
        connection.commit()
    if json:
        as_json({"token": made})
    else:
        typer.echo(made)
    return 0


@app.command("list")
def list_tokens(json: AsJson = False) -> int:
    """Every token without its secret."""
    with database() as connection:
        found = tokens.listed(connection)
    if json:
        as_json(found)
        return 0
    as_table(
        "API tokens",
        ["id", "role", "agent", "created", "revoked", "note"],
        [
            (
                each.id,
                each.role,
                each.agent_id,
                f"{each.created_at:%Y-%m-%d %H:%M:%SZ}",
                f"{each.revoked_at:%Y-%m-%d %H:%M:%SZ}" if each.revoked_at else None,
                each.note,
            )
            for each in found
        ],
    )
    return 0


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")],
) -> int:
    """Void a token; the gateways refuse it within seconds."""
    with database() as connection:
        done = tokens.revoke(connection, token)
        connection.commit()
    if not done:
        raise UsageError(f"no token {token} in force")
    typer.echo(f"token {token} is void")
    return 0
