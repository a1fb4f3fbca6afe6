"""A long run with faults, and whether anything in it drifts: memory, tables, dead rows, latency.

Of each figure the middle third of the run is held against the last: the first is warming up. A
figure has drifted when its median is more than `times` as high at the end, and by more than
`beyond`, which says what is too little to mean anything.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import psutil
import redis
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.assignment.purge import prune_history
from assignment_workers.call_centre import day
from assignment_workers.call_centre.book import Book, Sample
from assignment_workers.call_centre.plan import Plan
from assignment_workers.call_centre.verdict import Verdict
from assignment_workers.runtime.stack import Stack
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings

SAMPLES = 120
"""Of a run, and no two nearer than `NEAREST`."""
NEAREST = 5.0
PRUNINGS = 10
CALM_AFTER = 20.0
"""Seconds after a fault whose waits are the fault's, not the system's."""
DEAD_ROWS = 2.0
"""How many times autovacuum's own threshold, throughout the last third, is too many."""
GRACE = timedelta(minutes=2)
"""How long after its time a row may still stand when the run is over."""

TABLES = """
SELECT coalesce(parent.relname, c.relname) AS name, sum(pg_total_relation_size(c.oid)) AS bytes,
  sum(s.n_dead_tup) AS dead,
  sum(current_setting('autovacuum_vacuum_threshold')::float
    + current_setting('autovacuum_vacuum_scale_factor')::float * greatest(s.n_live_tup, 0))
    AS tolerated
FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
WHERE s.schemaname = 'assignment'
  OR s.schemaname = 'public' AND s.relname IN ('user_call_scores', 'callbacks', 'conversions')
GROUP BY 1
"""
ROWS = {
    "assignments": "SELECT count(*) FROM assignment.assignments",
    "events": "SELECT count(*) FROM assignment.events",
    "requests": "SELECT count(*) FROM assignment.requests",
    "job_runs": "SELECT count(*) FROM assignment.job_runs",
    "generations": "SELECT count(*) FROM assignment.generations",
    "callbacks": "SELECT count(*) FROM public.callbacks",
    "conversions": "SELECT count(*) FROM public.conversions",
}
"""Of the tables that grow with the work done: what is judged is how many bytes a row takes."""
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
OUTLIVED = {
    "events": "SELECT count(*) FROM assignment.events WHERE at < now() - :history",
    "job_runs": "SELECT count(*) FROM assignment.job_runs"
    " WHERE started_at < now() - :history AND status <> 'running'",
    "entries": "SELECT count(*) FROM assignment.generations"
    " WHERE purged_at IS NULL AND retired_at < now() - :generations",
}
"""What has outlived its retention."""


class Limit(NamedTuple):
    """How much higher a figure may be in the last third than in the middle one."""

    unit: str
    times: float
    beyond: float


LIMITS = {
    "memory": Limit("MB", 1.15, 8),
    "open files": Limit("", 1.2, 8),
    "connections": Limit("", 1.2, 5),
    "size": Limit("MB", 1.3, 4),
    "row": Limit("bytes a row", 1.25, 60),
    "keys": Limit("", 1.3, 200),
    "time to assign": Limit("ms", 1.5, 10),
}


class Series(BaseModel):
    """One figure over the run, and whether it drifted. `points`: seconds of the run, and value."""

    kind: str
    name: str
    unit: str
    middle: float | None
    last: float | None
    drifted: bool
    points: list[tuple[float, float]]


class Soaked(BaseModel):
    """`drifted` names what did, in words; the verdict is that of a demo with faults."""

    verdict: Verdict
    drifted: list[str]
    series: list[Series]
    samples: int
    not_taken: int
    """Samples that a fault kept from being taken."""

    @property
    def is_good(self) -> bool:
        """Nothing drifted, and no guarantee broke."""
        return not self.drifted and not self.verdict.broken


def run(
    stack: Stack, plan: Plan, settings: Settings, show: Callable[[Book, Sample], None]
) -> tuple[Book, Soaked]:
    """Simulate, measure meanwhile, and judge both. See `day.run`."""
    engine = connect(
        stack.database_url,
        name="assignment-workers soak",
        statement_timeout=timedelta(minutes=2),
        pool_size=2,
    )
    try:
        meter = Meter(stack, engine, plan, settings)
        book, verdict = day.run(stack, plan, settings, show, beside=meter.watch)
        meter.latency(book)
        late = meter.outlived()
        series = [meter.judged(*key) for key in sorted(meter.points)]
        told = [
            f"{each.kind} of {each.name}: {each.middle:g} {each.unit} in the middle third of the"
            f" run, {each.last:g} in the last"
            for each in series
            if each.drifted
        ]
        return book, Soaked(
            verdict=verdict,
            drifted=[*told, *meter.never_vacuumed(), *late],
            series=series,
            samples=meter.taken,
            not_taken=meter.missed,
        )
    finally:
        engine.dispose()


