"""One simulated day, or a part of it, on a running stack."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.assignment.generations.levels import unpublished
from assignment_workers.assignment.lanes import Lanes, lanes_of
from assignment_workers.client import AsyncClient, Client
from assignment_workers.client.assignment_client import AsyncAssignmentClient
from assignment_workers.devstack import temporary
from assignment_workers.devstack.temporary import Broker
from assignment_workers.errors import AssignmentWorkersError, BrokerUnavailable, UsageError
from assignment_workers.lab.call_centre.agent import SimulatedAgent
from assignment_workers.lab.call_centre.chaos import Chaos
from assignment_workers.lab.call_centre.environment import Environment
from assignment_workers.lab.call_centre.faults import Faults, install_clock
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder, Sample
from assignment_workers.lab.call_centre.verdict import Verdict, judge
from assignment_workers.runtime.stack import Stack
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings

QUIET_SECONDS = 300.0
"""The longest time in seconds for each wait of a run, before and after the simulated day.

If a wait takes longer, the run fails with `AssignmentWorkersError`. The wait before the day takes
place only if the run called `install_clock`. That function ends all database sessions, so each
sequencer stops leading. The wait before the day lasts until each lane has a leading sequencer
again.

The wait after the day always takes place, because the faults may have ended sequencers. It lasts
until each lane has a leading sequencer and all builds are published.

A lane is a group of dialer queues. Its leading sequencer is the one worker that handles its
assignment queue.
"""

AGENTS = """
INSERT INTO agents (id, email, first_name, last_name, created_at, updated_at)
SELECT n, 'agent' || n || '@example.com', 'Agent', n::text, now(), now()
FROM generate_series(1, :agents) n ON CONFLICT DO NOTHING
"""
STRANGERS = """
SELECT EXISTS (SELECT 1 FROM agents WHERE email !~ '^agent[0-9]+@example[.]com$')
    OR EXISTS (SELECT 1 FROM crm.users WHERE email_address !~ '^user[0-9]+@example[.]com$')
    OR NOT EXISTS (SELECT 1 FROM crm.users)
