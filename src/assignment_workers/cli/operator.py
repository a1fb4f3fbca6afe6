"""The commands of an operator: regenerate, pause, resume, drain, status, doctor."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.answers import Done, Refused, Unavailable
from assignment_workers.assignment.crm import fact_views
from assignment_workers.assignment.generations.drain import DRAINED_AT_MOST, drainable
from assignment_workers.assignment.generations.levels import unpublished
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.operator_actions import ASKED
from assignment_workers.assignment.reports.doctor import CheckResult, examine
from assignment_workers.assignment.reports.durability import Durability, durability
from assignment_workers.assignment.reports.status import (
    CrmStatus,
    LastJobRun,
    SequencerStatus,
    Status,
)
from assignment_workers.assignment.reports.status import status as read_status
from assignment_workers.cli.agent import line
from assignment_workers.cli.operator_actions import OptionalWhy, operator_name, recorded
from assignment_workers.cli.servers import (
    client,
    database,
    database_and_crm,
    known,
    need_queue,
    settings,
)
from assignment_workers.cli.show import (
    AsJson,
    as_json,
    as_table,
    complain,
    print_table,
    table_of,
)
from assignment_workers.client import Built, Client, commands
from assignment_workers.errors import DatabaseUnavailable, SchemaMismatch, UsageError
from assignment_workers.health.model import Health, HealthState, JobHealth
from assignment_workers.health.monitor import read_once, read_repeatedly
from assignment_workers.health.readings import NO_ANSWER
from assignment_workers.health.runbooks import COMMAND
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.term import APPLICATION
from assignment_workers.settings import Settings

BUILD_AT_MOST = timedelta(minutes=30)
PUBLISH_SECONDS = 30.0
HISTORY_AT_MOST = timedelta(minutes=15)
"""The longest time for one statement of `doctor --history`. Millions of events take tens of
seconds.
"""
STATUS_AT_MOST = timedelta(seconds=2)
WATCH_SECONDS = 2.0
NOBODY = "; nobody is in it: `assignment-workers explain --queue {queue}` says why"
LOSES = "what-a-standby-or-a-backup-can-lose"
"""The name of the runbook about asynchronous standbys and backups."""
HELD_AFTER_LEASE_AT_MOST = timedelta(minutes=2)

QueueArgument = Annotated[str, typer.Argument(help="The dialer queue.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (regenerate, pause, resume, drain, status, doctor):
        app.command()(command)


def regenerate(
    queues: Annotated[list[str] | None, typer.Argument(help="Dialer queues; none: all.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they are built.")] = False,
    why: OptionalWhy = None,
    json: AsJson = False,
) -> int:
    """Build new generations of dialer queues now."""
    for queue in queues or ():
        need_queue(queue)
    each_queue: list[str | None] = [*queues] if queues else [None]
    with database_and_crm() as (connection, crm):
        if crm is None:  # a table that is missing is told here, not by a dead letter
            connection.execute(fact_views.probe(loaded()))
    with client() as asking:
        asked = [_rebuild(asking, queue, why) for queue in each_queue]
        told = [_built(asking, each) if wait else each for each in asked]
    if json:
        as_json(told)
    for name, each in zip(each_queue, told, strict=True):
        if isinstance(each, Unavailable):
            complain(line(each))
        elif not json:
            typer.echo(_requested(name, each) if isinstance(each, str) else _lines(each))
    return 1 if any(isinstance(each, Unavailable) for each in told) else 0


def _requested(queue: str | None, task: str) -> str:
    return (
        f"requested: a build of {queue or 'every dialer queue'} (task {task}); `--wait` waits for "
        "it, and `status` lists it when it has begun"
    )


def _rebuild(asking: Client, queue: str | None, why: str | None) -> str | Unavailable:
    with recorded("rebuild", queue or "all", why) as told:
        return told(asking.regenerate(queue), done=ASKED)


def _built(asking: Client, task: str | Unavailable) -> Built | Unavailable:
    """Wait until this build task has ended and its generations are published; return its result.

    Returns `Unavailable` if the build or the publication takes too long. A `task` that is
    `Unavailable` is returned at once.
    """
    if isinstance(task, Unavailable):
        return task
    built = asking.built(task, timeout=BUILD_AT_MOST)
    if isinstance(built, Unavailable):
        return built
    numbers = {each["generation"] for each in built.values() if "generation" in each}
    ends = time.monotonic() + PUBLISH_SECONDS
    with database() as connection:
        while waiting := numbers & set(unpublished(connection)):
            connection.rollback()
            if time.monotonic() > ends:
                return Unavailable(
                    retry_after=5.0,
                    reason=f"built, but not published yet: generation {min(map(str, waiting))}",
                )
            time.sleep(0.05)
    return built


def _lines(built: Built) -> str:
    return "\n".join(
        f"{queue}: "
        + ", ".join(f"{name} {value}" for name, value in facts.items())
        + (NOBODY.format(queue=queue) if facts.get("size") == 0 else "")
        for queue, facts in built.items()
    )


def pause(queue: QueueArgument, why: OptionalWhy = None) -> int:
    """Hand out nobody from QUEUE until it is resumed.

    Agents keep the users whom they hold.
    """
    with recorded("pause", queue, why) as told, client() as asking:
        answer = told(asking.command(commands.pause(queue, operator_name(), why).at(told.position)))
    return _done(answer, f"{queue} is paused")


def resume(queue: QueueArgument, why: OptionalWhy = None) -> int:
    """Hand out users from QUEUE again."""
    with recorded("resume", queue, why) as told, client() as asking:
        answer = told(
            asking.command(commands.resume(queue, operator_name(), why).at(told.position))
        )
    return _done(answer, f"{queue} hands out users")


def drain(
    queue: QueueArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many would be taken out.")
    ] = False,
    why: OptionalWhy = None,
) -> int:
    """Remove from QUEUE all users whom no agent holds; the next build adds users again.

    A user whom an agent holds stays with the agent. Pause the dialer queue QUEUE first if nobody
    from it should be handed out after the next build.
    """
    need_queue(queue)
    if dry_run:
        with database() as connection:
            typer.echo(f"would be taken out of {queue}: {drainable(connection, queue)}")
        return 0
    count, last = 0, DRAINED_AT_MOST
    with recorded("take_out", queue, why) as told, client() as asking:
        while last >= DRAINED_AT_MOST:
            answer = told(asking.command(commands.drain(queue, operator_name()).at(told.position)))
            if not isinstance(answer, Done):
                return _done(answer, "")
            last = answer.counts["drained"]
            count += last
    typer.echo(f"taken out of {queue}: {count}; builds consider them again")
    return 0


def _done(answer: object, what: str) -> int:
    if isinstance(answer, Done):
        typer.echo(f"{what}{' (it was already so)' if answer.replayed else ''}")
        return 0
    complain(line(answer))
    return 2 if isinstance(answer, Refused) else 1


def status(
    json: AsJson = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show the health again every 2 s, until Ctrl-C."),
    ] = False,
) -> int:
    """Show whether agents are served, and the state of everything.

    The verdict is the first line. The exit code is 1 if agents are not served, or if that is
    unknown; with --watch, the last reading decides. Without a terminal, --watch prints a line for
    each change.
    """
    given = known()
    if watch:
        if json:
            raise UsageError(
                "--watch is for people, and --json for programs; one of them is needed"
            )
        return _watch(read_repeatedly(given))
    health = read_once(given)
    found = _status(health, given)
    if json:
        as_json({"health": health} | (found.model_dump() if found else {}))
    else:
        _show_health(health, found)
        if found is not None:
            _show(found)
    return 0 if health.agents_are_served else 1


def _watch(readings: Iterator[Health]) -> int:
    """Show each health reading until Ctrl-C: on the whole terminal, or as lines without a terminal.

    Returns the exit code: 0 if agents are served according to the last reading, otherwise 1.
    """
    console = Console(highlight=False)
    show = _redraw if console.is_terminal else _print_changes
    served: list[bool] = []
    with contextlib.suppress(KeyboardInterrupt):
        show(_noted(readings, served), console)
    if console.is_terminal and served:
        typer.echo(
            "agents are served" if served[-1] else "agents are not served, as far as is known"
        )
    return 0 if served and served[-1] else 1


def _noted(readings: Iterator[Health], served: list[bool]) -> Iterator[Health]:
    """Yield each health reading, with a pause of two seconds (`WATCH_SECONDS`) after it.

    The list `served` is changed in place: its one value is True if agents are served according to
    the newest reading.
    """
    for health in readings:
        served[:] = [health.agents_are_served]
        yield health
        time.sleep(WATCH_SECONDS)


def _redraw(readings: Iterator[Health], console: Console) -> None:
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        for health in readings:
            head = f"{health.at:%Y-%m-%d %H:%M:%SZ}, every {WATCH_SECONDS:g} s, Ctrl-C ends"
            style = "bold" if health.state is HealthState.GOOD else "bold reverse"
            lines = [Text(head, "dim"), Text(health.verdict, style)]
            lines += [Text(each) for each in _wrong_lines(health)]
            tables = [part for each in _tables(health) for part in (Text(), each)]
            live.update(Group(*lines, *tables), refresh=True)


def _print_changes(readings: Iterator[Health], _: Console) -> None:
    before: list[str] | None = None
    for health in readings:
        found = [health.verdict, *(f"{each.state}: {each.title}" for each in health.wrong)]
        if found != before:
            typer.echo(f"{health.at:%Y-%m-%d %H:%M:%SZ} {'; '.join([health.verdict, *found[2:]])}")
            sys.stdout.flush()
        before = found


def _status(health: Health, given: Settings) -> Status | None:
    """Read the status from the database.

    If that is impossible, print the reason and return None.
    """
    if _is_silent(health):
        complain(f"the database cannot be reached: PostgreSQL {NO_ANSWER}")
        return None
    try:
        with database_and_crm(patience=STATUS_AT_MOST) as (connection, crm):
            found = read_status(connection, loaded(), crm, application=APPLICATION, settings=given)
            return user_ids.shown(loaded(), connection, found)
    except (DatabaseUnavailable, SchemaMismatch) as error:
        complain(str(error))
        return None


def _is_silent(health: Health) -> bool:
    """Return True if PostgreSQL did not answer the health reading.

    The caller then sends no query to the database, because the query would fail as well.
    """
    postgresql = health.of("postgresql")
    return postgresql is not None and postgresql.finding == NO_ANSWER


def _show_health(health: Health, found: Status | None) -> None:
    for each in (health.verdict, *_wrong_lines(health), ""):
        typer.echo(each)
    for table in _tables(health, found.jobs if found else ()):
        print_table(table)


def _wrong_lines(health: Health) -> Iterator[str]:
    """Yield the lines to print about each component that is not good."""
    for each in health.wrong:
        since = f" since {each.since:%m-%d %H:%M:%SZ}" if each.since else ""
        yield f"  {each.state}: {each.title}: {each.finding}{since}"
        for label, line_ in (("for agents", each.meaning), ("first", each.first_step)):
            if line_:
                yield f"      {label}: {line_}"
        yield f"      more: `{COMMAND} {each.runbook}`"


def _tables(health: Health, runs: Sequence[LastJobRun] = ()) -> Iterator[Table]:
    """Yield the tables of processes, Celery queues and jobs.

    `runs` are the last runs of the jobs.
    """
    yield table_of(
        "Processes",
        ["role", "host", "pid", "version", "since", "last sign of life", "memory", "does"],
        [
            (
                each.role if each.lane is None else f"{each.role} of {each.lane}",
                each.host,
                each.pid,
                each.version,
                f"{each.since:%m-%d %H:%M:%SZ}",
                f"{each.silent_seconds:.0f} s ago"
                + ("" if each.state is HealthState.GOOD else ", SILENT"),
                None if each.memory_bytes is None else f"{each.memory_bytes / 2**20:.0f} MiB",
                each.task or ("leads" if each.leads else None),
            )
            for each in health.processes
        ],
    )
    yield table_of(
        "Celery queues",
        ["queue", "messages", "next task", "waits for"],
        [
            (
                each.name,
                "unknown" if each.depth is None else each.depth,
                each.head_task,
                None if each.head_age_seconds is None else f"{each.head_age_seconds:.1f} s",
            )
            for each in health.celery_queues
        ],
    )
    yield _jobs(health.jobs, {(each.job, each.queue): each for each in runs})


def _jobs(jobs: Sequence[JobHealth], runs: Mapping[tuple[str, str | None], LastJobRun]) -> Table:
    """Return a table of jobs with their last runs: first those in `jobs`, then others in `runs`."""
    columns = ["job", "queue", "state", "asked for", "last run", "last success", "next", "did"]
    judged = [
        (
            each.job,
            each.queue,
            each.state,
            *map(_at, (each.asked_at, each.started_at, each.succeeded_at, each.due_at)),
            _did(runs.get((each.job, each.queue))),
        )
        for each in jobs
    ]
    names = {(each.job, each.queue) for each in jobs}
    others = [
        (each.job, each.queue, each.status, None, _at(each.started_at), None, None, _did(each))
        for name, each in runs.items()
        if name not in names
    ]
    return table_of("Jobs", columns, [*judged, *others])


def _at(time_: datetime | None) -> str | None:
    return f"{time_:%m-%d %H:%M:%SZ}" if time_ else None


def _did(run: LastJobRun | None) -> str | None:
    """Return the trigger of a job's run, its result or error, and its duration, as text."""
    if run is None:
        return None
    counts = ", ".join(f"{name} {count}" for name, count in run.counts.items())
    took = "" if run.seconds is None else f" in {run.seconds:.2f} s"
    return f"{run.trigger}: {run.error or counts or run.status}{took}"


