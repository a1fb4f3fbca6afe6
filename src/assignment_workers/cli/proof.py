"""What a stranger runs to see it for themselves: the incident replayed, a call centre simulated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from assignment_workers.call_centre import day
from assignment_workers.call_centre.book import Book, Sample, State
from assignment_workers.call_centre.page import page
from assignment_workers.call_centre.plan import Plan as Day
from assignment_workers.call_centre.soak import run as run_soak
from assignment_workers.call_centre.verdict import Verdict
from assignment_workers.cli.servers import resolved, settings
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.errors import UsageError
from assignment_workers.incident.load import Plan
from assignment_workers.incident.replay import NAMES, OURS, Report, Result, replay
from assignment_workers.runtime import temporary
from assignment_workers.runtime.stack import Stack, running_stack
from assignment_workers.settings import Settings

T = TypeVar("T")
Run = Callable[[Stack, Day, Settings, Callable[[Book, Sample], None]], tuple[Book, T]]

CALM = 30.0, 60.0
"""Seconds from a fault of a soak to the next: long enough to see how it stands between."""


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (replay_incident, demo, soak):
        app.command()(command)


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
    """The incident, before and after: the original, its remedies and ours on the same load.

    Runs in scratch databases on the server of DATABASE_URL, of the running stack, or of its own; no
    other database is touched. Exit 1 when ours lost anything.
    """
    for name in ways or ():
        if name not in NAMES:
            raise UsageError(f"no way {name!r}; there are {', '.join(NAMES)}")
    plan = Plan(agents, seconds, speed, seed, timedelta(milliseconds=validation))
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
    """A PostgreSQL on which databases may be made: as set, as it runs, or a new one."""
    given = settings()
    if given.database_url is not None:
        yield given.database_url
    elif stack := running_stack(given):
        yield stack.database_url
    else:
        with temporary.database() as url:
            yield url


def _show(report: Report) -> None:
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


def _row(result: Result) -> list[object]:
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


AgentsAtWork = Annotated[int, typer.Option(min=1, max=2000, help="Agents at work.")]
Users = Annotated[
    int, typer.Option(min=5000, max=1_000_000, help="Users in each pool of a new stack.")
]
Speed = Annotated[
    float, typer.Option(min=1, max=200, help="How many times faster than real the day goes.")
]
Seed = Annotated[int, typer.Option(help="The same seed: the same agents and users.")]
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
    report: ReportPath = Path("demo.html"),
    json: AsJson = False,
) -> int:
    """A simulated call centre, and whether every guarantee held. Exit 1 if one broke.

    On the stack that runs here, if its users are the demo's; otherwise on one of its own, gone with
    it. Agents log in, ask, talk, choose outcomes, skip, take breaks and close the tab; users sign
    by themselves, requirements appear, callbacks are promised, both dialer queues are rebuilt.
    """
    plan = Day(agents, users, seconds, speed, seed, chaos)
    book, verdict = _simulated(day.run, plan, report, json)
    report.write_text(page(book, verdict), encoding="utf-8")
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
    report: ReportPath = Path("soak.html"),
    json: AsJson = False,
) -> int:
    """The simulated call centre for hours, with faults, and whether anything drifts meanwhile.

    Memory, open files, connections, table sizes, dead rows, Valkey's data, time to assign between
    faults, and what should have been deleted: the last third of the run against the middle one.
    Exit 1, with the names, if something drifted or a guarantee broke. A stack of its own keeps the
    entries of retired generations for a twentieth of the run.
    """
    retention = timedelta(seconds=seconds / 20)
    plan = Day(agents, users, seconds, speed, seed, chaos=True, between=CALM, retention=retention)
    book, soaked = _simulated(run_soak, plan, report, json)
    report.write_text(page(book, soaked.verdict, soaked), encoding="utf-8")
    if json:
        as_json(soaked)
    else:
        _judge(soaked.verdict)
        rows = [(each.kind, each.name, each.middle, each.last, each.unit) for each in soaked.series]
        as_table("Drift", ["", "", "middle third", "last third", ""], rows)
        for each in soaked.drifted:
            typer.echo(f"DRIFTED: {each}")
        if not soaked.drifted:
            typer.echo("Nothing drifted.")
    complain(f"the page of this run is {report}")
    return 0 if soaked.is_good else 1


def _simulated(run: Run[T], plan: Day, report: Path, json: bool) -> tuple[Book, T]:
    """The run and its judgement, shown as it goes unless a program asked.

    Raises `UsageError`, before anything starts, where the report could not be written.
    """
    if not report.absolute().parent.is_dir():
        raise UsageError(f"--report {report}: there is no folder {report.absolute().parent}")
    with _stack(plan) as (stack, given):
        progress = _Progress(plan, stack)
        with nullcontext() if json else progress.live:
            return run(stack, plan, given, progress.show)


@contextmanager
def _stack(plan: Day) -> Iterator[tuple[Stack, Settings]]:
    """The stack that runs here, with its settings; else a new one."""
    if running := running_stack(settings()):
        yield running, resolved()
        return
    with tempfile.TemporaryDirectory(prefix="assignment-workers-demo-") as folder:
        complain("a stack of its own is started for the demo")
        with temporary.stack(Path(folder), plan.variables) as made:
            yield made, Settings.from_environment(plan.variables)


class _Progress:
    """The run as it goes: a table that renews itself, or a line now and then where it cannot."""

    EVERY = 10.0

    def __init__(self, plan: Day, stack: Stack) -> None:
        self._plan = plan
        self._stack = stack
        console = Console(stderr=True, highlight=False)
        self._is_terminal = console.is_terminal
        self.live = Live(console=console, transient=True, auto_refresh=False)
        self._told = 0.0

    def show(self, book: Book, sample: Sample) -> None:
        """The last second."""
        if self._is_terminal:
            self.live.update(self._table(book, sample), refresh=True)
        elif sample.at - self._told >= self.EVERY:
            self._told = sample.at
            complain(
                f"{sample.at:.0f} s of {self._plan.seconds:g}: {sample.assigned} assigned,"
                f" {sample.states[State.TALKING]} talking, {len(book.faults)} faults,"
                f" {len(book.surprises)} broken"
            )

    def _table(self, book: Book, sample: Sample) -> Table:
        recent = sorted(wait.seconds for wait in book.waits if wait.at > sample.at - self.EVERY)
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
        for fault in book.faults[-5:]:
            back = book.back_after(fault)
            table.add_row(
                f"{fault.at:.0f} s: {fault.what}",
                "waiting" if back is None else f"answered after {back:.1f} s",
            )
        table.add_row("guarantees broken", str(len(book.surprises)))
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
            ["at, s", "what", "next answer after, s"],
            [(fault.at, fault.what, fault.back_after) for fault in verdict.faults],
        )
    for each in verdict.broken:
        typer.echo(f"BROKEN: {each}")
    if not verdict.broken:
        typer.echo("Every guarantee held.")
