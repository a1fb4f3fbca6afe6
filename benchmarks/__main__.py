"""Every benchmark, side by side in one run: a page with tables and plots under docs/benchmarks.

    python -m benchmarks [--only NAME ...] [--pool N] [--out FOLDER]

Needs the dependency group `benchmark` (make benchmark installs it). Medians of rounds that go
through all the ways by turns, so that a slow moment of the machine hits them all; compare the
ratios, not the figures of two runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table as RichTable

from assignment_workers.settings import Settings
from benchmarks import growth, requests
from benchmarks import observing as observed
from benchmarks.dialer import UNSIGNED_USERS
from benchmarks.floors import floors
from benchmarks.peers import WORKER, WORKER_OPTIONS, Bare, peers, plain_celery
from benchmarks.rebuilds import meanwhile, rebuilds
from benchmarks.record import Table, environment, quantiles, write
from benchmarks.stage import Servers, build_and_publish, ending, engine, seed, servers
from benchmarks.stage import line as line_of
from benchmarks.ways import AGENTS, Figures, measure_tasks, merge

GROWTH = (10_000, 100_000, 1_000_000, 10_000_000)


def main() -> None:
    """Measure what is asked for, print it and write it down."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    options.add_argument("--pool", type=int, default=1_100_000, help="users in the large pool")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    given = options.parse_args()
    missing = [name for name in ("matplotlib", "pgqueuer", "procrastinate") if not find_spec(name)]
    if missing:
        options.error(f"{', '.join(missing)} not installed: `make benchmark` does it")
    settings = Settings.from_environment({})
    tables: list[Table] = []
    with servers() as at:
        machine = environment(at)
    for name in given.only:
        with servers() as at:
            for table in MEASURES[name](at, settings, given):
                _show(table)
                tables.append(table)
    page = write(given.out, machine, tables, "benchmarks")
    Console().print(f"written: {page}")


def _peers(at: Servers, settings: Settings, given: argparse.Namespace) -> list[Table]:
    """Ways to hand out, each beside its floor."""
    rounds, turns = given.rounds, 3
    users = AGENTS * (rounds + 1) * turns * 2 + 5000
    port = _free_port()
    with engine(at.database_url) as on, tempfile.TemporaryDirectory() as logs:
        low = floors(at.database_url, 300)
        requests.prepare(on, users * 5, settings)
        with requests.processes(at, port, Path(logs)):
            url = f"http://127.0.0.1:{port}"
            requests.lone(at, url, 30)
            alone = [requests.lone(at, url, 150) for _ in range(3)]
            ours = asyncio.run(requests.together(at, port, settings, rounds, turns))
    others: dict[str, Figures] = {}
    with _fresh(at) as url:
        for each in asyncio.run(peers(url, settings, users=users, rounds=rounds, turns=turns)):
            merge(others, each)
    with _fresh(at) as url:
        Bare.prepare(url, users)
        with _worker(at, url):
            tasks = plain_celery(at.redis_url)
            measure_tasks(tasks, 1)
            for _ in range(turns):
                merge(others, measure_tasks(tasks, rounds))
    figures = [*ours, *others.values()]
    base = statistics.median(others["bare FOR UPDATE SKIP LOCKED"].claims)
    together = Table(
        "peers",
        f"{AGENTS} agents ask at once",
        "Claims a second, the time of each, and claims a second where each is finished too. The"
        " first six judge each user by fresh facts and keep the answer and an event of each claim"
        " (the first two are our statements without the sequencer); the others only hand out."
        " The floor is `bare FOR UPDATE SKIP LOCKED`.",
        ["", "claims/s", "median ms", "p99 ms", "times the floor", "with finish, /s"],
        [
            [
                each.name,
                round(statistics.median(each.claims)),
                *quantiles(each.waits),
                round(statistics.median(each.claims) / base, 2),
                round(statistics.median(each.both)),
            ]
            for each in figures
        ],
        {"kind": "bars", "y": 1},
    )
    merged = [
        (same[0][0], [second for _, seconds in same for second in seconds])
        for same in zip(*alone, strict=True)
    ]
    lone = Table(
        "alone",
        "A caller who is alone",
        "The floors are in the first rows.",
        ["", "median ms", "p99 ms", "times a no-op task in a solo pool"],
        [
            *([name, *quantiles(seconds), None] for name, seconds in low.items()),
            *(
                [
                    name,
                    *quantiles(seconds),
                    round(statistics.median(seconds) / statistics.median(merged[0][1]), 2),
                ]
                for name, seconds in merged
            ),
        ],
    )
    return [together, lone]