def _show(found: Status) -> None:
    as_table(
        f"Dialer queues at {found.at:%Y-%m-%d %H:%M:%SZ}",
        ["queue", "claimable", "waiting", "held", "generation", "users", "published", "state"],
        [
            (
                each.queue,
                "unknown" if each.claimable is None else each.claimable,
                "unknown" if each.waiting is None else each.waiting,
                each.held,
                each.generation or "none",
                each.size,
                f"{each.published_at:%H:%M:%SZ}" if each.published_at else None,
                f"paused by {each.paused_by}" if each.paused else "open",
            )
            for each in found.queues
        ],
    )
    due = found.due
    since = f", the oldest since {due.oldest_overdue:%m-%d %H:%M:%SZ}" if due.oldest_overdue else ""
    typer.echo(
        f"Callbacks pending: {due.callbacks_pending}, overdue {due.callbacks_overdue}{since}; "
        f"missed calls pending: {due.missed_calls_pending}, "
        f"for an operator {due.missed_calls_for_operator}"
    )
    as_table(
        "Active assignments (the first to lapse first)",
        ["agent", "user", "queue", "since", "lease left", "assignment"],
        [
            (
                each.agent_id,
                each.user_id,
                each.queue,
                f"{each.claimed_at:%H:%M:%SZ}",
                f"{(each.lease_expires_at - found.at).total_seconds():.0f} s",
                each.id,
            )
            for each in found.holds[:50]
        ],
    )
    agents = [f"{name} {count}" for name, count in found.agents.model_dump().items()]
    typer.echo(f"Active agents: {', '.join(agents).replace('_', ' ')}")
    for lane in found.lanes:
        _echo_sequencer(lane, alone=len(found.lanes) == 1)
    answers = ", ".join(f"{name} {count}" for name, count in found.answers_last_hour.items())
    typer.echo(f"Answers in the last hour: {answers or 'none'}")
    typer.echo(f"Dead letters to see to: {found.dead_letters}; unpublished: {found.unpublished}")
    typer.echo(f"Commits: {found.durability.meaning}")
    for each in found.standbys:
        if each.asynchronous:
            complain(
                f"The standby {each.name or 'without a name'} is asynchronous: promoted, it may"
                " lack the last commits, and what agents were told in them."
                f" `{COMMAND} {LOSES}` says more."
            )
    typer.echo(f"CRM: {_crm(found.crm)}")
    typer.echo(f"Calling hours: {found.calling_hours}")
    typer.echo(f"Other calling rules: {found.calling_rules}")
    version = found.settings_version
    typer.echo(
        "Settings: no version is stored yet, those of this environment are shown"
        if version is None
        else f"Settings: version {version}; `assignment-workers settings list` prints all"
    )


