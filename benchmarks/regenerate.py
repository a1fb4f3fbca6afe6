"""What a rebuild costs: beside the bare statement, on the assignment queue, and in memory.

    .venv/bin/python -m benchmarks.regenerate

The bare statement is what a rebuild cannot do without: one INSERT ... SELECT ... ORDER BY of every
user of the pool into an empty table, and the same indexes. It judges nobody.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import psutil
from sqlalchemy import Engine, text

from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from benchmarks.dialer import POLICIES, UNSIGNED_USERS
from benchmarks.stage import build, engine, line, seed, servers, show

BARE = """
CREATE TABLE bare (generation_id bigint, user_id bigint, rank bigint, score int, state text);
INSERT INTO bare
SELECT 1, user_id, row_number() OVER (ORDER BY current_score, created_at DESC, user_id DESC),
       current_score, 'ready'
FROM user_call_scores WHERE current_queue_type = 'unsigned_users' ORDER BY 3;
ALTER TABLE bare ADD PRIMARY KEY (generation_id, user_id);
CREATE INDEX ON bare (generation_id, rank) WHERE state = 'ready';
"""


def bare(on: Engine) -> float:
    """The seconds of the bare statement with its indexes."""
    with on.connect() as connection:
        began = time.perf_counter()
        connection.execute(text(BARE))
        connection.commit()
        seconds = time.perf_counter() - began
        connection.execute(text("DROP TABLE bare"))
        connection.commit()
    return seconds


def publishing(sequence: TransactionRunner, generation: int) -> float:
    """The seconds for which publishing this generation has the assignment queue."""
    began = time.perf_counter()
    sequence.run(lambda transaction: publish(transaction, generation))
    return time.perf_counter() - began


def most_memory(stop: Event) -> int:
    """The most bytes that this process had in memory until `stop`."""
    process = psutil.Process()
    most = 0
    while not stop.wait(0.01):
        most = max(most, process.memory_info().rss)
    return most


def held(on: Engine, agents: int, settings: Settings) -> None:
    """So many agents hold somebody, as at a busy hour when a generation is published."""
    asked = [
        ClaimRequest(agent, f"hold-{agent}", "unsigned_users") for agent in range(1, agents + 1)
    ]
    line(on).run(
        lambda transaction: claim(transaction, asked, policies=POLICIES, settings=settings)
    )


def main() -> None:
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--users", type=int, default=1_100_000)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    settings = Settings.from_environment({})
    bares: list[float] = []
    builds: list[float] = []
    publishes: list[float] = []
    with (
        servers() as at,
        engine(at.database_url) as on,
        ThreadPoolExecutor(1) as thread,
    ):
        seed(on, users=given.users)
        stop = Event()
        memory = thread.submit(most_memory, stop)
        for number in range(given.rounds):
            bares.append(bare(on))
            began = time.perf_counter()
            generation = build(on, UNSIGNED_USERS, settings)
            builds.append(time.perf_counter() - began)
            publishes.append(publishing(line(on), generation))
            if number == 0:
                held(on, 100, settings)
        stop.set()
        with on.connect() as connection:
            size = connection.execute(
                text("SELECT size FROM assignment.generations WHERE state = 'published'")
            ).scalar_one()
    show(
        f"A rebuild: {given.users:,} users in the pool, {size:,} eligible, {given.rounds} rounds",
        ["", "median", "worst"],
        [
            ["bare statement with its indexes, s", *_two(bares)],
            ["build, s", *_two(builds)],
            [
                "build against bare",
                f"{statistics.median(builds) / statistics.median(bares):.2f}",
                f"{max(builds) / min(bares):.2f}",
            ],
            ["publish, ms (100 held)", *_two([each * 1000 for each in publishes])],
            ["memory of the building process, MB", "", f"{memory.result() / 1e6:.0f}"],
        ],
    )


def _two(figures: list[float]) -> tuple[str, str]:
    return f"{statistics.median(figures):.2f}", f"{max(figures):.2f}"


if __name__ == "__main__":
    main()
