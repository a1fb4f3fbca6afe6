"""The commands `demo` and `soak`: simulate a call centre, and check every guarantee."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from assignment_workers.assignment.lanes import checked_lanes
from assignment_workers.cli.servers import resolved, settings
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.devstack import temporary
from assignment_workers.devstack.temporary import Broker
from assignment_workers.dialer.loading import load
from assignment_workers.errors import UsageError
from assignment_workers.lab.call_centre import day
from assignment_workers.lab.call_centre.page import page
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import AgentActivity, Recorder, Sample
from assignment_workers.lab.call_centre.soak import Soaked
from assignment_workers.lab.call_centre.soak import run as run_soak
from assignment_workers.lab.call_centre.verdict import BACK_SECONDS, Verdict
from assignment_workers.runtime.stack import Stack, running_stack
from assignment_workers.settings import Settings

T_co = TypeVar("T_co", covariant=True)


class Run(Protocol[T_co]):
    """The type of a function that simulates a call centre on a stack: `day.run` or `soak.run`."""

    def __call__(
        self,
        stack: Stack,
        plan: Plan,
        settings: Settings,
        show: Callable[[Recorder, Sample], None],
        *,
        broker: Broker | None,
    ) -> tuple[Recorder, T_co]:
        """Simulate the call centre that `plan` describes; return the recorder and the result.

        The recorder has what happened, such as waits, assignments and faults. The result says
        whether the run broke a guarantee. `show` is called once a second, with the recorder and the
        figures of that second.
        """


CALM_SECONDS = 30.0
"""The shortest time, in seconds, between two faults of a soak: long enough to measure the system
without faults.
"""
FAULTS = 200
"""The approximate number of faults in a soak of two and a half hours or more.

