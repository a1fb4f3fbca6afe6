"""A long run with faults, and the search for drift: memory, tables, dead rows, latency.

`trend` judges whether a figure that is sampled during the run keeps growing after its warm-up. The
size of each table is compared once, at the end of the run, with the size of a new copy of its rows.
Figures for which the run was too short are reported separately.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import psutil
import redis
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.assignment import audit
from assignment_workers.assignment.generations.purge import prune_history
from assignment_workers.client.wire.redis_clients import redis_client
from assignment_workers.devstack.temporary import Broker
from assignment_workers.lab.call_centre import day, processes, tables
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.processes import Life
from assignment_workers.lab.call_centre.recorder import Recorder, Sample
from assignment_workers.lab.call_centre.tables import Weight
from assignment_workers.lab.call_centre.trend import Limit, TrendFinding, judge
from assignment_workers.lab.call_centre.verdict import Verdict
from assignment_workers.runtime.stack import Stack
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings

SAMPLES = 2000
"""The greatest number of measurements in one run.

A run shorter than 10,000 seconds has fewer measurements, because two measurements are at least five
seconds apart (`NEAREST`).
"""
NEAREST = 5.0
PRUNINGS = 10
CALM_AFTER = 20.0
"""The seconds after each fault for which response times are left out of the measurement.

Answers in this time may still be late because of the fault.
"""
GRACE = timedelta(minutes=2)
"""The tolerance for rows that are older than their retention at the end of the run.

A row is reported only if its age exceeds its retention by more than this.
"""

WITH_THE_WORK = {
    "audit_batches",
    "agents_seen",
    "assignments",
    "callbacks",
    "commands",
    "conversions",
    "events",
    "findings",
    "generations",
    "job_runs",
    "requests",
}
"""Tables that grow with the work done, so that their growth is no sign of a leak.

Their size is not sampled. They are checked for empty space (bloat) at the end of the run, and for
dead rows.
"""
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
PURGED = "SELECT count(*) FROM assignment.generations WHERE purged_at > now() - :run"
OUTLIVED = {
    "events": "SELECT count(*) FROM assignment.events WHERE at < now() - :history",
    "job_runs": "SELECT count(*) FROM assignment.job_runs"
    " WHERE started_at < now() - :history AND status <> 'running'",
    "entries": "SELECT count(*) FROM assignment.generations"
    " WHERE purged_at IS NULL AND retired_at < now() - :generations",
}
"""Maps a table to a query that counts rows older than their retention.

For `entries`, the query counts the generations whose rows should have been dropped.
"""

LIMITS = {
    "memory": Limit("MB", 0.1, 8),
    "open files": Limit("", 0.1, 8),
    "connections": Limit("", 0.1, 5),
    "size": Limit("MB", 0.3, 4),
    "keys": Limit("", 0.3, 200),
    "time to assign": Limit("ms", 0.5, 10),
}


class Series(BaseModel):
    """All samples of one figure, such as the memory of a process, and whether it keeps growing.

    `lives`: lists of samples. A sample is a pair: the time in seconds since the run began, and the
    value. A figure of a process has one list for each time that the process was started. Any other
    figure has a single list.

    `watched`: the time in seconds that the longest list covers, without the warm-up at the list's
    beginning. `grown`: the growth of the figure within `watched` seconds, in the unit `unit`. It is
    computed from the samples of all lists that are long enough. `level`, `grown` and `watched` are
    None if no list is long enough.
    """

    kind: str
    name: str
    unit: str
    finding: TrendFinding
    level: float | None
    grown: float | None
    watched: float | None
    lives: list[list[tuple[float, float]]]


class Soaked(BaseModel):
    """The result of a soak, a long run to find figures that keep growing (drift).

    `verdict`: the verdict of the run itself. `drifted`: a line for each figure or table with drift.
    `unjudged`: a line for each figure that could not be judged, because the run was too short.
    """

    verdict: Verdict
    drifted: list[str]
    unjudged: list[str]
    series: list[Series]
    tables: list[Weight]
    purged: int
    """The number of replaced generations whose rows were dropped during the run."""
    samples: int
    not_taken: int
    """The number of times that the stack could not be measured, because a server was down.

    The run itself stops servers on purpose, as deliberate faults.
    """

    @property
    def exit_code(self) -> int:
        """The exit code of the soak.

        1: a figure keeps growing (drift), or a guarantee was broken. 2: the run was too short to
        judge all figures. 0: neither.
        """
        if self.drifted or self.verdict.broken:
            return 1
        return 2 if self.unjudged else 0


def run(
    stack: Stack,
    plan: Plan,
    settings: Settings,
    show: Callable[[Recorder, Sample], None],
    *,
    broker: Broker | None = None,
) -> tuple[Recorder, Soaked]:
    """Simulate a call centre by the plan and judge if any figure of the stack keeps growing.

    During the run the stack is measured at intervals, for example the memory of its processes.
    Returns the agents' records and the result. `settings` are those of the stack. `show` is called
    each second with the records and the newest figures. `broker` is the stack's RabbitMQ, if faults
    may kill it.
    """
    engine = connect(
        stack.database_url,
        name="assignment-workers soak",
        statement_timeout=timedelta(minutes=10),
        pool_size=2,
    )
    try:
        meter = Meter(stack, engine, plan, settings)
        recorder, verdict = day.run(stack, plan, settings, show, broker=broker, beside=meter.watch)
        meter.latency(recorder)
        return recorder, meter.soaked(verdict)
    finally:
        engine.dispose()


Figure = tuple[str, str]
"""A figure that is sampled during the run: its kind, such as memory, and the name of the process
or table that is measured.
"""
LASTING: Life = (0, 0.0)
"""The key for the samples of a figure that belongs to no process, such as the size of a table.

