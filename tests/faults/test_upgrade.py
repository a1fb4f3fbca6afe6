"""Two releases at once: every process is replaced under load, and put back, and nobody waits a second.

`make upgrade` runs it: it installs release 0.1.0 in an environment of its own, and names its Python.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from assignment_workers.assignment.answers import Assigned, Empty, Finished
from assignment_workers.client import Client, HttpClient
from assignment_workers.devstack import demo
from assignment_workers.devstack.ports import LOOPBACK
from assignment_workers.schema import migrate
from tests.support.processes import Process, Stack, wait_until
from tests.support.proxy import proxy
from tests.support.servers import free_port

OLD = os.environ.get("OLD_RELEASE")
"""The Python of the environment that has release 0.1.0."""
AGENTS = 12
SECONDS = float(os.environ.get("UPGRADE_SECONDS", "8"))
"""The undisturbed time before the upgrade, and after each step."""
LATE_SECONDS = 1.0
STEADY = {"gateway_agent_rate": "2000", "gateway_token_rate": "100000"}

pytestmark = pytest.mark.skipif(OLD is None, reason="make upgrade runs it: it needs release 0.1.0")


class Release:
    """The processes of one release on a stack. `python` is its interpreter; None: ours."""

    def __init__(self, stack: Stack, python: str | None) -> None:
        self.name = "this release" if python is None else "release 0.1.0"
        self._stack = stack
        self._python = python

    def start(self, name: str, **settings: str) -> Process:
        return self._stack.start(name, python=self._python, **settings)

    def sequencer(self) -> Process:
        made = self.start("sequencer")
        wait_until(lambda: "standing_by" in made.said(), "a sequencer to stand by")
        return made

    def gateway(self, port: int) -> Process:
        made = self.start("gateway", gateway_port=str(port), **STEADY)
        wait_until(lambda: _is_ready(port, made), "a gateway to be ready", seconds=60)
        return made

    def maintenance(self) -> Process:
        made = self.start("maintenance")
        wait_until(lambda: " ready" in made.said(), "a maintenance worker", seconds=60)
        return made


def _is_ready(port: int, process: Process) -> bool:
    assert process.popen.poll() is None, process.said()
    try:
        return httpx.get(f"http://{LOOPBACK}:{port}/readyz").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


class Callers:
    """Agents who ask and release all the time, over HTTP and by messages of both releases."""

    def __init__(self, url: str, token: str, stack: Stack) -> None:
        self.waits: list[tuple[float, float, str]] = []
        """When, after how many seconds, by which way."""
        self.wrong: list[tuple[str, object]] = []
        self._stop = threading.Event()
        self._keep = ExitStack()
        self._threads = []
        for agent in range(1, AGENTS + 1):
            by_message = agent % 4 == 0
            client: HttpClient | Client = (
                stack.client()
                if by_message
                else self._keep.enter_context(HttpClient(url, token=token))
            )
            given = (agent, client, "message" if by_message else "HTTP")
            self._threads.append(threading.Thread(target=self._work, args=given))

    def __enter__(self) -> Callers:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(60)
        self._keep.close()

    def _work(self, agent: int, client: HttpClient | Client, way: str) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            answer = client.request_next(agent, timeout=timedelta(seconds=10))
            self.waits.append((began, time.monotonic() - began, way))
            if isinstance(answer, Empty):
                continue
            if not isinstance(answer, Assigned):
                self.wrong.append((way, answer))
                continue
            held = answer.assignment
            began = time.monotonic()
            done = client.release(held.id, agent, version=held.version)
            self.waits.append((began, time.monotonic() - began, way))
            if not isinstance(done, Finished):
                self.wrong.append((way, done))

    def go_on(self, seconds: float = SECONDS) -> tuple[float, float]:
        """Let them work for so long: the 99th percentile and the longest of what they waited."""
        return self.during(time.monotonic(), time.monotonic() + seconds)

    def during(self, began: float, ends: float) -> tuple[float, float]:
        wait_until(lambda: time.monotonic() >= ends, "the time", seconds=ends - began + 5)
        waits = [seconds for at, seconds, _ in list(self.waits) if began <= at < ends]
        return statistics.quantiles(waits, n=100)[98], max(waits)


@pytest.fixture
def stack(empty_database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as keep:
        made = Stack(empty_database_url, redis_url, tmp_path, keep)
        yield made
        for each in made.started:
            each.ask_to_end()


@dataclass
class Rolling:
    """A stack whose processes are replaced one by one under callers."""

    old: Release
    new: Release
    callers: Callers
    ports: list[int]
    running: dict[str, Process]
    found: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By step: the 99th percentile and the longest of what callers waited, in seconds."""

    def upgraded(self) -> None:
        """Replace every process, in the order of docs/how-to/upgrade.md."""
        self._maintenance(self.new)
        self._sequencers(self.new)
        self._gateways(self.new)
        self.found["this release alone"] = self.callers.go_on()

    def put_back(self) -> None:
        """The other way round."""
        self._gateways(self.old)
        self._sequencers(self.old)
        self._maintenance(self.old)
        self.found["release 0.1.0 again"] = self.callers.go_on()

    def _maintenance(self, to: Release) -> None:
        with self.step(f"maintenance is {to.name}"):
            self.running["maintenance"].stop()
            self.running["maintenance"] = to.maintenance()

    def _sequencers(self, to: Release) -> None:
        with self.step(f"the standby is {to.name}"):
            self.running["standby"].stop()
            self.running["standby"] = to.sequencer()
        with self.step(f"the leader is {to.name}"):
            self.running["leader"].stop()
            self.running["leader"] = self.running["standby"]
            self.running["standby"] = to.sequencer()

    def _gateways(self, to: Release) -> None:
        for port in self.ports:
            with self.step(f"the gateway at {port} is {to.name}"):
                self.running[f"gateway {port}"].stop()
                self.running[f"gateway {port}"] = to.gateway(port)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Within: a process is replaced; what callers wait meanwhile and for a time after counts."""
        began = time.monotonic()
        yield
        self.found[what] = self.callers.during(began, time.monotonic() + SECONDS / 2)


@pytest.mark.timeout(600)
def test_every_process_is_replaced_and_put_back_and_no_answer_is_later_than_a_second(
    stack: Stack, tmp_path: Path
) -> None:
    old, new = Release(stack, OLD), Release(stack, None)
    environment = {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}
    run_old(environment, tmp_path, "schema", "migrate")
    with stack.engine.begin() as connection:
        demo.seed(connection, users=2000, seed=7, now=datetime.now(UTC))
    token = run_old(environment, tmp_path, "token", "create", "frontend").strip()
    running = {"maintenance": old.maintenance(), "leader": old.sequencer()}
    wait_until(lambda: "leading" in running["leader"].said(), "a leader")
    running["standby"] = old.sequencer()
    ports = [free_port(), free_port()]
    running |= {f"gateway {each}": old.gateway(each) for each in ports}
    run_old(environment, tmp_path, "regenerate", "--wait")
    with (
        proxy([f"{LOOPBACK}:{each}" for each in ports], tmp_path) as url,
        Callers(url, token, stack) as callers,
    ):
        rolling = Rolling(old, new, callers, ports, running)
        callers.go_on(2.0)
        rolling.found["release 0.1.0 alone"] = callers.go_on()
        with rolling.step("schema migrate"):
            migrate.upgrade(stack.database_url)
        rolling.upgraded()
        rolling.put_back()
    for what, (p99, longest) in rolling.found.items():
        print(f"{what:40} p99 {1000 * p99:6.1f} ms, longest {1000 * longest:6.1f} ms")
    assert callers.wrong == []
    assert max(longest for _, longest in rolling.found.values()) < LATE_SECONDS
    waits = [seconds for _, seconds, _ in callers.waits]
    idle = max(rolling.found[f"{each} alone"][0] for each in ("release 0.1.0", "this release"))
    assert statistics.quantiles(waits, n=100)[98] < 2 * idle
    stack.assert_healthy()


def run_old(environment: Mapping[str, str], folder: Path, *words: str) -> str:
    """The command of release 0.1.0, typed: what it writes."""
    assert OLD is not None
    done = subprocess.run(
        [OLD, "-m", "assignment_workers", *words],
        env={**os.environ, **environment},
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