@dataclass
class Meter:
    """What is measured of a stack while it works."""

    stack: Stack
    engine: Engine
    plan: Plan
    settings: Settings
    points: dict[tuple[str, str], list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    taken: int = 0
    missed: int = 0
    _dead: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """By table: seconds of the run, and how many times autovacuum's threshold there are dead."""

    async def watch(self, book: Book, over: asyncio.Event) -> None:
        """A sample now and then until it is over; what has outlived its retention is deleted."""
        every = max(self.plan.seconds / SAMPLES, NEAREST)
        pruned = 0.0
        while not over.is_set():
            try:
                await asyncio.to_thread(self.sample, book.now)
                if book.now - pruned > self.plan.seconds / PRUNINGS:
                    await asyncio.to_thread(self.prune)
                    pruned = book.now
            except (SQLAlchemyError, redis.RedisError, OSError, psutil.Error):
                self.missed += 1  # a fault is under way
            try:
                await asyncio.wait_for(over.wait(), every)
            except TimeoutError:
                continue

    def sample(self, at: float) -> None:
        """Everything, once. Whatever cannot be read now leaves the whole sample out."""
        found = [*self._of_processes(), *self._of_valkey()]
        dead: dict[str, float] = {}
        with self.engine.connect() as connection:
            found += self._of_tables(connection, dead)
            found.append((("connections", "PostgreSQL"), _count(connection, CONNECTIONS)))
        for figure, value in found:
            self.points[figure].append((at, value))
        for table, times in dead.items():
            self._dead[table].append((at, times))
        self.taken += 1

    def prune(self) -> None:
        """What the daily job does, which comes once a day."""
        with self.engine.begin() as connection:
            prune_history(connection, settings=self.settings)

    def latency(self, book: Book) -> None:
        """The medians of the waits that no fault touched."""
        faults = [fault.at for fault in book.faults]
        width = max(self.plan.seconds / SAMPLES, NEAREST) * 2
        waits: dict[int, list[float]] = defaultdict(list)
        for wait in book.waits:
            sent = wait.at - wait.seconds
            if not any(fault <= wait.at and sent <= fault + CALM_AFTER for fault in faults):
                waits[int(wait.at / width)].append(wait.seconds * 1000)
        for number, each in sorted(waits.items()):
            at = (number + 0.5) * width
            self.points["time to assign", "median"].append((at, statistics.median(each)))

    def judged(self, kind: str, name: str) -> Series:
        """One figure, its middle third against its last."""
        points = self.points[kind, name]
        limit = LIMITS[kind]
        middle = _median(points, self.plan.seconds / 3, self.plan.seconds * 2 / 3)
        last = _median(points, self.plan.seconds * 2 / 3, self.plan.seconds)
        drifted = (
            middle is not None
            and last is not None
            and last > middle * limit.times
            and last - middle > limit.beyond
        )
        return Series(
            kind=kind,
            name=name,
            unit=limit.unit,
            middle=middle,
            last=last,
            drifted=drifted,
            points=[(round(at, 1), round(value, 3)) for at, value in points],
        )

    def never_vacuumed(self) -> list[str]:
        """The tables whose dead rows stood above autovacuum's threshold all the last third."""
        begins = self.plan.seconds * 2 / 3
        found = []
        for name, points in sorted(self._dead.items()):
            late = [times for at, times in points if at >= begins]
            if late and min(late) > DEAD_ROWS:
                found.append(
                    f"dead rows of {name}: never less than {min(late):.1f} times autovacuum's"
                    " threshold in the last third of the run"
                )
        return found

    def outlived(self) -> list[str]:
        """What should have been deleted by now, after a last round of what deletes it."""
        self.prune()
        given = {
            "history": self.settings.history_retention + GRACE,
            "generations": self.settings.generation_retention + GRACE,
        }
        with self.engine.connect() as connection:
            counts = {name: _count(connection, query, given) for name, query in OUTLIVED.items()}
        return [
            f"retention of {name}: {count:g} stand longer than theirs"
            for name, count in counts.items()
            if count
        ]

    def _of_processes(self) -> Iterable[tuple[tuple[str, str], float]]:
        memory: Counter[str] = Counter()
        files: Counter[str] = Counter()
        main = psutil.Process(self.stack.pid)
        for process in (main, *main.children(recursive=True)):
            try:
                name = _name(process.cmdline(), is_main=process.pid == main.pid)
                if name is not None:
                    memory[name] += process.memory_full_info().uss
                    files[name] += process.num_fds()
            except psutil.NoSuchProcess:
                continue  # it has just ended
        for name in memory:
            yield ("memory", name), memory[name] / 1e6
            yield ("open files", name), float(files[name])

    def _of_valkey(self) -> Iterable[tuple[tuple[str, str], float]]:
        with redis.Redis.from_url(self.stack.redis_url, socket_timeout=2) as valkey:
            yield ("size", "Valkey's data"), valkey.info("memory")["used_memory"] / 1e6
            yield ("keys", "Valkey"), float(valkey.dbsize())

    def _of_tables(
        self, connection: Connection, dead: dict[str, float]
    ) -> Iterable[tuple[tuple[str, str], float]]:
        for row in connection.execute(text(TABLES)):
            dead[row.name] = float(row.dead) / float(row.tolerated)
            if row.name not in ROWS:
                yield ("size", row.name), float(row.bytes) / 1e6
            elif rows := _count(connection, ROWS[row.name]):
                # Of a handful of rows a page more or less would be all that is seen.
                yield ("row", row.name), float(row.bytes) / max(rows, 2000.0)


def _name(command: Sequence[str], *, is_main: bool) -> str | None:
    """What a process of the stack is; None for what comes and goes, like a build's backend."""
    if is_main:
        return "up"
    match list(command):
        case [*_, "process", "sequencer", "--lane", lane]:
            return f"sequencers of {lane}"
        case [*_, "process", "sequencer"]:
            return "sequencers"
        case [*_, "process", str(name)]:
            return name
        case [first, *_] if "valkey" in first:
            return "Valkey"
        case _:
            return None


def _median(points: Sequence[tuple[float, float]], begins: float, ends: float) -> float | None:
    values = [value for at, value in points if begins <= at < ends]
    return round(statistics.median(values), 3) if values else None


def _count(connection: Connection, query: str, given: Mapping[str, object] | None = None) -> float:
    return float(connection.execute(text(query), given or {}).scalar_one())