A shorter soak has fewer faults, because at least `CALM_SECONDS` pass between two faults. A longer
soak does not have more faults, so its processes live longer between two faults. The soak can then
find a figure that grows only slowly, such as the memory of a process.
"""


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (demo, soak):
        app.command()(command)


AgentsAtWork = Annotated[int, typer.Option(min=1, max=2000, help="Agents at work.")]
Users = Annotated[
    int, typer.Option(min=5000, max=1_000_000, help="Users in each pool of a new stack.")
]
Speed = Annotated[
    float, typer.Option(min=1, max=200, help="How many times faster than real the day goes.")
]
Seed = Annotated[int, typer.Option(help="The same seed: the same agents and users.")]
LanesOfStack = Annotated[
    str,
    typer.Option(
        metavar="LANE=QUEUE", help="Lanes of a new stack, as in ASSIGNMENT_WORKERS_LANES."
    ),
]
OverRabbitMQ = Annotated[
    bool,
    typer.Option(
        "--rabbitmq", help="A new stack's broker is RabbitMQ, which Debian's package has installed."
    ),
]
ReportPath = Annotated[Path, typer.Option(help="Where the page of the run is written.")]


def demo(
    agents: AgentsAtWork = 50,
    users: Users = 20_000,
    seconds: Annotated[float, typer.Option(min=5, max=86_400, help="How long it runs.")] = 60,
    speed: Speed = 30,
    seed: Seed = 7,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Kill, freeze and cut off parts of the stack meanwhile.")
    ] = False,
    lanes: LanesOfStack = "",
    rabbitmq: OverRabbitMQ = False,
    report: ReportPath = Path("demo.html"),
    json: AsJson = False,
) -> int:
    """Simulate a call centre, and check every guarantee.

    Agents log in, ask, talk, choose outcomes, skip, take breaks and close the tab. Some users
    sign: their signatures are stored in the CRM. For others a requirement appears: a document
    that the user has to send. Callbacks are promised. The demo's two dialer queues are rebuilt.
    The exit code is 1 if a guarantee broke.

    If a stack is running here, the demo runs on that stack. The demo refuses to run on a stack
    with users or agents other than those of the demo, because all users are called. If no stack
    is running, the demo starts a stack of its own, and removes that stack at the end.
    """
    plan = Plan(agents, users, seconds, speed, seed, chaos, lanes=lanes)
    recorder, verdict = _simulated(day.run, plan, report, json, rabbitmq)
    report.write_text(page(recorder, verdict), encoding="utf-8")
    if json:
        as_json(verdict)
    else:
        _judge(verdict)
    complain(f"the page of this run is {report}")
    return 1 if verdict.broken else 0


def soak(
    agents: AgentsAtWork = 50,
    users: Users = 20_000,
    seconds: Annotated[float, typer.Option(min=60, max=604_800, help="How long it runs.")] = 28_800,
    speed: Speed = 30,
    seed: Seed = 7,
    lanes: LanesOfStack = "",
    rabbitmq: OverRabbitMQ = False,
    report: ReportPath = Path("soak.html"),
    json: AsJson = False,
) -> int:
    """Simulate a call centre for hours, with faults.

    The soak looks for figures that keep growing after a warm-up. The figures are the memory and
    the open files of this project's processes and of Valkey, the connections to PostgreSQL, the
    size of Valkey's data, the number of Valkey's keys that do not expire, the sizes of tables,
    and the time to assign. Tables that must grow with the work done, such as that of
    assignments, are left out. The time to assign is measured only between faults.

    The soak also looks for too many dead rows, for tables much larger than a new copy of their
    rows, and for rows that should have been deleted.

    The exit code is 1 if a figure keeps growing, if there are too many dead rows, if a table is
    too large, if rows were not deleted, or if a guarantee broke. Each finding is then named.
    Otherwise, the exit code is 2 if the run was too short to judge everything.

    If the soak starts a stack, that stack stores the entries of a retired generation for a
    twentieth of the run. The time depends on the length of the run, so that entries can be
    deleted during a short run, too.
    """
    retention = timedelta(seconds=seconds / 20)
    calm = max(CALM_SECONDS, seconds / FAULTS / 1.5)
    plan = Plan(
        agents,
        users,
        seconds,
        speed,
        seed,
        chaos=True,
        between=(calm, 2 * calm),
        retention=retention,
        lanes=lanes,
    )
    recorder, soaked = _simulated(run_soak, plan, report, json, rabbitmq)
    report.write_text(page(recorder, soaked.verdict, soaked), encoding="utf-8")
    if json:
        as_json(soaked)
    else:
        _judge(soaked.verdict)
        _show_drift(soaked)
    complain(f"the page of this run is {report}")
    return soaked.exit_code


def _simulated(
    run: Run[T_co], plan: Plan, report: Path, json: bool, rabbitmq: bool
) -> tuple[Recorder, T_co]:
    """Run the simulation `run` on a stack; return the recorder and the result of the run.

    The recorder has what happened, such as waits, assignments and faults. The result says whether
    the run broke a guarantee. Progress is shown unless `json`. Raises `UsageError`, before anything
    starts, if the folder of the report does not exist.
    """
    if not report.absolute().parent.is_dir():
        raise UsageError(f"--report {report}: there is no folder {report.absolute().parent}")
    with _stack(plan, rabbitmq) as (stack, given, own_plan, broker):
        progress = _Progress(own_plan, stack)
        with nullcontext() if json else progress.live:
            return run(stack, own_plan, given, progress.show, broker=broker)


@contextmanager
def _stack(plan: Plan, rabbitmq: bool) -> Iterator[tuple[Stack, Settings, Plan, Broker | None]]:
    """Yield a stack for the simulation, the stack's settings, the plan, and the stack's RabbitMQ.

    The stack is the one that is running here or, if there is none, a temporary one. For a temporary
    stack, the yielded plan has `own_stack` True. RabbitMQ is None unless `rabbitmq` is true. Raises
    `UsageError` if a stack is running here but the plan has lanes or `rabbitmq` is true, because
    these need a new stack.
    """
    if running := running_stack(settings()):
        if plan.lanes or rabbitmq:
            raise UsageError(
                "--lanes and --rabbitmq are for a new stack, and a stack runs here already:"
                " stop it, or name another ASSIGNMENT_WORKERS_HOME"
            )
        yield running, resolved(), plan, None
        return
    own_settings = Settings.from_environment(plan.variables)
    checked_lanes(own_settings, load(own_settings).policies)
    with tempfile.TemporaryDirectory(prefix="assignment-workers-demo-") as name, ExitStack() as own:
        folder, variables = Path(name), dict(plan.variables)
        broker = own.enter_context(temporary.broker(folder)) if rabbitmq else None
        if broker is not None:
            variables["BROKER_URL"] = broker.url
        complain("a stack of its own is started for this run")
        made = own.enter_context(temporary.stack(folder, variables, own_disk=plan.chaos))
        yield made, own_settings, replace(plan, own_stack=True), broker


class _Progress:
    """A display of a run's progress: a live table or, without a terminal, a line every 10 s."""

    EVERY = 10.0

    def __init__(self, plan: Plan, stack: Stack) -> None:
        self._plan = plan
        self._stack = stack
        console = Console(stderr=True, highlight=False)
        self._is_terminal = console.is_terminal
        self.live = Live(console=console, transient=True, auto_refresh=False)
        self._told = 0.0

    def show(self, recorder: Recorder, sample: Sample) -> None:
        """Show the newest figures of the run (`sample`), and the faults recorded so far.

        On a terminal, the table is drawn again. Otherwise, a line is printed, unless the last line
        is less than 10 seconds old.
        """
        if self._is_terminal:
            self.live.update(self._table(recorder, sample), refresh=True)
        elif sample.at - self._told >= self.EVERY:
            self._told = sample.at
            complain(
                f"{sample.at:.0f} s of {self._plan.seconds:g}: {sample.assigned} assigned,"
                f" {sample.states[AgentActivity.TALKING]} talking, {len(recorder.faults)} faults,"
                f" {len(recorder.surprises)} broken"
            )

    def _table(self, recorder: Recorder, sample: Sample) -> Table:
        recent = sorted(wait.seconds for wait in recorder.waits if wait.at > sample.at - self.EVERY)
        table = Table(title=f"A call centre, {sample.at:.0f} s of {self._plan.seconds:g}")
        table.add_column("")
        table.add_column("", justify="right")
        for state, count in sample.states.items():
            table.add_row(f"agents {state}", str(count))
        table.add_row("users assigned", f"{sample.assigned:,}")
        table.add_row(
            "claimable", "unknown" if sample.claimable is None else f"{sample.claimable:,}"
        )
        if recent:
            worst = f"{recent[len(recent) // 2] * 1000:.0f} / {recent[-1] * 1000:.0f} ms"
            table.add_row("time to assign, median / worst of 10 s", worst)
        for fault in recorder.faults[-5:]:
            back = recorder.back_after(fault)
            table.add_row(
                f"{fault.at:.0f} s: {fault.what}",
                "waiting" if back is None else f"answered after {back:.1f} s",
            )
        table.add_row("guarantees broken", str(len(recorder.surprises)))
        if self._stack.flower_url:
            table.caption = f"Flower: {self._stack.flower_url}"
        return table