def _echo_sequencer(sequencer: SequencerStatus, *, alone: bool) -> None:
    led = "no leader"
    if leader := sequencer.leader:
        led = f"led by {leader.host} pid {leader.pid} since {leader.since:%H:%M:%SZ}"
    elif silent := sequencer.silent_leader:
        led = (
            f"no leader: {silent.host} pid {silent.pid} has the lock, and has given no sign of life"
            f" for {sequencer.silent_seconds or 0:.0f} s"
        )
    probe = (
        ""
        if sequencer.probe_seconds is None
        else f", a probe takes {sequencer.probe_seconds * 1000:.0f} ms"
    )
    of = "" if alone else f" of lane {sequencer.lane}"
    of += "" if alone else f" ({', '.join(sequencer.queues) or 'no dialer queue'})"
    typer.echo(f"Sequencer{of}: term {sequencer.term}, {led}, standbys {sequencer.standbys}{probe}")


def _crm(found: CrmStatus) -> str:
    said = found.trouble or "answers"
    if not found.elsewhere:
        return f"{said}, in the database itself"
    age = found.mirror_age_seconds
    return f"{said}, elsewhere; mirrored {'never' if age is None else f'{age:.0f} s ago'}"


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended safely.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be mended.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Replay all recorded events too.")
    ] = False,
    why: OptionalWhy = None,
    json: AsJson = False,
) -> int:
    """Check every guarantee that the database can show.

    The components without which agents are not served are checked, too. The exit code is 1 when a
    guarantee is broken or such a component is down. --history needs the settings with which the
    events were recorded: the lease, the pauses after a skip, and the retention.
    """
    health = read_once(known())
    if _is_silent(health):
        raise DatabaseUnavailable(f"the database cannot be reached: PostgreSQL {NO_ANSWER}")
    past = [*_serving(health), *(_replayed() if history else [])]
    checked, commits = _examine()
    findings = checked + past
    broken = [each for each in findings if not each.ok]
    mendable = [each for each in broken if each.repairable]
    if repair and mendable and not dry_run:
        with recorded("repair", "all", why) as told, client() as asking:
            answer = told(asking.repair())
        if not isinstance(answer, Done):
            complain(line(answer))
            return 1
        findings = _examine()[0] + past
        broken = [each for each in findings if not each.ok]
    if json:
        as_json(findings)
    else:
        as_table(
            "Guarantees",
            ["guarantee", "check", "found"],
            [
                (
                    each.guarantee,
                    each.check,
                    "good" if each.ok else f"BROKEN: {', '.join(each.examples)}",
                )
                for each in findings
            ],
        )
        typer.echo(f"Commits: {commits.meaning}")
        if repair and dry_run:
            typer.echo(
                "would be mended: "
                + (", ".join(f"{each.check} ({each.count})" for each in mendable) or "nothing")
            )
    return 1 if broken else 0


