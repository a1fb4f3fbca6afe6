"""Agents' states: list them, and change the state of one agent."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.assignment.lifecycle.agent_status import all_shown
from assignment_workers.assignment.lifecycle.verb import TIMEOUT
from assignment_workers.cli.agent import tell
from assignment_workers.cli.operator_actions import OptionalWhy, operator_name, recorded
from assignment_workers.cli.servers import client, database
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.client import commands
from assignment_workers.client.reading import as_state_answer
from assignment_workers.schema.tables import AgentStatus

LISTED_AT_MOST = 10_000

group = typer.Typer(help="What agents are about, and their sessions.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="agents")


@group.command("list")
def list_agents(json: AsJson = False) -> int:
    """List every agent who stated a state, sent a heartbeat or holds a user."""
    with database() as connection:
        found = all_shown(connection, limit=LISTED_AT_MOST)
    if json:
        as_json(found)
        return 0
    as_table(
        "Agents",
        ["agent", "state", "since", "calls", "seen", "holds", "why"],
        [
            (
                each.agent_id,
                f"{each.state or 'never stated'}{', stale' if each.stale else ''}",
                each.since and f"{each.since:%Y-%m-%d %H:%M:%SZ}",
                each.calls_in_session,
                each.seen_at and f"{each.seen_at:%Y-%m-%d %H:%M:%SZ}",
                each.assignment_id and ("work" if each.accepted_at else "an offer"),
                each.why,
            )
            for each in found
        ],
    )
    return 0


@group.command()
def state(
    agent: Annotated[int, typer.Argument(min=1, max=2**31 - 1, help="The agent.")],
    becomes: Annotated[AgentStatus, typer.Argument(help="What they are about from now on.")],
    why: OptionalWhy = None,
    json: AsJson = False,
) -> int:
    """Set the state of AGENT; on break or offline, an offer that is not accepted is released."""
    with recorded("agent_state", f"{agent} {becomes}", why) as told, client() as asking:
        command = commands.state(agent, becomes.value, by=operator_name(), why=why)
        answer = told(as_state_answer(asking.ask(command.at(told.position), TIMEOUT)))
    return tell(answer, json)
