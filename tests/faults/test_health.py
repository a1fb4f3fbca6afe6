"""Each process and server is killed, frozen and cut off: every door names it, and is quick.

In the suite a few rows stand for all, several failures at a time; `make health` walks through all.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from assignment_workers.devstack import postgres, valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.runtime.home import Home
from assignment_workers.schema.migrate import upgrade
from assignment_workers.telemetry import PREFIX
from tests.support.commands import type_in
from tests.support.processes import Process, Stack, running, wait_until
from tests.support.root import ROOT
from tests.support.servers import OwnServer, Wire, free_port, wire

ALL = "EVERY_ROW" in os.environ
PROMETHEUS = shutil.which("prometheus")
RULES = ROOT / "ops" / "alerts.yml"
NAMED_SECONDS = {"killed": 5.0, "frozen": 5.0, "cut off": 10.0}
"""Seconds from the failure until every door names the component."""
ANSWER_SECONDS = 3.0
"""Seconds that a door takes at most, whatever is down."""
SLACK = 2.5
"""Seconds that a busy machine may take on top."""
AGAIN_SECONDS = 90.0
"""Seconds until all is good again; an answer `unavailable` is remembered for a minute of them."""
TOKEN = "aw_stack_of-the-health-tests-long-enough-for-a-secret"
DOORS = ("status", "/readyz", "/v1/health", "/metrics")


@dataclass
class Doors:
    """All places that tell the health: the pages of a gateway, and two commands."""

    stack: Stack
    port: int
    folder: Path
    slowest: dict[str, float] = field(default_factory=dict)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))

    def page(self, path: str) -> str:
        """A page of the gateway; an answer with an error is one."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            accept = "text/html" if path == "/" else "*/*"
            headers = {"Authorization": f"Bearer {TOKEN}", "Accept": accept}
            connection.request("GET", path, headers=headers)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """What `status --json` tells."""
        given = {name: each for name, each in os.environ.items() if "ASSIGNMENT" not in name}
        servers = {"DATABASE_URL": self.stack.database_url, "REDIS_URL": self.stack.redis_url}
        done = type_in(("status", "--json"), given | servers, self.folder)
        found: dict[str, Any] = json.loads(done.stdout)["health"]
        assert done.returncode == int(found["state"] in {"down", "unknown"})
        return found

    def named(self, door: str) -> set[str]:
        """The components that this door tells are not good; of the banner, the one that it names."""
        began = time.monotonic()
        told: Any = self.status() if door == "status" else self.page(door)
        took = time.monotonic() - began
        self.slowest[door] = max(self.slowest.get(door, 0.0), took)
        if door == "/metrics":
            return _of_metrics(told)
        said: dict[str, Any] = told if door == "status" else json.loads(told)
        if door == "/readyz":
            assert said["status"] == "ready", "a gateway that can answer `unavailable` stays ready"
            return set(said["wrong"])
        banner = said["banner"]
        wrong = {each["name"] for each in said["components"] if each["state"] != "good"}
        assert (banner["component"] in wrong) if wrong else (banner is None)
        return wrong

    def until_named(self, components: set[str], *, seconds: float) -> float:
        """Ask at every door until each names the components: the seconds that the last needed."""
        began = time.monotonic()

        def ask(door: str) -> float:
            while not components <= (told := self.named(door)):
                left = began + seconds - time.monotonic()
                assert left > 0, f"{door} tells {told} after {seconds} s, and not {components}"
                time.sleep(0.05)
            return time.monotonic() - began

        return max(self.threads.map(ask, DOORS))

    def wrong(self) -> set[str]:
        """What any door names but jobs: one that failed is done again when it is due."""
        named = set().union(*self.threads.map(self.named, DOORS))
        return {each for each in named if not each.startswith("job:")}


def _of_metrics(text: str) -> set[str]:
    """Each component has one state there, and is named where that is not good."""
    states = [
        (sample.labels["component"], sample.labels["state"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name == f"{PREFIX}_component_state" and sample.value == 1.0
    ]
    known = dict(states)
    assert len(states) == len(known)
    assert len(states) > 10 or known["postgresql"] == "down", "some are only in the database"
    return {component for component, state in states if state != "good"}


@dataclass
class Part:
    """A process that a row does something to, with the wires to its servers."""

    role: str
    process: Process
    wires: tuple[Wire, Wire]


@dataclass
class Whole:
    """A stack of all processes, on servers of its own; a second gateway watches."""

    stack: Stack
    doors: Doors
    servers: dict[str, OwnServer]
    wires: dict[str, Wire]
    """Of everybody, by the server."""
    parts: dict[str, Part] = field(default_factory=dict)
    keep: ExitStack = field(default_factory=ExitStack)

    def start(self, name: str, role: str) -> None:
        """Start a process over wires of its own, which lead into those of everybody."""
        stack = self.stack
        whole = stack.database_url, stack.redis_url
        made = self.keep.enter_context(wire(whole[0])), self.keep.enter_context(wire(whole[1]))
        stack.database_url, stack.redis_url = made[0].url, made[1].url
        settings = {"stack_token": TOKEN, "flower_basic_auth": "a:b"}
        settings |= {"gateway_port": str(free_port()), "flower_port": str(free_port())}
        process = stack.start(role, **settings)
        stack.database_url, stack.redis_url = whole
        self.parts[name] = Part(role, process, made)

    def fail(self, name: str, how: str) -> None:
        """Let a part, or a server, fail."""
        if name in self.servers:
            server = self.servers[name]
            {"killed": server.kill, "frozen": server.freeze, "cut off": self.wires[name].cut}[how]()
            return
        part = self.parts[name]
        match how:
            case "killed":
                part.process.signal(signal.SIGKILL)
            case "frozen":
                part.process.signal(signal.SIGSTOP)
            case _:
                for each in part.wires:
                    each.cut()

    def mend(self, name: str, how: str) -> None:
        """What an operator or a supervisor would do; then everything comes back by itself."""
        if name in self.servers:
            server = self.servers[name]
            {"killed": server.start, "frozen": server.thaw, "cut off": self.wires[name].mend}[how]()
            self.stack.engine.dispose()  # the test's own sessions there may be gone
            return
        part = self.parts[name]
        if how == "frozen":
            part.process.signal(signal.SIGCONT)
        for each in part.wires:
            each.mend()
        self.revive()

    def ask(self) -> None:
        """Ask for a user at the watching gateway: with nobody who leads, that is unavailable."""
        body = json.dumps({"agent_id": 26, "timeout_ms": 500})
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        with closing(HTTPConnection("127.0.0.1", self.doors.port, timeout=20)) as connection:
            connection.request("POST", "/v1/requests", body, headers)
            connection.getresponse().read()

    def revive(self) -> None:
        """Start each process that has ended again, as a supervisor does."""
        for name, part in list(self.parts.items()):
            if part.process.popen.poll() is not None:
                self.start(name, part.role)

    def findings(self) -> list[str]:
        """What the health says of the components that are not good."""
        components = json.loads(self.doors.page("/v1/health"))["components"]
        return [f"{each['name']}: {each['finding']}" for each in components if each["finding"]]

    def settle(self, when: str) -> None:
        """Wait until everything is good, at every door."""
        ends = time.monotonic() + AGAIN_SECONDS
        while wrong := self.doors.wrong():
            left = ends - time.monotonic()
            assert left > 0, f"not good {when} after {AGAIN_SECONDS} s: {wrong}: {self.findings()}"
            self.revive()


NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def whole(
    test_home: Home, guardian: Guardian, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("health")
    home, number = test_home.path, next(NUMBERS)
    servers = {
        name: OwnServer(partial(prepare, fsync=False), home / f"health-{name}-{number}", guardian)
        for name, prepare in (("postgresql", postgres.prepare), ("redis", valkey.prepare))
    }
    upgrade(servers["postgresql"].url)
    with ExitStack() as keep:
        for each in servers.values():
            keep.callback(each.stop)
        wires = {name: keep.enter_context(wire(each.url)) for name, each in servers.items()}
        stack = keep.enter_context(running(wires["postgresql"].url, wires["redis"].url, folder))
        stack.seed(users=200)
        port = free_port()
        made = Whole(stack, Doors(stack, port, folder), servers, wires, keep=keep)
        for name, role in PARTS.items():
            made.start(name, role)
        watching = {"stack_token": TOKEN, "gateway_port": str(port)}
        stack.start("gateway", **watching)
        stack.wait_for_leader()
        stack.regenerate(stack.client())
        wait_until(lambda: _serves(made.doors), "the watching gateway to serve")
        made.settle("at first")
        yield made


def _serves(doors: Doors) -> bool:
    try:
        return "ready" in doors.page("/healthz") or "alive" in doors.page("/healthz")
    except OSError:
        return False


PARTS = {
    "leader": "sequencer",
    "standby": "sequencer",
    "maintenance": "maintenance",
    "beat": "beat",
    "flower": "flower",
    "gateway": "gateway",
}
NAMES = {
    "postgresql": "postgresql",
    "redis": "broker",
    "standby": "standbys",
    "maintenance": "maintenance",
    "beat": "beat",
    "flower": "flower",
    "gateway": "gateways",
}
"""The component that is named when a part fails, by the part."""
QUICK: list[dict[str, str]] = [
    {"maintenance": "frozen", "beat": "killed", "standby": "killed", "gateway": "cut off"},
    {"postgresql": "frozen"},
    {"redis": "frozen"},
]
"""Rows of the suite: failures at the same time."""
ROWS = QUICK + [
    {name: how} for name in NAMES for how in NAMED_SECONDS if ALL and {name: how} not in QUICK
]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_fails_is_named_at_every_door_and_is_good_again_by_itself(
    whole: Whole, row: dict[str, str]
) -> None:
    whole.settle("before")
    whole.doors.slowest.clear()
    _make_the_standby_stand_by(whole)
    components = {NAMES[each] for each in row}
    within = max(NAMED_SECONDS[how] for how in row.values()) + SLACK
    for name, how in row.items():
        whole.fail(name, how)
    try:
        named = whole.doors.until_named(components, seconds=within)
    finally:
        for name, how in row.items():
            whole.mend(name, how)
    slow = dict(whole.doors.slowest)
    whole.settle("again")
    print(f"{row}: named after {named:.1f} s; slowest {slow}")
    assert max(slow.values()) < ANSWER_SECONDS + SLACK, slow


def _make_the_standby_stand_by(whole: Whole) -> None:
    """The two sequencers may have changed places in an earlier row."""
    pid = whole.stack.value("SELECT leader_pid FROM assignment.sequencer")
    if whole.parts["standby"].process.pid == pid:
        parts = whole.parts
        parts["leader"], parts["standby"] = parts["standby"], parts["leader"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", NAMED_SECONDS if ALL else ["frozen"])
def test_an_only_sequencer_that_fails_is_named(whole: Whole, how: str) -> None:
    """Without a standby nobody is served: the verdict says so, and is right again afterwards."""
    whole.settle("before")
    _make_the_standby_stand_by(whole)
    part = whole.parts.pop("standby")
    assert part.process.stop() == 0
    whole.doors.slowest.clear()
    within = NAMED_SECONDS[how] + SLACK
    whole.fail("leader", how)
    try:
        named = whole.doors.until_named({"leader"}, seconds=within)
        assert json.loads(whole.doors.page("/v1/health"))["state"] == "down"
    finally:
        whole.mend("leader", how)
        whole.start("standby", "sequencer")
    slow = dict(whole.doors.slowest)
    whole.settle("again")
    print(f"leader {how}: named after {named:.1f} s; slowest {slow}")
    assert max(slow.values()) < ANSWER_SECONDS + SLACK, slow


ALERTS: list[tuple[tuple[str, ...], set[str]]] = [
    (
        ("maintenance", "beat", "standby", "gateway"),
        {"MaintenanceDown", "BeatDown", "StandbyLost", "ProcessSilent"},
    ),
    (("postgresql",), {"DatabaseDown"}),
    (("redis",), {"BrokerDown", "ResultsDown"}),
    (("leader",), {"NoLeader", "SequencerSilent", "UnavailableAnswers"}),
]
"""The parts that fail at the same time, and the alerts that fire."""


@pytest.fixture(scope="module")
def prometheus(
    whole: Whole, guardian: Guardian, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], set[str]]]:
    """A Prometheus that scrapes the watching gateway all the time: the alerts that fire now."""
    if PROMETHEUS is None:
        pytest.skip("Prometheus is not installed (Debian: apt install prometheus)")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    scrape = {
        "job_name": "gateways",
        "authorization": {"credentials": TOKEN},
        "static_configs": [{"targets": [f"127.0.0.1:{whole.doors.port}"]}],
    }
    # A scrape that is late makes every `for` begin again: it has the time that a door may take.
    within = f"{ANSWER_SECONDS:.0f}s"
    times = {"scrape_interval": within, "scrape_timeout": within, "evaluation_interval": "1s"}
    config = {"global": times, "rule_files": [str(RULES)], "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )

    def firing() -> set[str]:
        with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/api/v1/alerts")
            told = json.loads(connection.getresponse().read())
        alerts = told["data"]["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def serves() -> bool:
        try:
            return isinstance(firing(), set)
        except (OSError, ValueError):  # it listens before it answers
            return False

    try:
        wait_until(serves, "Prometheus to serve")
        yield firing
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(not ALL, reason="alerts wait for their `for`: `make health`")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("parts", "alerts"), ALERTS, ids=lambda each: " ".join(sorted(each)))
@pytest.mark.parametrize("how", NAMED_SECONDS)
def test_its_alert_fires_in_a_real_prometheus_and_ends_by_itself(
    whole: Whole,
    prometheus: Callable[[], set[str]],
    parts: tuple[str, ...],
    alerts: set[str],
    how: str,
) -> None:
    whole.settle("before")
    wait_until(lambda: not alerts & prometheus(), "the alerts to be silent", seconds=180)
    _make_the_standby_stand_by(whole)
    if "leader" in parts:
        assert whole.parts.pop("standby").process.stop() == 0
    began = time.monotonic()
    for each in parts:
        whole.fail(each, how)
    try:
        while not alerts <= prometheus():
            if "leader" in parts:
                whole.ask()
            assert time.monotonic() - began < 150, (alerts, prometheus(), whole.doors.wrong())
            time.sleep(0.2)
        print(f"{parts} {how}: {sorted(alerts)} fired after {time.monotonic() - began:.0f} s")
    finally:
        for each in parts:
            whole.mend(each, how)
        if "standby" not in whole.parts:
            whole.start("standby", "sequencer")
    whole.settle("again")
    wait_until(lambda: not alerts & prometheus(), "the alerts to end", seconds=180)
