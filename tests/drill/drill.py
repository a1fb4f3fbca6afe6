"""The drill: agents work all the time, and each host in turn is killed, cut off and frozen."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis
import structlog
from pydantic import BaseModel

from assignment_workers.assignment.answers import Assigned
from assignment_workers.client import AsyncHttpClient, Client, HttpClient
from assignment_workers.devstack import demo
from assignment_workers.gateway.auth import tokens
from assignment_workers.lab.call_centre import day
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder, Sample
from assignment_workers.lab.call_centre.verdict import Verdict
from assignment_workers.runtime.stack import Stack
from assignment_workers.schema.engine import connect
from assignment_workers.schema.migrate import upgrade
from assignment_workers.schema.tables import TokenRole
from assignment_workers.settings import Settings
from tests.drill.hosts import Host, Hosts, wait_until
from tests.drill.parts import GATEWAY_PORT, PROXY, Parts, run

log = structlog.get_logger()

LOST_SECONDS = 12.0
"""The time for which a host is lost."""
BACK_SECONDS = 6.0
"""The time for which a host that has come back is left to itself, an old primary too."""
CALM_SECONDS = 5.0
"""The time of undisturbed work before a host is lost."""
WAYS = ("killed", "cut off", "frozen")
SERVED = {"assigned", "empty"}
SEQUENCERS_OF_ALL = 4
SEQUENCERS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'assignment-workers sequencer%'
"""
LEADERS = """
SELECT host(client_addr) FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE application_name LIKE 'assignment-workers sequencer%' AND locktype = 'advisory' AND granted
"""


class Loss(BaseModel):
    """One host lost: what it had, and what the agents saw until everything was as before."""

    host: str
    how: str
    had: list[str]
    pause: float
    """The longest time without an answer to anybody, in seconds, until the host was back."""
    moved_back: float
    """The same while the primaries were moved back to the first host, as an operator does."""
    longest_wait: float
    """The longest time from an agent's request to its answer, in seconds."""
    requests: int
    asked_again: int
    """How often an agent was told `unavailable`, or got no answer, and sent the same again."""
    otherwise: int
    """Requests that were answered otherwise than with a user or `empty`: too late, or refused."""
    load: float
    """The processes of the machine that wanted a processor, on average of a minute."""


class Drilled(BaseModel):
    """The results of a drill."""

    broker: str
    at: str
    seed: int
    agents: int
    speed: float
    requests: int
    calm_pause: float
    """The longest time without an answer while nothing was lost."""
    calm_p99_ms: float
    losses: list[Loss]
    broken: list[str]
    """Every guarantee that broke, by the history checker, the doctor and the agents' records."""


@dataclass
class _Window:
    host: Host
    how: str
    had: list[str]
    began: float
    again: int
    back: float = 0.0
    ended: float = 0.0
    load: float = 0.0


