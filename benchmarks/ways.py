"""Ways for all agents to ask and to finish, and how they are measured."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery import Celery
from celery.result import AsyncResult, ResultSet

AGENTS = 256


def application(name: str) -> Celery:
    """A Celery application as it comes, with a queue of its name; a worker has `REDIS_URL`."""
    made = Celery(name)
    url = os.environ.get("REDIS_URL")  # noqa: TID251 - the worker's door
    made.conf.update(
        broker_url=url,
        result_backend=url,
        task_default_queue=name,
        broker_connection_retry_on_startup=True,
    )
    return made


@dataclass
class Figures:
    """What was measured of one way to ask."""

    name: str
    claims: list[float] = field(default_factory=list)
    """Claims a second, one for each round in which all ask once."""
    waits: list[float] = field(default_factory=list)
    """Seconds of each claim of those rounds."""
    both: list[float] = field(default_factory=list)
    """Claims a second where each is finished too."""


@dataclass
class Way:
    """A way for all agents to ask, and to finish."""

    name: str
    ask: Callable[[int], Awaitable[tuple[UUID, int]]]
    finish: Callable[[int, tuple[UUID, int]], Awaitable[None]]


@dataclass
class Tasks:
    """Tasks of a Celery application that hand out and finish, as Celery itself sends them."""

    name: str
    claim: Callable[[int], AsyncResult[Any]]
    finish: Callable[[Any], AsyncResult[Any]]
    """Of what `claim` returned."""


async def measure(way: Way, rounds: int) -> Figures:
    """All agents ask at once and then all finish, so many rounds; the first is not counted."""
    figures = Figures(way.name)

    async def one(agent: int) -> tuple[tuple[UUID, int], float]:
        began = time.perf_counter()
        given = await way.ask(agent)
        return given, time.perf_counter() - began

    for number in range(rounds + 1):
        began = time.perf_counter()
        given = await asyncio.gather(*(one(agent) for agent in range(1, AGENTS + 1)))
        claimed = time.perf_counter()
        await asyncio.gather(
            *(way.finish(agent, each) for agent, (each, _) in enumerate(given, start=1))
        )
        ended = time.perf_counter()
        if number:
            figures.claims.append(AGENTS / (claimed - began))
            figures.both.append(AGENTS / (ended - began))
            figures.waits += [seconds for _, seconds in given]
    return figures


def measure_tasks(tasks: Tasks, rounds: int) -> Figures:
    """As `measure`: all agents' tasks are sent, then their results awaited as they come."""
    figures = Figures(tasks.name)
    for number in range(rounds + 1):
        began = time.perf_counter()
        sent: dict[str, float] = {}
        results = []
        for agent in range(1, AGENTS + 1):
            sent_at = time.perf_counter()
            results.append(tasks.claim(agent))
            sent[results[-1].id] = sent_at
        waits, given = [], []
        for task, meta in ResultSet(results).iter_native(timeout=60):
            waits.append(time.perf_counter() - sent[task])
            given.append(meta["result"])
        claimed = time.perf_counter()
        ResultSet([tasks.finish(each) for each in given]).join_native(timeout=60)
        done = time.perf_counter()
        if number:
            figures.claims.append(AGENTS / (claimed - began))
            figures.both.append(AGENTS / (done - began))
            figures.waits += waits
    return figures


def merge(into: dict[str, Figures], figures: Figures) -> None:
    """Add the figures of one more turn."""
    kept = into.setdefault(figures.name, Figures(figures.name))
    kept.claims += figures.claims
    kept.waits += figures.waits
    kept.both += figures.both
