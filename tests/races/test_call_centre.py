"""A call centre at full speed on the real processes, while everything behind it is rebuilt."""

from __future__ import annotations

import os
import random
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.client import Assigned, Client, Empty, Finished, Refused, Unavailable
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings
from tests.support.processes import running, wait_until

AGENTS = 64
SECONDS = 60.0 if "EVERY_ROW" in os.environ else 8.0
"""A minute by `make long`."""
LEASE = timedelta(seconds=3)
OUTCOMES = ("no_answer", "hung_up", "might_complete", "not_interested", "completed_form")


class Agent(threading.Thread):
    """Asks and finishes as fast as it can; now and then skips, gives back, renews or walks away."""

    def __init__(self, client: Client, number: int, ends: float) -> None:
        super().__init__()
        self.number = number
        self.answers: list[object] = []
        self.surprises: list[object] = []
        self._client = client
        self._ends = ends
        self._chance = random.Random(number)

    def run(self) -> None:
        while time.monotonic() < self._ends:
            answer = self._client.request_next(self.number, timeout=timedelta(seconds=30))
            self.answers.append(answer)
            match answer:
                case Assigned(assignment=held):
                    self._finish(held.id, held.version)
                case Empty():
                    time.sleep(0.1)
                case _:
                    self.surprises.append(answer)

    def _finish(self, assignment: object, version: int) -> None:
        client, agent = self._client, self.number
        chance = self._chance.random()
        options = {"version": version, "timeout": timedelta(seconds=30)}
        if chance < 0.02:
            time.sleep(LEASE.total_seconds() + 1)  # the tab was closed: the lease lapses
            return
        if chance < 0.10:
            done = client.skip(assignment, agent, **options)  # type: ignore[arg-type]
        elif chance < 0.20:
            done = client.release(assignment, agent, **options)  # type: ignore[arg-type]
        else:
            if chance < 0.25:
                client.renew(assignment, agent, **options)  # type: ignore[arg-type]
            outcome = self._chance.choice(OUTCOMES)
            done = client.complete(assignment, agent, outcome, **options)  # type: ignore[arg-type]
        match done:
            case Finished():
                pass
            case Refused(code="not_active"):
                pass  # so slow was this machine that the lease had lapsed: the truth, and recorded
            case _:
                self.surprises.append(done)


def rebuild_without_pause(client: Client, ends: float, built: list[object]) -> None:
    """Both dialer queues again and again, and every cleanup between."""
    while time.monotonic() < ends:
        task = client.regenerate()
        assert isinstance(task, str)
        built.append(client.built(task, timeout=timedelta(seconds=60)))
        for job in ("queue.check_levels", "generation.tend", "queue.clean_conversions"):
            client.send_again(job, [], {}, "maintenance")
        for job in ("queue.clean_daily", "scores.age"):
            client.send_again(job, [], {}, "maintenance")
        client.send_again("assignment.expire", [], {}, "assignment")


@pytest.mark.timeout(200)
def test_64_agents_at_full_speed_while_everything_is_rebuilt(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with running(database_url, redis_url, tmp_path) as stack:
        stack.seed(users=5000)
        options = {"lease_seconds": str(LEASE.total_seconds()), "skip_everyone_seconds": "5"}
        stack.start("sequencer", **options)
        stack.start("maintenance", **options)
        client = stack.client()
        stack.wait_for_leader()
        stack.regenerate(client)
        ends = time.monotonic() + SECONDS
        agents = [Agent(client, number, ends) for number in range(1, AGENTS + 1)]
        built: list[object] = []
        rebuilding = threading.Thread(
            target=rebuild_without_pause, args=(stack.client(), ends, built)
        )
        for thread in (rebuilding, *agents):
            thread.start()
        for thread in (rebuilding, *agents):
            thread.join(90)
        wait_until(
            lambda: (
                not stack.value(
                    "SELECT count(*) FROM assignment.assignments WHERE state = 'active'"
                    " AND lease_expires_at < clock_timestamp() - interval '1 second'"
                )
                or client.send_again("assignment.expire", [], {}, "assignment") is None
            ),
            "every lapsed hold to end",
        )
        settings = Settings.from_environment(
            {
                "ASSIGNMENT_WORKERS_LEASE_SECONDS": str(LEASE.total_seconds()),
                "ASSIGNMENT_WORKERS_SKIP_EVERYONE_SECONDS": "5",
            }
        )
        with stack.connection() as connection:
            breaches = check(
                connection, dialer=loaded(), settings=settings, bound=timedelta(seconds=60)
            )
        assert breaches == []
        with stack.connection() as connection:
            assert [each for each in examine(connection, loaded()) if not each.ok] == []
        assert [each for agent in agents for each in agent.surprises] == []
        assert not any(isinstance(each, Unavailable) for each in built)
        published = stack.value(
            "SELECT count(*) FROM assignment.events WHERE kind = 'generation_published'"
        )
        kinds = dict(
            stack.rows("SELECT state, count(*) FROM assignment.assignments GROUP BY state")
        )
        assert published > 4, "rebuilds went on"
        assert {"completed", "skipped", "released", "expired"} <= kinds.keys()
        assert stack.rows("SELECT task, error FROM assignment.dead_letters") == []
        assert stack.value("SELECT count(*) FROM assignment.job_runs WHERE status = 'failed'") == 0