def _judge(verdict: Verdict) -> None:
    levels = verdict.levels
    typer.echo(
        f"{verdict.agents} agents, {verdict.seconds:g} s at {verdict.speed:g} times the real pace,"
        f" seed {verdict.seed}\n"
    )
    as_table(
        "Service levels",
        ["", ""],
        [
            ("requests", levels.requests),
            ("users assigned", levels.assigned),
            ("answered", f"{levels.answered_share:.3%}"),
            ("answered within 100 ms", f"{levels.soon_share:.1%}"),
            ("mean / median", f"{levels.mean_ms} / {levels.median_ms} ms"),
            ("95 % / 99 % / worst", f"{levels.p95_ms} / {levels.p99_ms} / {levels.worst_ms} ms"),
        ],
    )
    as_table("What happened", ["", ""], verdict.counts.items())
    as_table("The records", ["", ""], verdict.records.items())
    if verdict.faults:
        as_table(
            "Faults",
            ["at, s", "what", "service back after, s"],
            [(fault.at, fault.what, fault.back_after) for fault in verdict.faults],
        )
    for each in verdict.untried:
        typer.echo(f"NOT TRIED: {each}")
    for each in verdict.late:
        typer.echo(f"LATE: service was not back within {BACK_SECONDS:g} s: {each}")
    for each in verdict.broken:
        typer.echo(f"BROKEN: {each}")
    if not verdict.broken:
        typer.echo("Every guarantee held.")


def _show_drift(soaked: Soaked) -> None:
    as_table(
        "Drift",
        ["", "", "level", "grown by", "", "within, s", ""],
        [
            (
                each.kind,
                each.name,
                None if each.level is None else f"{each.level:,.4g}",
                None if each.grown is None else f"{each.grown:,.3g}",
                each.unit,
                None if each.watched is None else f"{each.watched:,.0f}",
                each.finding,
            )
            for each in soaked.series
        ],
    )
    as_table(
        f"Tables, after {soaked.purged} generations were purged",
        ["", "rows", "MB", "bytes a row", "written anew", "times"],
        [(each.name, *each.shown()) for each in soaked.tables],
    )
    for each in soaked.drifted:
        typer.echo(f"DRIFTED: {each}")
    for each in soaked.unjudged:
        typer.echo(f"NOT JUDGED: {each}")
    if not soaked.drifted and not soaked.unjudged:
        typer.echo("Nothing drifted.")
