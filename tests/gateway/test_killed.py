"""Gateways are killed in the middle of hundreds of requests: every agent gets one answer to each."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path

import pytest

from assignment_workers.client import Assigned, Finished, HttpClient, Unavailable
from assignment_workers.gateway.auth import tokens
from tests.gateway.stage import Gateway
from tests.support.processes import Process, Stack, running, wait_until
from tests.support.servers import free_port

AGENTS = 25
REQUESTS = 40 if "EVERY_ROW" in os.environ else 16
"""Of each agent: a thousand together by `make long`."""
KILL_AFTER = tuple(AGENTS * REQUESTS * part // 20 for part in (3, 9, 15))
DESERTERS = range(AGENTS + 1, AGENTS + 11)
"""Agents who ask a gateway once and go when it is killed."""
LEASE = timedelta(seconds=12)
SETTINGS = {"lease_seconds": str(LEASE.total_seconds())}


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as found:
        found.start("sequencer", **SETTINGS)
        found.built()
        yield found


class Call:
    """One agent's requests, each through the first gateway that answers."""

    def __init__(self, agent: int, clients: list[HttpClient]) -> None:
        self.agent = agent
        self.told: dict[str, str] = {}
        self.wrong: list[object] = []
        self._clients = clients
        self.thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        for number in range(REQUESTS):
            name = f"{self.agent}-{number}"
            answer = self._ask(name)
            if not isinstance(answer, Assigned):
                self.wrong.append(answer)
                continue
            held = answer.assignment
            self.told[name] = str(held.id)
            done = self._release(held.id, held.version)
            if not isinstance(done, Finished):
                self.wrong.append(done)

    def _ask(self, name: str) -> object:
        for client in self._clients * 10:
            answer = client.request_next(self.agent, request_id=name, timeout=timedelta(seconds=3))
            if not isinstance(answer, Unavailable):
                return answer
        return answer

    def _release(self, assignment: object, version: int) -> object:
        for client in self._clients * 10:
            answer = client.release(
                str(assignment), self.agent, version=version, timeout=timedelta(seconds=3)
            )
            if not isinstance(answer, Unavailable):
                return answer
        return answer


@pytest.mark.timeout(180)
def test_hundreds_of_requests_through_gateways_that_are_killed(stack: Stack) -> None:
    with stack.engine.begin() as connection:
        token = tokens.create(connection, "frontend")
    ports = [free_port(), free_port()]
    gateways = [start(stack, port, token) for port in ports]
    clients = [HttpClient(f"http://127.0.0.1:{port}", token=token) for port in ports]
    # Half of the agents know both gateways, half wait until theirs is back.
    calls = [Call(agent, clients[: 1 + agent % 2]) for agent in range(1, AGENTS + 1)]
    for call in calls:
        call.thread.start()

    def answered() -> int:
        return sum(len(call.told) for call in calls)

    deserting: list[threading.Thread] = []
    for place, after in enumerate(KILL_AFTER):
        wait_until(lambda: answered() >= after, f"{after} answers", seconds=60)  # noqa: B023
        holding, *dispatcher = DESERTERS[place * 3 : place * 3 + 3]
        desert(ports[0], token, holding)  # the answer came; two more are killed in the asking
        leaving = [
            threading.Thread(target=desert, args=(ports[0], token, agent)) for agent in dispatcher
        ]
        for thread in leaving:
            thread.start()
        deserting += leaving
        gateways[0].popen.kill()
        gateways[0].popen.wait()
        gateways[0] = start(stack, ports[0], token)
    for thread in [call.thread for call in calls] + deserting:
        thread.join(90)
    for client in clients:
        client.close()

    assert [each for call in calls for each in call.wrong] == []
    told = {name: each for call in calls for name, each in call.told.items()}
    assert len(told) == AGENTS * REQUESTS
    kept = stack.rows("SELECT request_id, assignment_id::text AS id FROM assignment.requests")
    assert {row.request_id: row.id for row in kept if row.request_id in told} == told
    assert_every_hold_ends(stack)
    stack.assert_healthy(**SETTINGS)


def start(stack: Stack, port: int, token: str) -> Process:
    process = stack.start(
        "gateway", gateway_port=str(port), gateway_agent_rate="1000", gateway_token_rate="10000"
    )
    found = Gateway(stack, port, {"frontend": token})

    def ready() -> bool:
        assert process.popen.poll() is None, process.said()
        try:
            return found.get("/healthz", bearer=None).status == 200
        except OSError:
            return False

    wait_until(ready, "the gateway to answer")
    return process


def desert(port: int, token: str, agent: int) -> None:
    """Ask once; whatever comes of it, the agent is never heard of again."""
    gateway = Gateway(None, port, {"frontend": token})  # type: ignore[arg-type]
    with contextlib.suppress(OSError, HTTPException):
        gateway.post("/v1/requests", {"agent_id": agent})


def assert_every_hold_ends(stack: Stack) -> None:
    """No hold outlives its lease by more than the next claim."""
    client = stack.client()
    active = "SELECT count(*) FROM assignment.assignments WHERE state = 'active'"

    def over() -> bool:
        answer = client.request_next(1)
        assert isinstance(answer, Assigned)
        client.release(answer.assignment.id, 1)
        return bool(stack.value(active) == 0)

    wait_until(over, "every hold to end", seconds=LEASE.total_seconds() + 5)
    ended = stack.rows(
        "SELECT ended_at - lease_expires_at AS late FROM assignment.assignments"
        " WHERE state = 'expired'"
    )
    assert len(ended) >= len(KILL_AFTER)
    assert max(row.late for row in ended) < timedelta(seconds=5)
