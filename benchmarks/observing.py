"""What it costs a claim to be observed: by events, metrics and logs, and by Flower.

Three sequencers, each on a database and a Redis database of its own: one as it is, one that tells
Flower nothing, and one that leaves no events, counts nothing and binds nothing to its log. They are
asked by turns, a few calls each, so that a slow moment hits them all: what counts is the ratio of
each turn's medians, not the milliseconds.

    python -m benchmarks.observing
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import psycopg

from assignment_workers.assignment.claims import new_assignments
from assignment_workers.client import Assigned, AsyncClient, Client
from assignment_workers.schema.migrate import upgrade
from assignment_workers.sequencer import transaction_runner
from assignment_workers.settings import Settings
from assignment_workers.tasks import create_app, process, task_handler
from benchmarks.record import spread
from benchmarks.requests import coalesced, prepare
from benchmarks.same_work import QUEUE
from benchmarks.stage import Servers, ending, engine, servers, show
from benchmarks.ways import measure

AS_IT_IS, NO_FLOWER, BLIND = "as it is", "nothing told to Flower", "no events, metrics, logs"
IN_TURN = 20
"""Calls of a lone caller to each in a turn, one to each after another."""


@dataclass
class Observed:
    """What was measured of one sequencer, turn by turn."""

    name: str
    lone: list[list[float]] = field(default_factory=list)
    """Seconds of each claim of a lone caller, by turn."""
    together: list[float] = field(default_factory=list)
    """Claims a second where all agents ask at once, by turn."""

    def times(self, base: Observed) -> list[float]:
        """By turn: how many times as long as the other's a lone caller's claim took."""
        return [
            statistics.median(own) / statistics.median(other)
            for own, other in zip(self.lone, base.lone, strict=True)
        ]

    def pace(self, base: Observed) -> list[float]:
        """By turn: how many times as long all agents' claims took."""
        return [other / own for own, other in zip(self.together, base.together, strict=True)]


def observing(at: Servers, settings: Settings, *, turns: int, rounds: int) -> list[Observed]:
    """All three, by turns; `rounds` of all agents in each."""
    found = [Observed(name) for name in VARIANTS]
    users = (turns + 2) * (IN_TURN + 2 + (rounds + 1) * 256) + 5_000
    with ExitStack() as keep:
        places = [
            keep.enter_context(_place(at, number, name, users, settings))
            for number, name in enumerate(VARIANTS)
        ]
        clients = [keep.enter_context(Client.connect(each.redis_url)) for each in places]
        for client in clients:
            for _ in range(50):
                _asked(client)
        # Each round begins with another: whoever comes first finds the machine colder.
        for _ in range(turns):
            seconds: list[list[float]] = [[] for _ in found]
            for number in range(IN_TURN):
                for place in _from(number, len(found)):
                    seconds[place].append(_asked(clients[place]))
            for each, own in zip(found, seconds, strict=True):
                each.lone.append(own)
        for transaction in range(turns):
            for place in _from(transaction, len(found)):
                found[place].together += asyncio.run(_all_at_once(places[place], rounds))
        left = [_events(each) for each in places]
        if left[-1] or not all(left[:-1]):
            raise RuntimeError(f"events of claims: {left}; only the last may have left none")
    return found


def _events(at: Servers) -> int:
    with psycopg.connect(at.database_url) as connection:
        told = "SELECT count(*) FROM assignment.events WHERE kind = 'assigned'"
        return int((connection.execute(told).fetchone() or (0,))[0])


def _from(transaction: int, count: int) -> list[int]:
    return [(transaction + place) % count for place in range(count)]


def _asked(client: Client) -> float:
    """Seconds of one claim; its hold is ended, outside of what is measured."""
    began = time.perf_counter()
    answer = client.request_next(1, queue=QUEUE)
    seconds = time.perf_counter() - began
    if not isinstance(answer, Assigned):
        raise RuntimeError(f"nobody was assigned: {answer}")  # noqa: TRY004 - no wrong type
    client.complete(answer.assignment.id, 1, "no_answer")
    return seconds


async def _all_at_once(at: Servers, rounds: int) -> list[float]:
    async with AsyncClient(at.redis_url) as client:
        return [statistics.median((await measure(coalesced(client), rounds)).claims)]


@contextmanager
def _place(
    at: Servers, number: int, name: str, users: int, settings: Settings
) -> Iterator[Servers]:
    """A database and a Redis database with a sequencer of this kind on them."""
    database = f"observed_{number}"
    with psycopg.connect(at.database_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {database}".encode())
    here = Servers(
        f"{at.database_url.rpartition('/')[0]}/{database}",
        f"{at.redis_url.rpartition('/')[0]}/{number + 1}",
    )
    upgrade(here.database_url)
    with engine(here.database_url) as on:
        prepare(on, users, settings)
    environment = {"DATABASE_URL": here.database_url, "REDIS_URL": here.redis_url}
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.observing", "--be", name],
        env=os.environ | environment,  # noqa: TID251 - handed on
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with ending([started]):
        yield here


class _Nothing:
    """Stands for a counter or a histogram that counts nothing."""

    def labels(self, *_: str) -> _Nothing:
        return self

    def inc(self, *_: float) -> None:
        pass

    observe = inc


def _tell_flower_nothing() -> None:
    def quiet(settings: Settings) -> task_handler.App:
        app = create_app(settings)
        for task in app.tasks.values():
            task.send_events = False
        return app

    patch.object(process, "create_app", quiet).start()


def _leave_nothing() -> None:
    """No events of a claim, no counts, nothing bound to the log; nothing told to Flower either."""
    _tell_flower_nothing()
    silent = new_assignments.ANSWER.add_cte(
        new_assignments.HOLD, new_assignments.PLACE, nest_here=True
    )
    patch.object(new_assignments, "KEEP", silent).start()
    patch.object(transaction_runner, "TURN_SECONDS", _Nothing()).start()

    def bare(self: task_handler.HandledTask, /, *args: object, **kwargs: object) -> object:
        return self.operation(self, *args, **kwargs)

    patch.object(task_handler.HandledTask, "__call__", bare).start()


VARIANTS: dict[str, Callable[[], None]] = {
    AS_IT_IS: lambda: None,
    NO_FLOWER: _tell_flower_nothing,
    BLIND: _leave_nothing,
}


COLUMNS = ["", "lone ms", "times", "middle half", "256 at once, /s", "times", "middle half"]


def figures(found: Sequence[Observed]) -> list[list[object]]:
    """A row for each, compared with the last."""
    return [
        [
            each.name,
            round(
                statistics.median(one for transaction in each.lone for one in transaction) * 1000, 3
            ),
            *spread(each.times(found[-1])),
            round(statistics.median(each.together)),
            *spread(each.pace(found[-1])),
        ]
        for each in found
    ]


def main() -> None:
    """Measure and print a table; with `--be`, be one of the sequencers."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--turns", type=int, default=24)
    options.add_argument("--be", choices=VARIANTS, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.be:
        VARIANTS[given.be]()
        sys.exit(process.run("sequencer", Settings.from_environment(os.environ)))  # noqa: TID251
    with servers() as at:
        found = observing(at, Settings.from_environment({}), turns=given.turns, rounds=4)
    show("A claim, and what it costs to be observed", COLUMNS, figures(found))


if __name__ == "__main__":
    main()
