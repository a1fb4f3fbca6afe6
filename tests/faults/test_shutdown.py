"""Who is asked to end hands over: a gateway behind a proxy loses no answer, a leader takes a moment."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from assignment_workers.devstack.ports import LOOPBACK
from assignment_workers.gateway.auth import tokens
from tests.support.processes import Agents, Process, Stack, running, wait_until
from tests.support.proxy import HAPROXY, proxy
from tests.support.servers import free_port

HANDED_OVER_SECONDS = 1.0
SLACK = 1.0
"""Seconds that a machine busy with other tests may take on top."""


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        made.start("sequencer")
        made.built()
        yield made


class Calls:
    """Agents who ask and release without pause through a proxy.

    A call that is cut off is sent again, once, as every client of ours does.
    """

    def __init__(self, url: str, token: str, count: int) -> None:
        self.wrong: list[object] = []
        self.cut: list[httpx.RemoteProtocolError] = []
        self.answered = 0
        self._stop = threading.Event()
        self._url, self._token = url, token
        self._threads = [threading.Thread(target=self._work, args=[n]) for n in range(1, count + 1)]

    def __enter__(self) -> Calls:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(60)

    def _work(self, agent: int) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=30) as client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                body = {"agent_id": agent, "request_id": f"{agent}-{number}"}
                try:
                    answer = self._post(client, "/v1/requests", body)
                    held = answer.json()["assignment"]
                    path = f"/v1/assignments/{held['id']}/release"
                    ended = self._post(client, path, {"agent_id": agent})
                    assert ended.json()["outcome"] == "released", ended.text
                except (httpx.HTTPError, AssertionError, KeyError, ValueError) as error:
                    self.wrong.append(error)
                    return
                self.answered += 2

    def _post(self, client: httpx.Client, path: str, body: dict[str, object]) -> httpx.Response:
        try:
            return client.post(path, json=body)
        except httpx.RemoteProtocolError as error:
            self.cut.append(error)
            return client.post(path, json=body)


@pytest.mark.skipif(not HAPROXY.exists(), reason="needs HAProxy (Debian: apt install haproxy)")
def test_gateways_are_replaced_one_by_one_behind_a_proxy_and_no_answer_is_lost(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.engine.begin() as connection:
        token, watching = (tokens.create(connection, role) for role in ("frontend", "operator"))
    ports = [free_port(), free_port()]
    gateways = [gateway(stack, each) for each in ports]
    with proxy([f"{LOOPBACK}:{each}" for each in ports], tmp_path) as url:
        ready(url)
        with Calls(url, token, 8) as calls:
            for place, port in enumerate(ports):
                goes_on(calls)
                assert gateways[place].stop() == 0
                goes_on(calls)
                gateways[place] = gateway(stack, port)
                wait_until(
                    partial(has_its_share, calls, port, watching), "the proxy to count it in again"
                )
    assert calls.wrong == []
    # The proxy cuts off only what takes longer than it needs to see that a gateway has gone: 1 s.
    assert len(calls.cut) <= 2
    stack.assert_healthy()


def gateway(stack: Stack, port: int) -> Process:
    """A gateway that is ready."""
    made = stack.start("gateway", gateway_port=str(port), gateway_agent_rate="2000")
    ready(f"http://{LOOPBACK}:{port}")
    return made


def ready(url: str) -> None:
    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    wait_until(is_ready, "a gateway to be ready")


def served(port: int, token: str) -> int:
    """How many calls this gateway has answered."""
    headers = {"Authorization": f"Bearer {token}"}
    text = httpx.get(f"http://{LOOPBACK}:{port}/metrics", headers=headers).text
    counts = re.findall(r"(?m)^assignment_workers_gateway_answers_total\S* (\S+)$", text)
    return round(sum(map(float, counts)))


def has_its_share(calls: Calls, port: int, token: str) -> bool:
    return bool(calls.wrong) or served(port, token) > 20


def goes_on(calls: Calls) -> None:
    seen = calls.answered
    wait_until(lambda: calls.wrong or calls.answered > seen + 50, "calls to be answered")


def test_a_leader_that_is_asked_to_end_hands_over_within_a_second(stack: Stack) -> None:
    leader, standby = stack.started[0], stack.start("sequencer")
    wait_until(lambda: "standing_by" in standby.said(), "a standby")
    with Agents(stack, 8) as agents:
        wait_until(lambda: len(agents.answered) > 50, "work")
        term, began = stack.term(), time.monotonic()
        assert leader.ask_to_end()
        wait_until(lambda: stack.term() > term, "the standby to lead")
        wait_until(lambda: agents.answered[-1][0] > began + 1.5, "work to go on")
    moments = [each[0] for each in agents.answered if each[0] > began - 0.5]
    gap = max(after - before for before, after in itertools.pairwise(moments))
    assert gap < HANDED_OVER_SECONDS + SLACK
    assert agents.unanswered == []
    assert leader.stop() == 0
    stack.assert_healthy()
