"""The stack as a whole: start it, print its addresses, run one of its processes."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import typer

from assignment_workers import versions
from assignment_workers.cli.show import as_json
from assignment_workers.errors import UsageError
from assignment_workers.runtime.stack import (
    WITHOUT_DATABASE,
    Stack,
    running_stack,
    shell_assignments,
)
from assignment_workers.settings import ProcessName, Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from assignment_workers.client import Client

DEMO_AGENT = 26
TRIES = 50
NAME = "assignment-workers"
PRELOADED = (
    "assignment_workers.cli.agent",
    "assignment_workers.cli.servers",
    "assignment_workers.cli.stack",
    "assignment_workers.gateway.serve",
    "assignment_workers.tasks.process",
    "celery.bin.beat",
    "celery.worker.worker",
    "flower.command",
    "redbeat",
)
"""Modules that are imported once, before the processes of a stack are forked."""


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (up, env, process, openapi):
        app.command()(command)


def up(
    demo: Annotated[bool, typer.Option(help="Fill a new database with a demo CRM.")] = True,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The gateway's port.")] = None,
    sequencers: Annotated[
        int, typer.Option(min=1, max=9, help="For each lane: one leads, the others stand by.")
    ] = 1,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what every process logs.")
    ] = False,
) -> int:
    """Start everything in the foreground; Ctrl-C stops it, data kept.

    The command starts PostgreSQL, Valkey, the sequencers, the other Celery workers, Beat, Flower
    and the gateway on this machine.
    """
    from assignment_workers.devstack import forks

    forks.prepare(PRELOADED)  # in parallel with our own imports and the start of the servers
    from assignment_workers.assignment.crm.external_crm import checked
    from assignment_workers.assignment.lanes import lanes_of
    from assignment_workers.cli.servers import settings
    from assignment_workers.devstack import up as devstack
    from assignment_workers.dialer.loading import is_packaged
    from assignment_workers.policy.process_dialer import loaded
    from assignment_workers.schema import migrate

    given = settings()
    for untested in versions.untested():
        typer.echo(f"warning: {untested}", err=True)
    checked(loaded(), given)
    # Another CRM would not know the demo's users, another dialer would have no queue for them.
    demo = demo and given.crm_database_url is None and is_packaged(given)
    steps = devstack.Steps(
        migrate=migrate.upgrade,
        seed=_seed if demo else None,
        missing=_missing,
        announce=lambda stack: _announce(stack, first=demo),
    )
    lanes = lanes_of(given).names
    children = devstack.processes(sequencers=sequencers, lanes=lanes[1:])
    return devstack.up(given, children, steps, port=port, verbose=verbose)


def env() -> int:
    """Print the running stack's addresses for `eval`.

    The output is a shell command `export NAME=value` for each address, such as DATABASE_URL.
    """
    from assignment_workers.cli.servers import settings

    stack = running_stack(settings())
    if stack is None:
        raise UsageError("no stack runs here: start one with `assignment-workers up`")
    typer.echo(shell_assignments(stack))
    return 0


def process(
    name: Annotated[ProcessName, typer.Argument(help="Which one.")],
    lane: Annotated[
        str | None, typer.Option(help="The sequencer's: one of ASSIGNMENT_WORKERS_LANES.")
    ] = None,
) -> int:
    """Run one process of a stack, in the foreground.

    The process, such as the gateway or a sequencer, uses the servers that DATABASE_URL and
    REDIS_URL name, or else those of the running stack.
    """
    from assignment_workers.cli.servers import resolved, settings
    from assignment_workers.tasks import process as processes

    given = settings()
    if name in WITHOUT_DATABASE and given.redis_url is not None:
        return processes.run(name, given, lane=lane)
    return processes.run(name, resolved(), lane=lane)


def openapi() -> int:
    """Print the gateway's OpenAPI document.

    The document is for generators of clients. No server has to run.
    """
    from assignment_workers.cli.servers import settings
    from assignment_workers.gateway.app import create_app
    from assignment_workers.gateway.routes.meta import document

    settings()
    engine = _engine("postgresql://")
    as_json(document(create_app(Settings.from_environment({}), engine, tokens=True)))
    return 0


def _engine(url: str) -> Engine:
    from assignment_workers.schema.engine import connect

    return connect(url, name="assignment-workers up", statement_timeout=timedelta(minutes=5))


def _seed(given: Settings) -> None:
    from assignment_workers.devstack import demo as demo_data

    engine = _engine(given.database)
    with engine.begin() as connection:
        if not demo_data.is_seeded(connection):
            demo_data.seed(
                connection, users=given.demo_users, seed=given.demo_seed, now=datetime.now(UTC)
            )
    engine.dispose()


def _missing(given: Settings) -> str | None:
    from assignment_workers.assignment.lanes import lanes_of
    from assignment_workers.assignment.reports.status import sequencer_statuses
    from assignment_workers.devstack.ports import answers_http
    from assignment_workers.policy.process_dialer import loaded
    from assignment_workers.sequencer.term import APPLICATION

    engine = _engine(given.database)
    with engine.connect() as connection:
        lanes = sequencer_statuses(
            connection,
            application=APPLICATION,
            lanes=lanes_of(given),
            queues=loaded().policies,
        )
    engine.dispose()
    if any(lane.leader is None for lane in lanes):
        return "no sequencer leads yet"
    answers = answers_http(given.gateway_host, given.gateway_port, "/healthz")
    return None if answers else "the gateway does not answer yet"


def _announce(stack: Stack, *, first: bool) -> None:
    from assignment_workers.assignment.lanes import lanes_of
    from assignment_workers.cli.servers import settings
    from assignment_workers.client import Client

    lanes = lanes_of(settings())
    with Client.connect(stack.redis_url, broker_url=stack.broker_url, lanes=lanes) as client:
        task = client.regenerate()
        if isinstance(task, str):
            client.built(task, timeout=timedelta(seconds=60))
        if first:
            typer.echo(_first_assignment(client))
    now = datetime.now(UTC)
    typer.echo(f"dashboard    {stack.dashboard_link(now=now)}")
    typer.echo(f"Flower       {stack.flower_link(now=now)}")
    typer.echo("             (each of these two signs a browser in, once, within the hour)")
    typer.echo(f"gateway      {stack.gateway_url}")
    typer.echo('addresses    eval "$(assignment-workers env)", with the token in GATEWAY_TOKEN')
    typer.echo("Ctrl-C stops it all. Next, in another terminal of this folder:")
    begun = f"request {DEMO_AGENT + 1}" if first else "dialer check"
    for words in (begun, "status", "replay-incident"):
        typer.echo(f"    {_command()} {words}")


def _first_assignment(client: Client) -> str:
    from assignment_workers.assignment.answers import Assigned, Unavailable
    from assignment_workers.cli.agent import line
    from assignment_workers.devstack.demo import INCIDENT_QUEUE

    for _ in range(TRIES):
        name = f"first-{Random().getrandbits(64):x}"
        answer = client.request_next(DEMO_AGENT, queue=INCIDENT_QUEUE, request_id=name)
        if not isinstance(answer, Unavailable):
            break
    return line(answer) if isinstance(answer, Assigned) else f"no user: {line(answer)}"


def _command() -> str:
    """Return the command by which this program was started, without its arguments.

    It is the path of the program `assignment-workers`, or else Python's path with the option
    `-m assignment_workers`.
    """
    typed = Path(sys.argv[0])
    return sys.argv[0] if typed.stem == NAME else f"{sys.executable} -m assignment_workers"