"""
LED = (
    "SELECT count(*) FROM assignment.sequencer NATURAL JOIN assignment.sequencer_signs"
    " WHERE last_probe_at > since AND lane = ANY(:lanes)"
)


Beside = Callable[[Recorder, asyncio.Event], Coroutine[Any, Any, None]]


async def nothing(recorder: Recorder, over: asyncio.Event) -> None:
    """Do nothing. This is the default of the parameter `beside` of `run`."""


def run(
    stack: Stack,
    plan: Plan,
    settings: Settings,
    show: Callable[[Recorder, Sample], None],
    *,
    broker: Broker | None = None,
    beside: Beside = nothing,
    client: Callable[[], AsyncAssignmentClient] | None = None,
) -> tuple[Recorder, Verdict]:
    """Simulate a day by this plan on a running stack; return the records and the verdict.

    The run is judged after each lane has a leading sequencer again and each build is published.
    `settings` are those of the stack. `show` is called each second with the records and the
    newest figures. `broker` is the stack's RabbitMQ, if faults may kill it. `beside`: a coroutine
    function that runs during the day, such as the measurements of a soak. Its second argument is an
    event, which is set at the end of the day; `beside` may set it to end the day early. `client`
    makes the client that the agents use, for example one that sends HTTP requests to a gateway. If
    `client` is None, the agents use a client that sends Celery messages to the workers.
    Raises `UsageError` if the stack has no users. Also raises `UsageError` if the stack has users
    or agents other than those of the demo; this check ensures that no real person is called.
    """
    engine = connect(
        stack.database_url,
        name="assignment-workers demo",
        statement_timeout=timedelta(minutes=2),
        pool_size=4,
    )
    try:
        lanes = lanes_of(settings)
        _prepare(engine, plan, lanes)
        with Client.connect(stack.redis_url, broker_url=stack.broker_url, lanes=lanes) as sender:
            recorder, environment = asyncio.run(
                _Day(stack, plan, settings, engine, sender, broker, client).go(show, beside)
            )
            _come_to_rest(engine, sender, lanes)
        verdict = judge(engine, plan, recorder, signed_at=environment.signed_at, settings=settings)
        return recorder, verdict
    finally:
        engine.dispose()


def _prepare(engine: Engine, plan: Plan, lanes: Lanes) -> None:
    with engine.begin() as connection:
        there = connection.execute(text("SELECT to_regclass('crm.users') IS NOT NULL"))
        if not there.scalar_one() or connection.execute(text(STRANGERS)).scalar_one():
            raise UsageError(
                "the stack that runs here has other users than the demo's, and the demo plays with"
                " all of them: stop it, or name another ASSIGNMENT_WORKERS_HOME"
            )
        connection.execute(text(AGENTS), {"agents": plan.agents})
    if plan.chaos and plan.own_stack:
        install_clock(engine)
        _wait(lambda: _is_led(engine, lanes), "was led again")


def _is_led(engine: Engine, lanes: Lanes) -> bool:
    try:
        with engine.connect() as connection:
            led = connection.execute(text(LED), {"lanes": list(lanes.names)}).scalar_one()
    except SQLAlchemyError:
        engine.dispose()
        return False
    return bool(led == len(lanes.names))


@dataclass
class _Day:
    stack: Stack
    plan: Plan
    settings: Settings
    engine: Engine
    client: Client
    broker: Broker | None
    make_client: Callable[[], AsyncAssignmentClient] | None

    async def go(
        self,
        show: Callable[[Recorder, Sample], None],
        beside: Beside,
    ) -> tuple[Recorder, Environment]:
        """Run all agents and their environment until the day is over and every call has ended.

        `show` is called each second with the records and the newest figures. `beside` is another
        coroutine function that runs during the day, such as the measurements of a soak.
        """
        plan, stack = self.plan, self.stack
        recorder, over = Recorder(), asyncio.Event()
        environment = Environment(plan, self.engine, self.client, recorder, over)
        lanes = lanes_of(self.settings)
        made = self.make_client or partial(
            AsyncClient, stack.redis_url, broker_url=stack.broker_url, lanes=lanes
        )
        async with made() as asking:
            agents = [
                SimulatedAgent(
                    number, plan, asking, recorder, over, environment.signs, self.settings.lease
                )
                for number in range(1, plan.agents + 1)
            ]
            around = [
                environment.users(),
                environment.jobs(),
                environment.cleanups(),
                environment.watch(lambda sample: show(recorder, sample)),
                beside(recorder, over),
            ]
            if plan.chaos:
                chance = Random(f"{plan.seed} chaos")
                faults = Faults(
                    stack,
                    self.engine,
                    self.client,
                    recorder,
                    chance,
                    lanes,
                    disk=temporary.disk_of(stack.pid),
                    broker=self.broker,
                    has_clock=plan.own_stack,
                )
                around.append(Chaos(faults, recorder, over, plan, chance).reign())
            async with asyncio.TaskGroup() as group:
                for each in (*around, *(agent.work() for agent in agents)):
                    group.create_task(each)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), plan.seconds)
                over.set()
        return recorder, environment


def _come_to_rest(engine: Engine, client: Client, lanes: Lanes) -> None:
    """Wait until each lane has a leading sequencer and each build is published.

    Meanwhile, send two kinds of messages. One kind ends the assignments whose lease has ended. The
    other kind publishes finished builds.
    """

    def is_at_rest() -> bool:
        try:
            for queue in lanes.celery_queues:
                client.send_again("assignment.expire", [], {}, queue)
            client.send_again("generation.tend", [], {}, "maintenance")
            with engine.connect() as connection:
                waiting = unpublished(connection)
        except (SQLAlchemyError, BrokerUnavailable):
            engine.dispose()
            return False
        return not waiting and _is_led(engine, lanes)

    _wait(is_at_rest, "came to rest after the day")


def _wait(until: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + QUIET_SECONDS
    while not until():
        if time.monotonic() > ends:
            raise AssignmentWorkersError(f"the stack never {what}, for {QUIET_SECONDS:g} s")
        time.sleep(1.0)
