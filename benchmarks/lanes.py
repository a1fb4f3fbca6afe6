"""One lane beside two, on this machine, by turns; and the simulation held against what is measured.

Every guarantee is checked at the end, on both.

    python -m benchmarks.lanes [--rounds N] [--turns N] [--out FOLDER]

Needs the dependency group `benchmark` (make benchmark installs it). Compare the ratios, not the
figures of two runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from uuid import UUID

from sqlalchemy import Engine, text

from assignment_workers.assignment.answers import Assigned
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.lanes import ONE_LANE, VARIABLE, Lanes, lanes_of
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete, Move, Owner, Release
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.client import AsyncClient, commands
from assignment_workers.client.reading import as_request_answer
from assignment_workers.identity import new_id
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from benchmarks import record
from benchmarks.dialer import OUTSTANDING_REQUESTS, POLICIES, UNSIGNED_USERS
from benchmarks.lanes_page import LARGE, Closed, Measured, tables_of
from benchmarks.requests import prepare
from benchmarks.simulation import Costs
from benchmarks.stage import Servers, build_and_publish, ending, engine, for_turns, servers, show
from benchmarks.ways import AGENTS

OTHER = "outstanding"
SETTING = f"{OTHER}={OUTSTANDING_REQUESTS.queue}"
TWO = Lanes({OUTSTANDING_REQUESTS.queue: OTHER})
QUEUES = (UNSIGNED_USERS.queue, OUTSTANDING_REQUESTS.queue)
LONG = timedelta(seconds=60)
SMALL = 1


def lines(on: Engine, lanes: Lanes) -> dict[str, TransactionRunner]:
    """The line of each lane, under one new term."""
    with on.begin() as connection:
        for lane in lanes.names:
            made = "INSERT INTO assignment.sequencer (lane) VALUES (:lane) ON CONFLICT DO NOTHING"
            connection.execute(text(made), {"lane": lane})
        raised = text(
            "UPDATE assignment.sequencer SET term = (SELECT max(term) + 1 FROM"
            " assignment.sequencer) RETURNING term"
        )
        term = connection.execute(raised).scalars().first()
    if term is None:
        raise RuntimeError("the schema has no sequencer row")
    engine = for_turns(on)
    return {
        lane: TransactionRunner(engine, dialer=loaded(), term=term, lane=lane, lanes=lanes)
        for lane in lanes.names
    }


def turns_of(on: Engine, settings: Settings, turns: int) -> dict[str, list[float]]:
    """Seconds of a turn that answers one request, without transport, one of each way by turns."""
    lane = ONE_LANE.names[0]
    term = lines(on, TWO)[lane].term
    engine = for_turns(on)
    one, two = (
        TransactionRunner(engine, dialer=loaded(), term=term, lane=lane, lanes=lanes)
        for lanes in (ONE_LANE, TWO)
    )
    ways = {
        "one lane": (one, QUEUES[0]),
        "two lanes, a dialer queue of its own": (two, QUEUES[0]),
        "two lanes, no dialer queue named": (two, None),
        "two lanes, a dialer queue of the other": (two, QUEUES[1]),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(turns + 1):
        for name, (line, queue) in ways.items():
            seconds = _one(line, settings, queue, f"{name} {number}")
            if number:
                found[name].append(seconds)
    return found


def _one(runner: TransactionRunner, settings: Settings, queue: str | None, name: str) -> float:
    work = partial(claim, policies=POLICIES, settings=settings)
    began = time.perf_counter()
    (answer,) = runner.run(
        lambda transaction: work(transaction, [ClaimRequest(1, name, queue, None, None)])
    )
    seconds = time.perf_counter() - began
    runner.run(partial(finish, moves=[Release(Owner(_given(answer), 1))]))
    return seconds


def _given(answer: object) -> UUID:
    match answer:
        case Assigned(assignment=held):
            return held.id
        case other:
            raise RuntimeError(f"nobody was assigned: {other}")


def turn_costs(on: Engine, settings: Settings, turns: int) -> dict[str, float]:
    """What a turn takes, and each request or completion in it more, without transport."""
    line = lines(on, ONE_LANE)[ONE_LANE.names[0]]
    work = partial(claim, policies=POLICIES, settings=settings)
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(turns + 2):
        for size in (SMALL, LARGE):
            asked = [
                ClaimRequest(agent, f"cost-{number}-{size}-{agent}", QUEUES[0], None, None)
                for agent in range(1, size + 1)
            ]
            began = time.perf_counter()
            answers = line.run(lambda transaction, asked=asked: work(transaction, asked))  # type: ignore[misc]
            claimed = time.perf_counter()
            held = [each.assignment for each in answers if isinstance(each, Assigned)]
            moves: list[Move] = [
                Complete(Owner(each.id, each.agent_id), "no_answer") for each in held
            ]
            line.run(partial(finish, moves=moves))
            ended = time.perf_counter()
            if len(held) != size:
                raise RuntimeError(f"{len(held)} of {size} were given a user")
            if number > 1:
                seconds.setdefault(("claim", size), []).append(claimed - began)
                seconds.setdefault(("finish", size), []).append(ended - claimed)
    medians = {key: statistics.median(each) for key, each in seconds.items()}
    found = {}
    for what in ("claim", "finish"):
        each = (medians[what, LARGE] - medians[what, SMALL]) / (LARGE - SMALL)
        found[f"{what}_each"] = each
        found[f"{what}_turn"] = max(medians[what, SMALL] - each, 0.0)
    return found


async def closed(client: AsyncClient, rounds: int, found: Closed, agents: int) -> None:
    """Each agent so many times, half of them for each dialer queue; the first is not counted."""
    waits: list[float] = []

    async def work(agent: int, count: int) -> None:
        queue = QUEUES[agent % 2]
        for _ in range(count):
            began = time.perf_counter()
            answer = await client.request_next(agent, queue=queue, timeout=LONG)
            waits.append(time.perf_counter() - began)
            done = await client.complete(
                _given(answer), agent, "no_answer", version=1, timeout=LONG
            )
            if done.outcome != "completed":
                raise RuntimeError(f"not finished: {done}")

    async def all_work(count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for agent in range(1, agents + 1):
                group.create_task(work(agent, count))

    await all_work(1)
    waits.clear()
    worked, began = time.process_time(), time.perf_counter()
    await all_work(rounds)
    seconds = time.perf_counter() - began
    found.rates.append(agents * rounds / seconds)
    found.client_call.append((time.process_time() - worked) / (agents * rounds * 2))
    found.waits += waits


async def plainly(client: AsyncClient, count: int) -> float:
    """Seconds for each message of one request, where the next always waits already."""
    chance = Random()

    async def ask(number: int) -> None:
        name = str(new_id(datetime.now(UTC), chance))
        # The one who asks has somebody: a claim that finds that costs a turn and writes little.
        asked = replace(commands.request(1 + number % 8, QUEUES[0], name, timeout=LONG), many=None)
        as_request_answer(await client.ask(asked, LONG))

    await asyncio.gather(*(ask(number) for number in range(8)))
    began = time.perf_counter()
    await asyncio.gather(*(ask(number) for number in range(count)))
    return (time.perf_counter() - began) / count


def held_turn(on: Engine, settings: Settings, turns: int) -> float:
    """Seconds of a turn for an agent who has somebody: what `plainly` asks for."""
    line = lines(on, ONE_LANE)[ONE_LANE.names[0]]
    work = partial(claim, policies=POLICIES, settings=settings)
    seconds = []
    for number in range(turns + 1):
        began = time.perf_counter()
        line.run(
            lambda transaction: work(
                transaction, [ClaimRequest(1, f"held {time.time_ns()}", QUEUES[0])]
            )
        )
        if number:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@contextmanager
def sequencers(at: Servers, lanes: Lanes) -> Iterator[None]:
    """The sequencer of each lane, in a process of its own, until each leads."""
    setting = SETTING if not lanes.is_one else ""
    given = os.environ | {  # noqa: TID251 - handed on
        "DATABASE_URL": at.database_url,
        "REDIS_URL": at.redis_url,
        VARIABLE: setting,
    }
    started: list[subprocess.Popen[bytes]] = []
    with ending(started):
        for lane in lanes.names:
            command = [sys.executable, "-m", "assignment_workers", "process", "sequencer"]
            more = [] if lane == lanes.names[0] else ["--lane", lane]
            started.append(
                subprocess.Popen(
                    [*command, *more],
                    env=given,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        _until_led(at, len(lanes.names))
        yield
        for lane, process in zip(lanes.names, started, strict=True):
            if process.poll() is not None:
                raise RuntimeError(f"the sequencer of {lane} ended with {process.returncode}")


def _until_led(at: Servers, count: int) -> None:
    ends = time.monotonic() + 120
    with engine(at.database_url) as on:
        while time.monotonic() < ends:
            with on.connect() as connection:
                led = (
                    "SELECT count(*) FROM assignment.sequencer NATURAL JOIN"
                    " assignment.sequencer_signs WHERE last_probe_at > since"
                )
                if connection.execute(text(led)).scalar_one() >= count:
                    return
            time.sleep(0.1)
    raise RuntimeError("the sequencers do not lead")


def measure(settings: Settings, *, agents: int, users: int, rounds: int, turns: int) -> Measured:
    """One lane and two, each on servers of its own, by turns; on others what a turn costs then."""
    with ExitStack() as keep:
        at = {lanes: keep.enter_context(servers()) for lanes in ("one", "two", "alone")}
        on = {name: keep.enter_context(engine(each.database_url)) for name, each in at.items()}
        for each in on.values():
            prepare(each, users, settings)
            build_and_publish(each, OUTSTANDING_REQUESTS, settings)
        turns_alone = turns_of(on["two"], settings, turns * 20)
        found = {"one": Closed(), "two": Closed()}
        costs: list[dict[str, float]] = []
        lanes = {"one": ONE_LANE, "two": TWO}
        for name, each_lanes in lanes.items():
            keep.enter_context(sequencers(at[name], each_lanes))

        async def by_turns() -> None:
            async with (
                AsyncClient(at["one"].redis_url, lanes=ONE_LANE) as one,
                AsyncClient(at["two"].redis_url, lanes=TWO) as two,
            ):
                for number in range(turns):
                    for name, client in sorted(
                        {"one": one, "two": two}.items(), reverse=bool(number % 2)
                    ):
                        await closed(client, rounds, found[name], agents)
                    plain = await plainly(one, 200)
                    message = max(plain - held_turn(on["alone"], settings, 10), 0.0)
                    costs.append(turn_costs(on["alone"], settings, 2) | {"message": message})

        asyncio.run(by_turns())
        for name, setting in {"one": "", "two": SETTING}.items():
            _hold(on[name], Settings.from_environment({VARIABLE: setting}))
    client_call = statistics.median(found["one"].client_call)
    medians = {name: statistics.median(each[name] for each in costs) for name in costs[0]}
    return Measured(turns_alone, Costs(client_call=client_call, **medians), *found.values())


def _hold(on: Engine, settings: Settings) -> None:
    """Raises `RuntimeError` for a guarantee that broke, by the doctor or by the whole history."""
    with on.connect() as connection:
        broken = [
            f"{each.check}: {each.examples}"
            for each in examine(connection, loaded())
            if not each.ok
        ]
    with on.connect() as connection:
        found = check(connection, dialer=loaded(), settings=settings, bound=timedelta(minutes=1))
    # The terms of turns without a sequencer were raised by hand, and have no event.
    broken += [str(each) for each in found if not each.what.endswith("which has not begun")]
    if broken:
        raise RuntimeError(f"{len(broken)} breaches of guarantees: {broken[:5]}")


def main() -> None:
    """Measure, print the tables and write them down."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.lanes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--users", type=int, default=60_000)
    options.add_argument("--agents", type=int, default=AGENTS)
    options.add_argument("--rounds", type=int, default=4, help="requests of each agent in a turn")
    options.add_argument("--turns", type=int, default=16)
    options.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    given = options.parse_args()
    if not find_spec("matplotlib"):
        options.error("matplotlib not installed: `make benchmark` does it")
    lanes_of(Settings.from_environment({VARIABLE: SETTING}))
    settings = Settings.from_environment({})
    with servers() as at:
        machine = record.environment(at)
    found = measure(
        settings, agents=given.agents, users=given.users, rounds=given.rounds, turns=given.turns
    )
    tables = tables_of(found, given.agents)
    for table in tables:
        show(table.title, table.columns, table.rows)
    record.write(given.out, machine, tables, "benchmarks.lanes")


if __name__ == "__main__":
    main()