@dataclass
class Drill:
    """One run on one broker."""

    parts: Parts
    hosts: Hosts
    plan: Plan
    losses: Sequence[tuple[Host, str]]
    windows: list[_Window] = field(default_factory=list)

    async def lose_each(self, recorder: Recorder, over: asyncio.Event) -> None:
        """Lose one host after the other, and end the day."""
        try:
            await asyncio.sleep(CALM_SECONDS)
            for host, how in self.losses:
                await asyncio.to_thread(self._lose, host, how, recorder)
        except TimeoutError as error:
            log.exception("not home")
            recorder.surprises.append(f"after host {host.name} was {how}: {error}")
        finally:
            over.set()

    def _lose(self, host: Host, how: str, recorder: Recorder) -> None:
        had = self._has(host)
        if self.parts.is_on_rabbitmq:
            # By chance it would be there in one loss of three: the worst is wanted in each.
            self.parts.bring_queues_to(host)
            had.append(QUEUES)
        window = _Window(host, how, had, recorder.now, recorder.counts["asked again"])
        log.info("loses", host=host.name, how=how, had=had)
        {"killed": host.kill, "cut off": host.cut_off, "frozen": host.freeze}[how]()
        time.sleep(LOST_SECONDS)
        primary = self.parts.primary()
        log.info("comes back", host=host.name, primary=primary and primary.name)
        if how == "killed":
            self.start(host, is_new=primary is not None and primary is not host)
        else:
            (host.mend if how == "cut off" else host.thaw)()
        time.sleep(BACK_SECONDS)
        if how != "killed" and had[:1] == [PRIMARY]:
            self._follow(host)
        window.back = recorder.now
        self.come_home()
        time.sleep(CALM_SECONDS)
        window.ended, window.load = recorder.now, os.getloadavg()[0]
        window.again = recorder.counts["asked again"] - window.again
        self.windows.append(window)

    def start(self, host: Host, *, is_new: bool) -> None:
        """Start everything on a host that was killed. `is_new`: its PostgreSQL has to follow."""
        host.is_up = True
        self.parts.start_valkey(host)
        if self.parts.is_on_rabbitmq:
            self.parts.start_rabbitmq(host)
        if host in self.parts.data_hosts:
            self._follow(host) if is_new else self.parts.start_postgres(host)
        self.parts.start_ours(host)

    def _follow(self, host: Host) -> None:
        """Make this host's PostgreSQL a standby of the primary, from a new copy."""
        host.stop("postgres", signal.SIGINT)
        primary = self._primary()
        self.parts.copy_postgres(host, primary)
        self.parts.start_postgres(host)

    def _primary(self) -> Host:
        wait_until(lambda: self.parts.primary() is not None, "a primary", seconds=60)
        found = self.parts.primary()
        assert found is not None
        return found

    def come_home(self) -> None:
        """Wait until everything runs again, and bring both primaries back to the first host."""
        parts, (first, second) = self.parts, self.parts.data_hosts
        if self._primary() is second:
            # The standby has everything, and the promotion promotes it.
            wait_until(lambda: run(second, IN_SYNC), "the first host to follow", seconds=60)
            time.sleep(CALM_SECONDS)
            second.stop("postgres", signal.SIGINT)
            wait_until(lambda: parts.primary() is first, "the first host to lead", seconds=60)
            self._follow(second)
        wait_until(parts.is_followed, "commits to wait for the standby", seconds=90)
        wait_until(parts.valkey_is_whole, "Valkey to be whole", seconds=120)
        if parts.valkey_primary() != first.address:
            wait_until(self._valkey_moves, "Valkey's primary to move", seconds=90)
            wait_until(parts.valkey_is_whole, "Valkey to be whole", seconds=120)
        if parts.is_on_rabbitmq:
            for each in parts.hosts:
                wait_until(partial(parts.rabbitmq_serves, each), "RabbitMQ", seconds=120)
            wait_until(parts.queues_are_whole, "RabbitMQ's replicas to catch up", seconds=120)
        wait_until(
            lambda: (run(first, SEQUENCERS) or [(0,)])[0][0] >= SEQUENCERS_OF_ALL,
            "the sequencers",
            seconds=90,
        )
        for each in parts.data_hosts:
            wait_until(partial(_is_ready, each), "both gateways", seconds=90)
        log.info("home")

    def _valkey_moves(self) -> bool:
        with suppress(redis.RedisError):
            self.parts.bring_valkey_home()
        time.sleep(2)
        return self.parts.valkey_primary() == self.parts.hosts[0].address

    def _has(self, host: Host) -> list[str]:
        primary = self.parts.primary()
        had = []
        if primary is host:
            had.append(PRIMARY)
        elif host in self.parts.data_hosts:
            had.append("PostgreSQL's standby")
        if self.parts.valkey_primary() == host.address:
            had.append("Valkey's primary")
        if primary and (host.address,) in (run(primary, LEADERS) or ()):
            had.append("the leading sequencer")
        return had or ["a Sentinel, and what promotes"]

    def drilled(self, recorder: Recorder, verdict: Verdict) -> Drilled:
        """Return the figures of the run."""
        calm = list(self._calm(recorder))
        waits = sorted(
            each.seconds
            for each in recorder.waits
            if any(began <= each.at - each.seconds and each.at <= ended for began, ended in calm)
        )
        return Drilled(
            broker="RabbitMQ" if self.parts.is_on_rabbitmq else "Valkey",
            at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            seed=self.plan.seed,
            agents=self.plan.agents,
            speed=self.plan.speed,
            requests=len(recorder.waits),
            calm_pause=max((pause(recorder, *each) for each in calm), default=0.0),
            calm_p99_ms=round(1000 * waits[int(len(waits) * 0.99)], 1) if waits else 0.0,
            losses=[self._loss(recorder, each) for each in self.windows],
            broken=verdict.broken,
        )

    def _calm(self, recorder: Recorder) -> Iterator[tuple[float, float]]:
        ended = [each.ended - CALM_SECONDS for each in self.windows]
        began = [each.began for each in self.windows]
        for start, end in zip([0.0, *ended], [*began, recorder.now], strict=True):
            if self.windows and start < end <= self.windows[-1].ended:
                yield start, end

    @staticmethod
    def _loss(recorder: Recorder, window: _Window) -> Loss:
        within = [each for each in recorder.waits if window.began <= each.at <= window.ended]
        return Loss(
            host=window.host.name,
            how=window.how,
            had=window.had,
            pause=pause(recorder, window.began, window.back),
            moved_back=pause(recorder, window.back, window.ended),
            longest_wait=round(max((each.seconds for each in within), default=0.0), 1),
            requests=len(within),
            asked_again=window.again,
            otherwise=sum(each.outcome not in SERVED for each in within),
            load=round(window.load, 1),
        )