The samples of other figures have the process's id and start time as their key.
"""


@dataclass
class Meter:
    """Measures a stack at intervals while a run goes on, and judges the samples at its end."""

    stack: Stack
    engine: Engine
    plan: Plan
    settings: Settings
    points: dict[Figure, dict[Life, list[tuple[float, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    dead: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Samples of the number of dead rows of each table, as a multiple of autovacuum's threshold."""
    taken: int = 0
    missed: int = 0

    async def watch(self, recorder: Recorder, over: asyncio.Event) -> None:
        """Take samples until the run is over; meanwhile delete rows older than their retention.

        Rows are deleted at intervals, about ten times in the run (`PRUNINGS`). A deletion that
        fails, because a server is down, is tried again after the next sample.
        """
        every = max(self.plan.seconds / SAMPLES, NEAREST)
        pruned = 0.0
        of_faults = SQLAlchemyError, redis.RedisError, OSError, psutil.Error
        while not over.is_set():
            try:
                await asyncio.to_thread(self.sample, recorder.now)
            except of_faults:
                self.missed += 1
            else:
                if recorder.now - pruned > self.plan.seconds / PRUNINGS:
                    with suppress(*of_faults):
                        await asyncio.to_thread(self.prune)
                        pruned = recorder.now
            try:
                await asyncio.wait_for(over.wait(), every)
            except TimeoutError:
                continue

    def sample(self, at: float) -> None:
        """Measure all processes, Valkey and all tables once.

        `at`: the present time, in seconds since the run began. If one value cannot be read, none is
        stored.
        """
        found = [*self._of_processes(), *self._of_valkey()]
        with self.engine.connect() as connection:
            sizes, dead = tables.measured(connection)
            connections = _count(connection, CONNECTIONS)
        found += [
            (("size", name), LASTING, size)
            for name, size in sizes.items()
            if name not in WITH_THE_WORK
        ]
        found.append((("connections", "PostgreSQL"), LASTING, connections))
        for figure, life, value in found:
            self.points[figure][life].append((at, value))
        for table, times in dead.items():
            self.dead[table].append((at, times))
        self.taken += 1

    def prune(self) -> None:
        """Delete rows older than their retention, such as old events and job runs.

        First, new events are added to the audit's hash chain, because an event outside the chain is
        never deleted. In production the job `queue.clean_daily` does the same once a day. A soak
        may end before that job runs, so it calls this method at intervals.
        """
        with self.engine.connect() as connection:
            audit.extend(connection)
        with self.engine.begin() as connection:
            prune_history(connection, settings=self.settings)

    def latency(self, recorder: Recorder) -> None:
        """Add the agents' response times in the run to the samples, as one median per interval.

        The run is divided into intervals, each as long as the time between two measurements of the
        stack. A response time counts for the interval in which the answer arrived. An interval
        without response times has no sample. Requests that were under way during a fault, or soon
        after it, are left out.
        """
        faults = [(fault.at, fault.served_from + CALM_AFTER) for fault in recorder.faults]
        width = max(self.plan.seconds / SAMPLES, NEAREST)
        waits: dict[int, list[float]] = defaultdict(list)
        for wait in recorder.waits:
            sent = wait.at - wait.seconds
            if not any(began <= wait.at and sent <= calm for began, calm in faults):
                waits[int(wait.at / width)].append(wait.seconds * 1000)
        for number, each in sorted(waits.items()):
            at = (number + 0.5) * width
            self.points["time to assign", "median"][LASTING].append((at, statistics.median(each)))

    def soaked(self, verdict: Verdict) -> Soaked:
        """Judge all sampled figures and all tables; return the result of the soak.

        First, rows older than their retention are deleted once more.
        """
        late = self.outlived()
        with self.engine.begin() as connection:
            weights = tables.weighed(connection)
            run = {"run": timedelta(seconds=self.plan.seconds)}
            purged = int(_count(connection, PURGED, run))
        series = [self.judged(figure) for figure in sorted(self.points)]
        grew = [
            f"{each.kind} of {each.name}: {each.level:,.4g} {each.unit}, {each.grown:,.4g} more"
            f" within {each.watched:,.0f} s"
            for each in series
            if each.finding == TrendFinding.GROWS
        ]
        unjudged = [
            f"{each.kind} of {each.name}: {each.finding}"
            for each in series
            if each.finding == TrendFinding.UNKNOWN
        ]
        if not purged:
            unjudged.append("size of entries: no generation was purged")
        return Soaked(
            verdict=verdict,
            drifted=[*grew, *tables.bloated(weights), *tables.never_vacuumed(self.dead), *late],
            unjudged=unjudged,
            series=series,
            tables=weights,
            purged=purged,
            samples=self.taken,
            not_taken=self.missed,
        )

    def judged(self, figure: Figure) -> Series:
        """Return the samples of one figure, with the finding whether the figure keeps growing.

        A process that is killed and started again has one list of samples for each start. Growth is
        judged within each list, because a new process begins small again.
        """
        kind, name = figure
        lives = self.points[figure].values()
        limit = LIMITS[kind]
        trend = judge(lives, limit)
        return Series(
            kind=kind,
            name=name,
            unit=limit.unit,
            finding=trend.finding,
            level=trend.level,
            grown=trend.grown,
            watched=trend.seconds,
            lives=[[(round(at, 1), round(value, 3)) for at, value in life] for life in lives],
        )

    def outlived(self) -> list[str]:
        """Delete rows older than their retention; return a line for each table that still has some.

        Such rows remain only if a deletion has missed them. This method deletes events and job
        runs; entries of old generations should have been deleted by a job during the run. Rows that
        outlived their retention by less than `GRACE` are not counted.
        """
        self.prune()
        parameters = {
            "history": self.settings.history_retention + GRACE,
            "generations": self.settings.generation_retention + GRACE,
        }
        with self.engine.connect() as connection:
            counts = {
                name: _count(connection, query, parameters) for name, query in OUTLIVED.items()
            }
        return [
            f"retention of {name}: {count:g} stand longer than theirs"
            for name, count in counts.items()
            if count
        ]

    def _of_processes(self) -> Iterable[tuple[Figure, Life, float]]:
        for each in processes.measured(self.stack.pid):
            yield ("memory", each.name), each.life, each.memory_mb
            yield ("open files", each.name), each.life, float(each.files)

    def _of_valkey(self) -> Iterable[tuple[Figure, Life, float]]:
        with redis_client(self.stack.redis_url, socket_timeout=2) as valkey:
            yield ("size", "Valkey's data"), LASTING, valkey.info("memory")["used_memory"] / 1e6
            database = valkey.connection_pool.connection_kwargs["db"]
            said = valkey.info("keyspace").get(f"db{database}", {"keys": 0, "expires": 0})
            yield ("keys", "Valkey, without an end"), LASTING, float(said["keys"] - said["expires"])


def _count(connection: Connection, query: str, given: Mapping[str, object] | None = None) -> float:
    return float(connection.execute(text(query), given or {}).scalar_one())
