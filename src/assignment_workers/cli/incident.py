"""The command `replay-incident`: replay a failure of the old dialer, and try our algorithm on it.

The old dialer is the one that this project replaces. In the incident, a rebuild deleted the queue
row that the old dialer had just selected for an agent, and the agent's screen said that the dialer
queue was empty (docs/original-dialer.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated

import typer

from assignment_workers.cli.servers import settings
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.devstack import temporary
from assignment_workers.errors import UsageError
from assignment_workers.lab.incident.load import LoadPlan
from assignment_workers.lab.incident.replay import NAMES, OURS, ReplayReport, ReplayResult, replay
from assignment_workers.runtime.stack import running_stack


def add_to(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command()(replay_incident)


def replay_incident(
    ways: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(NAMES)}; none: all.")
    ] = None,
    agents: Annotated[int, typer.Option(min=2, max=90, help="Agents who ask.")] = 40,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Seconds for each way.")] = 10,
    speed: Annotated[
        float, typer.Option(min=1, max=2000, help="How many times faster than real the day goes.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="The same seed: the same users, calls and pauses.")] = 7,
    validation: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds of a read on the replica.")
    ] = 20,
    json: AsJson = False,
) -> int:
    """Replay the incident: the old dialer, remedies for it, and our algorithm.

    The incident happened in the old dialer, which this project replaces: a rebuild deleted the
    queue row that the dialer had just selected for an agent, and the agent was told that the dialer
    queue was empty (docs/original-dialer.md).

    The same simulated agents ask for users under several algorithms in turn: that of the old dialer
    (the original), that algorithm with each of the usual remedies, and ours. The exit code is 1 if
    our algorithm broke a guarantee. The replay uses scratch databases on the server of
    DATABASE_URL, or else of the running stack, or else on a server of its own. No other database is
    touched.
    """
    for name in ways or ():
        if name not in NAMES:
            raise UsageError(f"no way {name!r}; there are {', '.join(NAMES)}")
    plan = LoadPlan(agents, seconds, speed, seed, timedelta(milliseconds=validation))
    with _server() as url:
        report = replay(
            url,
            plan,
            ways or NAMES,
            done=lambda result: None if json else typer.echo(f"{result.name}: done", err=True),
        )
    if json:
        as_json(report)
    else:
        _show(report)
    ours = [result for result in report.results if result.name == OURS]
    if any(not result.is_clean for result in ours):
        complain("our way broke a guarantee under this load")
        return 1
    return 0


@contextmanager
def _server() -> Iterator[str]:
    """Yield the address of a PostgreSQL server for temporary databases.

    The server is that of DATABASE_URL, or else of the running stack, or else a new one.
    """
    given = settings()
    if given.database_url is not None:
        yield given.database_url
    elif stack := running_stack(given):
        yield stack.database_url
    else:
        with temporary.database() as url:
            yield url


def _show(report: ReplayReport) -> None:
    columns = [
        "",
        "requests",
        "like P2025",
        "other errors",
        "users held twice",
        "holds destroyed",
        "told 'empty'",
        "users lost",
        "rebuilds",
        "median ms",
        "p99 ms",
    ]
    title = (
        f"{report.agents} agents, {report.users:,} users, {report.seconds:g} s at"
        f" {report.speed:g} times the real pace, seed {report.seed}"
    )
    as_table(title, columns, [_row(result) for result in report.results])
    typer.echo("like P2025: the row that was found is gone, or changed, at its update; the agent")
    typer.echo("sees 'queue empty'.")
    typer.echo("held twice: two agents had the user at the same time. destroyed: the hold was gone")
    typer.echo("when its agent came to finish the call. told 'empty': while users were waiting.")
    typer.echo("lost: held, after all have left and a last rebuild, by nobody who is there.")


def _row(result: ReplayResult) -> list[object]:
    return [
        f"{result.name}: {result.way}",
        result.requests,
        result.not_found,
        result.failed + sum(result.errors.values()) if result.errors else result.failed,
        result.held_twice,
        result.destroyed,
        result.told_empty,
        result.lost,
        result.rebuilds,
        result.median_ms,
        result.p99_ms,
    ]
