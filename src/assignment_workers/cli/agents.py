"""Agents' states: list them, and change the state of one agent."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Annotated

import typer

from assignment_workers.assignment.lifecycle.agent_status import all_shown
from assignment_workers.assignment.lifecycle.verb import TIMEOUT
from assignment_workers.assignment.reports.details import answers_to
from assignment_workers.cli.agent import as_instant, tell
from assignment_workers.cli.operator_actions import OptionalWhy, operator_name, recorded
from assignment_workers.cli.servers import client, database
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.client import commands
from assignment_workers.client.reading import as_state_answer
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import AgentStatus

LISTED_AT_MOST = 10_000
LISTED_FOR = timedelta(hours=1)
AROUND = timedelta(minutes=5)
ANSWERS_AT_MOST = 50
AgentId = Annotated[int, typer.Argument(min=1, max=2**31 - 1, help="The agent.")]

group = typer.Typer(help="What agents are about, and their sessions.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="agents")


@group.command("list")
def list_agents(json: AsJson = False) -> int:
    """List every agent who has a state, sent a heartbeat or holds a user."""
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
def answers(
    agent: AgentId,
    at: Annotated[
        str | None,
        typer.Option(
            help="Those from five minutes before this time to five minutes after it: a time of day"
            " such as 10:03, by this machine's clock, or 2026-11-23T10:03Z."
        ),
    ] = None,
    json: AsJson = False,
) -> int:
    """List the answers to AGENT's requests, with the reason where no user was assigned.

    Without --at, the newest 50 answers of the last hour are listed. With --at, the answers from
    five minutes before that time to five minutes after it. Answers are stored for seven days,
    unless the retention is set otherwise.
    """
    now = datetime.now(UTC)
    middle = None if at is None else _around(at, now)
    with database() as connection:
        found = answers_to(
            connection,
            loaded(),
            agent,
            since=now - LISTED_FOR if middle is None else middle - AROUND,
            until=now + AROUND if middle is None else middle + AROUND,
            at_most=ANSWERS_AT_MOST,
        )
    if json:
        as_json(found)
        return 0
    if not found:
        typer.echo(
            f"No answer to agent {agent} is stored for that time: no request arrived,"
            " or it was answered `unavailable`."
        )
        return 0
    as_table(
        f"Answers to agent {agent}",
        ["at", "asked for", "answer", "user", "why"],
        [
            (
                f"{each.at:%Y-%m-%d %H:%M:%SZ}",
                each.queue or "any queue",
                each.outcome,
                each.user_id,
                ": ".join(part for part in (each.why, each.reason) if part),
            )
            for each in found
        ],
    )
    return 0


def _around(at: str, now: datetime) -> datetime:
    """Parse the value of `--at`, a time or a time of day; return the time in UTC.

    A time of day is in this machine's time zone. It stands for the last time before `now` at which
    this machine's clock showed this time of day. The date and time found are printed on standard
    error. Raises `UsageError` for any other text, and for a time of day with a zone.
    """
    try:
        of_day = time.fromisoformat(at)
    except ValueError:
        return as_instant(at, "--at", or_of_day="10:03")
    if of_day.tzinfo is not None:
        raise UsageError(f"--at {at!r}: a time of day with a zone has no date")
    read = datetime.combine(now.astimezone(), of_day).astimezone()
    if read > now:
        read = datetime.combine(now.astimezone() - timedelta(days=1), of_day).astimezone()
    utc = read.astimezone(UTC)
    typer.echo(f"{at} is read as {read:%Y-%m-%d %H:%M:%S %Z}, {utc:%Y-%m-%d %H:%M:%SZ}", err=True)
    return utc


@group.command()
def state(
    agent: AgentId,
    becomes: Annotated[AgentStatus, typer.Argument(help="What they are about from now on.")],
    why: OptionalWhy = None,
    json: AsJson = False,
) -> int:
    """Set the state of AGENT.

    If the new state is `break` or `offline`, an offer that AGENT has not accepted yet is released.
    While AGENT has an accepted assignment, `available` and `wrap_up` are stored as `on_call`.
    """
    with recorded("agent_state", f"{agent} {becomes}", why) as told, client() as asking:
        command = commands.state(agent, becomes.value, by=operator_name(), why=why)
        answer = told(as_state_answer(asking.ask(command.at(told.position), TIMEOUT)))
    return tell(answer, json)
