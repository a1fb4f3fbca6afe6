"""The gateway's API tokens: create, list and revoke them, and print the access log."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer

from assignment_workers.cli.operator_actions import operator_name
from assignment_workers.cli.servers import database
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.errors import UsageError
from assignment_workers.gateway.auth import audit, tokens
from assignment_workers.schema.tables import TokenRole

group = typer.Typer(help="API tokens of the gateway's callers.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="token")


@group.command()
def create(
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(TokenRole)}.")],
    agent: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="The agent whose token it is.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="How long it is in force; else for ever.")
    ] = None,
    json: AsJson = False,
) -> int:
    """Create a token and print it. It cannot be shown again."""
    lasts = None if days is None else timedelta(days=days)
    with database() as connection:
        made = tokens.create(
            connection, role, agent_id=agent, note=note, lasts=lasts, by=operator_name()
        )
        connection.commit()
    if json:
        as_json({"token": made})
    else:
        typer.echo(made)
    return 0


@group.command("list")
def list_tokens(json: AsJson = False) -> int:
    """List every token without its secret."""
    with database() as connection:
        found = tokens.listed(connection)
    if json:
        as_json(found)
        return 0
    as_table(
        "API tokens",
        ["id", "role", "agent", "created", "expires", "last used", "revoked", "note"],
        [
            (
                each.id,
                each.role,
                each.agent_id,
                _instant(each.created_at),
                _instant(each.expires_at),
                _instant(each.last_used_at),
                _instant(each.revoked_at),
                each.note,
            )
            for each in found
        ],
    )
    return 0


@group.command()
def revoke(
    token: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")],
) -> int:
    """Revoke a token; the gateways refuse it within seconds."""
    with database() as connection:
        done = tokens.revoke(connection, token, by=operator_name())
        connection.commit()
    if not done:
        raise UsageError(f"no token {token} in force")
    typer.echo(f"token {token} is void")
    return 0


@group.command("log")
def access_log(json: AsJson = False) -> int:
    """Print the newest 1,000 records of access to the gateway.

    The records are of tokens created and revoked, of sign-ins and sign-outs, of tokens that acted
    for agents, and of refusals. Equal refusals of one minute are one record with their count.
    """
    with database() as connection:
        found = audit.recorded(connection)
    if json:
        as_json(found)
        return 0
    as_table(
        "Access",
        ["at", "what", "who", "subject", "address", "count"],
        [
            (_instant(each.at), each.what, each.who, each.subject, each.address, each.count)
            for each in found
        ],
    )
    return 0


def _instant(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%d %H:%M:%SZ}"
