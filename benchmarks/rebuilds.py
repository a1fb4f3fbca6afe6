"""What a rebuild costs beside the bare statement and delete-and-insert, and while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
from sqlalchemy import Engine, text

from assignment_workers.client import Assigned, Client, Unavailable
from assignment_workers.settings import Settings
from benchmarks.dialer import UNSIGNED_USERS
from benchmarks.regenerate import bare, publishing
from benchmarks.stage import Servers, build, ending, line

QUEUE = UNSIGNED_USERS.queue
PAUSE = 0.01
PROCESSES = {"sequencer": "sequencer", "another": "sequencer", "maintenance": "maintenance"}

TABLE = """
CREATE TABLE deleted_queue (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id bigint NOT NULL,
  rank bigint NOT NULL, score int, state text NOT NULL DEFAULT 'pending', agent int);
CREATE INDEX ON deleted_queue (state, score);
CREATE INDEX ON deleted_queue (rank)
"""
REFILL = """
DELETE FROM deleted_queue;
INSERT INTO deleted_queue (user_id, rank, score)
SELECT user_id, row_number() OVER (ORDER BY current_score, created_at DESC, user_id DESC),
       current_score FROM user_call_scores WHERE current_queue_type = 'unsigned_users'
ORDER BY 2 LIMIT {limit}
"""


@dataclass
class Rebuilds:
    """Seconds of each round, for one size."""

    users: int
    bares: list[float] = field(default_factory=list)
    deletes: list[float] = field(default_factory=list)
    builds: list[float] = field(default_factory=list)
    publishes: list[float] = field(default_factory=list)


def rebuilds(on: Engine, sizes: Sequence[int], settings: Settings, rounds: int) -> list[Rebuilds]:
    """The three side by side, round by round.

    The bare statement takes the whole pool, so it is measured where a size is most of it.
    """
    found = []
    with on.connect() as connection:
        pool = connection.execute(
            text("SELECT count(*) FROM user_call_scores WHERE current_queue_type = :queue"),
            {"queue": QUEUE},
        ).scalar_one()
        connection.rollback()
        connection.execute(text(TABLE))
        connection.commit()
    for size in sizes:
        each = Rebuilds(size)
        limited = settings.model_copy(update={"queue_limit": size})
        for _ in range(rounds):
            if size >= pool * 0.8:
                each.bares.append(bare(on))
            each.deletes.append(_seconds(on, REFILL.format(limit=size)))
            began = time.perf_counter()
            number = build(on, UNSIGNED_USERS, limited)
            each.builds.append(time.perf_counter() - began)
            each.publishes.append(publishing(line(on), number))
        found.append(each)
    with on.begin() as connection:
        connection.execute(text("DROP TABLE deleted_queue"))
    return found


def _seconds(on: Engine, sql: str) -> float:
    with on.begin() as connection:
        began = time.perf_counter()
        connection.execute(text(sql))
        connection.commit()
        return time.perf_counter() - began


@dataclass
class Meanwhile:
    """Seconds of each request of a caller who asks all the time."""

    idle: list[float] = field(default_factory=list)
    rebuilding: list[float] = field(default_factory=list)
    builds: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes each process had in memory at the end."""
    takeover: list[float] = field(default_factory=list)
    """Seconds from the leader's kill -9 to the next answer."""


def meanwhile(at: Servers, *, calls: int, turns: int) -> Meanwhile:
    """Idle and while both dialer queues are rebuilt without pause, by turns, on real processes."""
    found = Meanwhile()
    with (
        processes(at, *PROCESSES.values()) as started,
        Client.connect(at.redis_url) as client,
    ):
        _until_answered(client)
        for _ in range(turns):
            found.idle += [_ask(client) for _ in range(calls)]
            before = found.builds
            while found.builds < before + 2:
                task = _regenerate(client)
                while not isinstance(client.built(task, timeout=timedelta(0)), dict):
                    found.rebuilding.append(_ask(client))
                found.builds += 1
        for name, process in zip(PROCESSES, started, strict=True):
            found.memory[name] = psutil.Process(process.pid).memory_info().rss
        for _ in range(3):
            found.takeover.append(_take_over(at, client, started))
    return found


def _ask(client: Client) -> float:
    """One request, given back afterwards; the seconds of the request."""
    began = time.perf_counter()
    answer = client.request_next(1, queue=QUEUE)
    seconds = time.perf_counter() - began
    match answer:
        case Assigned(assignment=held):
            client.release(held.id, 1)
        case other:
            raise RuntimeError(f"nobody was assigned: {other}")
    time.sleep(PAUSE)
    return seconds


def _regenerate(client: Client) -> str:
    match client.regenerate(QUEUE):
        case Unavailable(reason=reason):
            raise RuntimeError(reason)
        case task:
            return task


def _take_over(at: Servers, client: Client, started: list[subprocess.Popen[bytes]]) -> float:
    """Kill the leader, ask, and see to it that there is a standby again."""
    with psycopg.connect(at.database_url) as connection:
        row = connection.execute("SELECT leader_pid FROM assignment.sequencer").fetchone()
    leader = next(each for each in started if row and each.pid == row[0])
    began = time.perf_counter()
    leader.kill()
    _until_answered(client)
    seconds = time.perf_counter() - began
    leader.wait()
    started.remove(leader)
    started.append(_start(at, "sequencer"))
    time.sleep(5)  # it stands by
    return seconds


def _until_answered(client: Client) -> None:
    ends = time.monotonic() + 60
    while True:
        answer = client.request_next(1, queue=QUEUE, timeout=timedelta(seconds=20))
        if isinstance(answer, Assigned):
            client.release(answer.assignment.id, 1)
            return
        if time.monotonic() > ends:
            raise RuntimeError(f"no answer: {answer}")
        time.sleep(0.05)


@contextmanager
def processes(at: Servers, *names: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """These processes of ours on the servers; whichever run at the end are ended."""
    started = [_start(at, name) for name in names]
    with ending(started):
        time.sleep(4)  # each has started and the first leads
        yield started


def _start(at: Servers, name: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {  # noqa: TID251 - handed on
        "DATABASE_URL": at.database_url,
        "REDIS_URL": at.redis_url,
    }
    with Path(os.devnull).open("wb") as nowhere:
        return subprocess.Popen(
            [sys.executable, "-m", "assignment_workers", "process", name],
            env=environment,
            stdout=nowhere,
            stderr=nowhere,
        )