PLURAL = {"gateways", "answers"}
"""The names of components whose title is a plural, as in `Gateways serve agents`."""


def _serving(health: Health) -> list[CheckResult]:
    """Return a check result for each component without which agents are not served."""
    return [
        CheckResult(
            check=f"{each.title} {'serve' if each.name in PLURAL else 'serves'} agents",
            guarantee=None,
            ok=each.state is not HealthState.DOWN,
            count=int(each.state is HealthState.DOWN),
            examples=[each.finding] if each.state is HealthState.DOWN else [],
            repairable=False,
        )
        for each in health.components
        if each.serving
    ]


def _examine() -> tuple[list[CheckResult], Durability]:
    with database() as connection:
        return user_ids.shown(loaded(), connection, examine(connection, loaded())), durability(
            connection
        )


def _replayed() -> list[CheckResult]:
    """Replay all recorded events, and check that they break no guarantee (`assignment.history`).

    Returns one failed check for each guarantee that the events break, or else one passed check.
    """
    with database(patience=HISTORY_AT_MOST) as connection:
        given = settings()
        found = check(connection, dialer=loaded(), settings=given, bound=HELD_AFTER_LEASE_AT_MOST)
        breaches = user_ids.shown(loaded(), connection, found)
    broken: dict[int | None, list[str]] = {} if breaches else {None: []}
    for each in breaches:
        at = f"event {each.event}: " if each.event else ""
        broken.setdefault(each.guarantee, []).append(at + each.what)
    return [
        CheckResult(
            check="the recorded history breaks nothing",
            guarantee=guarantee,
            ok=not said,
            count=len(said),
            examples=said[:5],
            repairable=False,
        )
        for guarantee, said in broken.items()
    ]