def _rebuilds(at: Servers, settings: Settings, given: argparse.Namespace) -> list[Table]:
    with engine(at.database_url) as on:
        seed(on, users=given.pool)
        sizes = [size for size in GROWTH if size < given.pool]
        found = rebuilds(on, sizes, settings, given.rounds)
        rows = []
        for each in found:
            build = statistics.median(each.builds)
            delete = statistics.median(each.deletes)
            bare = statistics.median(each.bares) if each.bares else None
            rows.append(
                [
                    each.users,
                    build,
                    bare,
                    build / bare if bare else None,
                    delete,
                    build / delete,
                    statistics.median(each.publishes) * 1000,
                ]
            )
        table = Table(
            "rebuild",
            f"A rebuild, from a pool of {given.pool:,}",
            "Seconds. `bare`: one `INSERT ... SELECT ... ORDER BY` of the pool into an empty table"
            " with the same indexes; it judges nobody. `delete and insert`: what the original did,"
            " as one set-based transaction; it judges nobody either, and empties the queue for"
            " whoever asks meanwhile. Publishing is all that the assignment queue sees of ours.",
            [
                "users",
                "build s",
                "bare s",
                "times bare",
                "delete and insert s",
                "times that",
                "publish ms",
            ],
            rows,
        )
        build_and_publish(on, UNSIGNED_USERS, settings)
        line_of(on)
    during = meanwhile(at, calls=200, turns=given.rounds)
    idle, busy = quantiles(during.idle), quantiles(during.rebuilding)
    return [
        table,
        Table(
            "meanwhile",
            f"Time to assign while {given.pool:,} users are rebuilt",
            "One caller over Celery, on real processes; the same caller idle and during rebuilds,"
            " by turns.",
            ["", "requests", "median ms", "p99 ms"],
            [
                ["idle", len(during.idle), *idle],
                [f"during {during.builds} rebuilds", len(during.rebuilding), *busy],
                ["ratio", None, round(busy[0] / idle[0], 2), round(busy[1] / idle[1], 2)],
            ],
        ),
        Table(
            "processes",
            "Memory, and taking over",
            "Resident memory after the rebuilds above; seconds from the leader's kill -9 until a"
            " request is answered by the standby.",
            ["", "MB"],
            [
                *([name, round(size / 1e6)] for name, size in during.memory.items()),
                *(
                    [f"take-over {number}, s", round(seconds, 2)]
                    for number, seconds in enumerate(during.takeover, start=1)
                ),
            ],
        ),
    ]


def _growth(at: Servers, settings: Settings, given: argparse.Namespace) -> list[Table]:
    rounds = 200
    with engine(at.database_url) as on:
        seed(on, users=given.pool)
        sizes = [size for size in GROWTH if size < given.pool]
        costs = growth.pending(on, sizes, settings, rounds)
        limited = settings.model_copy(update={"queue_limit": 200_000})
        costs += growth.held(on, (0, 100, 1_000, 10_000), limited, rounds)
        costs += growth.skipped(on, (0, 10, 100, 1_000), limited, rounds)
        costs += growth.quarantined(on, (0, 1_000, 10_000, 100_000), limited, rounds)
        costs += growth.ineligible(on, (0, 1_000, 10_000, 100_000), limited, rounds)
    rows = [[each.what, each.size, *quantiles(each.seconds)] for each in costs]
    return [
        Table(
            "growth",
            "One claim, by what the dialer queue holds",
            "A turn that answers one request, without transport. Held, skipped, quarantined and"
            " ineligible users are the best ranked of a generation of 200,000.",
            ["", "users", "median ms", "p99 ms"],
            rows,
            {"kind": "lines", "x": 1, "y": 2, "by": 0, "scale": "log"},
        )
    ]


def _observing(at: Servers, settings: Settings, given: argparse.Namespace) -> list[Table]:
    found = observed.observing(at, settings, turns=given.rounds * 8, rounds=4)
    return [
        Table(
            "observing",
            "A claim, and what it costs to be observed",
            "A lone caller's claim through the Python client, and the claims of 256 agents who ask"
            " at once. `times`: as long as where no event is left, nothing counted and nothing"
            " bound to the log; the median of the turns, and where the middle half of them lies.",
            observed.COLUMNS,
            observed.figures(found),
        )
    ]


MEASURES: dict[str, Callable[[Servers, Settings, argparse.Namespace], list[Table]]] = {
    "peers": _peers,
    "rebuild": _rebuilds,
    "growth": _growth,
    "observing": _observing,
}


@contextmanager
def _fresh(at: Servers) -> Iterator[str]:
    """The address of a new database on the same server."""
    name = f"peer_{time.monotonic_ns()}"
    with psycopg.connect(at.database_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    yield f"{at.database_url.rpartition('/')[0]}/{name}"


@contextmanager
def _worker(at: Servers, database_url: str) -> Iterator[None]:
    """The plain Celery worker."""
    given = {"DATABASE_URL": database_url, "REDIS_URL": at.redis_url}
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", *WORKER, *WORKER_OPTIONS],
        env=os.environ | given,  # noqa: TID251 - handed on
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with ending([process]):
        yield


def _free_port() -> int:
    """A port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _show(table: Table) -> None:
    shown = RichTable(title=table.title, title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(
            *(
                "" if cell is None else f"{cell:,.3g}" if isinstance(cell, float) else str(cell)
                for cell in row
            )
        )
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