PRIMARY = "PostgreSQL's primary"
QUEUES = "the leader of RabbitMQ's queues"
IN_SYNC = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"


def pause(recorder: Recorder, began: float, ended: float) -> float:
    """Return the longest time without an answer between two seconds of the run."""
    moments = [each.at for each in recorder.waits if each.outcome in SERVED]
    within = sorted([began, *(each for each in moments if began <= each <= ended), ended])
    gaps = (after - before for before, after in itertools.pairwise(within))
    return round(max(gaps, default=0.0), 1)


def go(
    folder: Path,
    plan: Plan,
    *,
    rabbitmq: bool,
    chosen: Callable[[str, str], bool],
    show: Callable[[Recorder, Sample], None],
) -> Drilled:
    """Set the hosts up, lose each of those that are `chosen` by name and way, and judge."""
    with Hosts(folder) as hosts, _served(hosts, folder, plan, rabbitmq=rabbitmq) as (parts, token):
        losses = [(host, how) for how in WAYS for host in hosts.all if chosen(host.name, how)]
        drill = Drill(parts, hosts, plan, losses)
        drill.come_home()
        settings = Settings.from_environment(parts.environment)
        stack = Stack(
            database_url=parts.database_url,
            redis_url=parts.redis_url,
            broker_url=parts.broker_url or parts.redis_url,
            pid=1,
            started_at=datetime.now(UTC),
        )
        made = partial(AsyncHttpClient, PROXY, token=token)
        recorder, verdict = day.run(
            stack, plan, settings, show, beside=drill.lose_each, client=made
        )
        return drill.drilled(recorder, verdict)


@contextmanager
def _served(
    hosts: Hosts, folder: Path, plan: Plan, *, rabbitmq: bool
) -> Iterator[tuple[Parts, str]]:
    """Within: everything runs, both dialer queues are published; also gives the agents' token."""
    parts = Parts(hosts.all, folder, plan.variables, is_on_rabbitmq=rabbitmq)
    first, second, _ = hosts.all
    parts.make_postgres()
    parts.start_postgres(first)
    wait_until(lambda: run(first, "SELECT 1"), "PostgreSQL", seconds=30)
    parts.copy_postgres(second, first)
    parts.start_postgres(second)
    for each in hosts.all:
        parts.start_valkey(each)
        if rabbitmq:
            parts.start_rabbitmq(each)
    upgrade(parts.database_url)
    engine = connect(parts.database_url, name="drill", statement_timeout=timedelta(minutes=2))
    with engine.begin() as connection:
        demo.seed(connection, users=plan.users, seed=plan.seed, now=datetime.now(UTC))
        token = tokens.create(connection, TokenRole.FRONTEND, note="the drill")
    engine.dispose()
    wait_until(lambda: parts.valkey_primary() == first.address, "Valkey", seconds=30)
    if rabbitmq:
        for each in hosts.all:
            wait_until(partial(parts.rabbitmq_serves, each), "RabbitMQ", seconds=120)
    for each in hosts.all:
        parts.start_ours(each)
    proxy = parts.proxy()
    try:
        _publish(parts, token)
        yield parts, token
    finally:
        proxy.kill()
        proxy.wait()


def _publish(parts: Parts, token: str) -> None:
    """Build both dialer queues, and wait until an agent gets a user."""
    with (
        Client.connect(parts.redis_url, broker_url=parts.broker_url) as client,
        HttpClient(PROXY, token=token) as agent,
    ):
        wait_until(lambda: isinstance(client.regenerate(), str), "the workers", seconds=120)

        def is_served() -> bool:
            answer: Any = agent.request_next(1, timeout=timedelta(seconds=5))
            return isinstance(answer, Assigned)

        wait_until(is_served, "the first user", seconds=120)


def _is_ready(host: Host) -> bool:
    try:
        answer = httpx.get(f"http://{host.address}:{GATEWAY_PORT}/readyz", timeout=2)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK
