"""Of several hosts the primary on the newest timeline is connected to, and one that hangs is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from psycopg.errors import ConnectionTimeout, UndefinedFunction

from assignment_workers.schema.hosts import WRITES, Hosts, Served, among
from tests.support.steady_clock import SteadyClock

SYSTEM = "7400000000000000001"
A, B, C = ({"host": name, "port": "5432"} for name in "abc")


class Server:
    """A server's side of a connection: what it says of itself."""

    def __init__(self, timeline: int | None, system: str = SYSTEM) -> None:
        self.timeline = timeline
        self.system = system
        self.closed = False

    def execute(self, _: str) -> Server:
        if self.timeline is None:
            raise UndefinedFunction("no such function")
        return self

    def fetchone(self) -> tuple[str, str]:
        assert self.timeline is not None
        return self.system, f"{self.timeline:08X}"

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Network:
    """The servers that accept writes, by host; the others refuse."""

    def __init__(self, **timelines: int | None) -> None:
        self.servers = {name: Server(timeline) for name, timeline in timelines.items()}
        self.asked: list[str] = []
        self.hangs: set[str] = set()

    def connect(self, host: Mapping[str, str], **_: Any) -> Any:
        self.asked.append(host["host"])
        if host["host"] in self.hangs:
            raise ConnectionTimeout("connection timeout expired")
        if host["host"] not in self.servers:
            raise psycopg.OperationalError("it does not answer\nas said")
        return self.servers[host["host"]]


@pytest.fixture
def clock() -> SteadyClock:
    return SteadyClock(0.0)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, clock: SteadyClock) -> Hosts:
    monkeypatch.setattr(Hosts, "_watch", lambda *_: None)
    return Hosts([A, B, C], clock)


def test_the_newest_timeline_serves_whatever_the_order(hosts: Hosts) -> None:
    network = Network(a=1, b=3, c=2)
    assert hosts.connect(network.connect) is network.servers["b"]
    assert hosts.primary == B
    assert [each.closed for each in network.servers.values()] == [True, False, True]


def test_the_host_that_served_is_known_for_a_second(hosts: Hosts, clock: SteadyClock) -> None:
    network = Network(b=1)
    hosts.connect(network.connect)
    network.asked.clear()
    hosts.connect(network.connect)
    assert network.asked == ["b"]
    clock.now = 1.5
    hosts.connect(network.connect)
    assert network.asked == ["b", "a", "b", "c"], "another may have been promoted meanwhile"


def test_a_host_that_hangs_is_waited_for_once(hosts: Hosts, clock: SteadyClock) -> None:
    hosts.connect(Network(a=1).connect)
    served = Served(hosts, A)
    moved = [served.has_moved]
    after = Network(c=2)
    after.hangs = {"a"}
    assert hosts.connect(after.connect) is after.servers["c"]
    assert after.asked == ["a", "b", "c"], "a is not waited for twice"
    moved.append(served.has_moved)
    assert moved == [False, True]
    for clock.now, asked in ((2.0, ["b", "c"]), (9.0, ["a", "b", "c"])):
        after.asked.clear()
        assert hosts.connect(after.connect) is after.servers["c"]
        assert after.asked == asked


def test_while_no_host_serves_the_one_that_hangs_is_asked_every_other_time(
    hosts: Hosts, clock: SteadyClock
) -> None:
    """So a standby is found as soon as it is promoted."""
    hosts.connect(Network(a=1).connect)
    before = Network()
    before.hangs = {"a"}
    for clock.now, asked in ((5.0, ["a", "b", "c"]), (6.0, ["b", "c"]), (8.0, ["a", "b", "c"])):
        before.asked.clear()
        with pytest.raises(psycopg.OperationalError):
            hosts.connect(before.connect)
        assert sorted(before.asked) == asked
    clock.now = 9.0
    promoted = Network(b=2)
    promoted.hangs = {"a"}
    assert hosts.connect(promoted.connect) is promoted.servers["b"]


def test_a_standby_that_was_read_only_a_moment_ago_is_asked_again(
    hosts: Hosts, clock: SteadyClock
) -> None:
    """Its primary was killed, and is back as an old one before anybody has looked."""
    hosts.connect(Network(a=1).connect)
    clock.now = 1.5
    both = Network(a=1, b=2)
    assert hosts.connect(both.connect) is both.servers["b"]


def test_an_old_primary_that_comes_back_is_refused_where_the_new_one_was_seen(hosts: Hosts) -> None:
    hosts.connect(Network(b=2).connect)
    zombie = Network(a=1)
    with pytest.raises(psycopg.OperationalError) as told:
        hosts.connect(zombie.connect)
    assert str(told.value) == (
        "a:5432: an old primary: its timeline is 1, and 2 has begun elsewhere;"
        " b:5432: it does not answer; c:5432: it does not answer"
    )
    assert zombie.servers["a"].closed


def test_a_restored_system_begins_its_timelines_anew(hosts: Hosts) -> None:
    hosts.connect(Network(b=5).connect)
    restored = Network(a=1)
    restored.servers["a"].system = "7500000000000000001"
    assert hosts.connect(restored.connect) is restored.servers["a"]


def test_a_server_without_timelines_serves(hosts: Hosts) -> None:
    network = Network(c=None)
    assert hosts.connect(network.connect) is network.servers["c"]


@pytest.mark.parametrize("attributes", [*sorted(WRITES), "any", "prefer-standby", None])
def test_there_is_a_choice_only_where_several_hosts_are_asked_for_their_primary(
    attributes: str | None,
) -> None:
    several = {"host": "a,b", "port": "1", "target_session_attrs": attributes}
    assert (among(several) is not None) == (attributes in WRITES)
    assert among(several) is among(several)
    assert among({**several, "host": "a"}) is None
