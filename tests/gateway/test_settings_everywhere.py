"""Calling hours changed on the dashboard: every process obeys at once, and the audit shows it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from assignment_workers.assignment import jobs
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.generations.regenerate import regenerate
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.settings_versions import current, version_of
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings
from assignment_workers.tasks import create_app
from assignment_workers.tasks.maintenance import send_publish
from tests.gateway.browsing import HTML, fetch, form, signed_in
from tests.gateway.serving import COMMAND_KEY, new_tokens
from tests.gateway.stage import Gateway
from tests.support.celery_programs import ended
from tests.support.processes import Stack, running, wait_until
from tests.support.servers import free_port
from tests.support.world import BOTH, OUTSTANDING, UNSIGNED, User, World, opened, outstanding

GIVEN = {"command_key": COMMAND_KEY, "lanes": f"outstanding={OUTSTANDING}"}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def never(at: datetime) -> str:
    """Calling hours that are closed for days from this instant, wherever the user is."""
    return f"{DAYS[(at.weekday() + 4) % 7]} 09:00-17:00"


def fill(world: World) -> None:
    world.add_agents(*range(1, 9))
    phones = {each: f"0161496{each:04}" for each in range(1, 26)}
    world.add_users([User(each, each, phone=phones[each]) for each in range(1, 6)])
    world.add_users([replace(outstanding(each), phone=phones[each]) for each in range(21, 26)])
    world.regenerate()


def begin(stack: Stack) -> tuple[Gateway, Gateway]:
    """Two lanes, each with its sequencer, and two gateways."""
    tokens = new_tokens(stack)
    for lane in ("default", "outstanding"):
        stack.start("sequencer", "--lane", lane, **GIVEN)
    ports = free_port(), free_port()
    for port in ports:
        stack.start("gateway", gateway_port=str(port), **GIVEN)
    first, second = (Gateway(stack, port, tokens) for port in ports)
    for gateway in (first, second):
        wait_until(partial(is_ready, gateway), "a gateway to be ready")
    wait_until(
        lambda: (
            stack.value(
                "SELECT count(*) FROM assignment.sequencer NATURAL JOIN assignment.sequencer_signs"
                " WHERE last_probe_at > since"
            )
            == 2
        ),
        "both lanes to be led",
    )
    return first, second


def is_ready(gateway: Gateway) -> bool:
    try:
        return gateway.get("/readyz", bearer=None).status == 200
    except OSError:
        return False


def ask(gateway: Gateway, agent: int, queue: str) -> dict[str, Any]:
    return dict(gateway.post("/v1/requests", {"agent_id": agent, "queue": queue}).json)


@contextmanager
def building(stack: Stack) -> Iterator[list[int]]:
    """A build that has read the settings and is not done before the block is; then its number."""
    built: list[int] = []
    read, proceed = threading.Event(), threading.Event()
    environment = Settings.from_environment({})

    def work(given: Work) -> Counts:
        settings = current(given.connection, loaded(), environment)
        number, _ = regenerate(
            given,
            loaded(),
            None,
            policies_of(loaded(), settings)[UNSIGNED],
            trigger="hand",
            settings_version=version_of(settings),
        )
        read.set()
        assert proceed.wait(60)
        built.append(number)
        return {"generation": number}

    job = Job("queue.regenerate", "hand", queue=UNSIGNED)
    thread = threading.Thread(target=lambda: jobs.run(stack.engine, job, work))
    thread.start()
    assert read.wait(60)
    try:
        yield built
    finally:
        proceed.set()
        thread.join(60)


def test_the_next_claim_in_every_process_obeys_a_change_on_the_dashboard(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with running(database_url, redis_url, tmp_path) as stack, opened(database_url) as world:
        fill(world)
        closed = never(world.now)
        first, second = begin(stack)
        assert ask(first, 1, UNSIGNED)["outcome"] == "assigned"
        assert ask(second, 2, OUTSTANDING)["outcome"] == "assigned"
        said = {"name": "calling_hours", "value": closed, "queue": "", "team": "", "why": "a storm"}
        with building(stack) as built:
            assert form(first, "/act/change_setting", said) == 303
            _closed_everywhere(first, second)
        (number,) = built
        settings = Settings.from_environment(
            {
                "REDIS_URL": redis_url,
                "ASSIGNMENT_WORKERS_LANES": GIVEN["lanes"],
                "ASSIGNMENT_WORKERS_COMMAND_KEY": COMMAND_KEY,
            }
        )
        with ended(create_app(settings)) as app:
            send_publish(app, number, UNSIGNED)
        sql = "SELECT state, settings_version FROM assignment.generations WHERE id = :number"
        wait_until(
            lambda: [tuple(each) for each in stack.rows(sql, number=number)] == [("published", 1)],
            "the build of the version before to be published",
        )
        _closed_everywhere(first, second)
        _is_audited(second, closed)
        _wrong_is_refused(second, said)
        assert form(second, "/act/change_setting", said | {"value": ""}) == 303
        assert ask(first, 4, OUTSTANDING)["outcome"] == "assigned"


def _closed_everywhere(*gateways: Gateway) -> None:
    for gateway, queue in itertools.product(gateways, BOTH):
        answer = ask(gateway, 3, queue)
        assert (answer["outcome"], answer["why"]) == ("empty", {queue: "outside_calling_hours"})


def _is_audited(gateway: Gateway, closed: str) -> None:
    newest = gateway.get("/v1/settings/versions?most=1", bearer="operator").json[0]
    assert (newest["version"], newest["why"]) == (2, "a storm")
    (change,) = newest["changes"]
    assert (change["name"], change["before"], change["after"]) == ("calling_hours", None, closed)
    page = fetch(gateway, "/settings", HTML, {"Cookie": signed_in(gateway, "operator")})[1]
    assert "a storm" in page
    assert closed in page
    (action,) = gateway.stack.rows(
        "SELECT subject, outcome, who FROM assignment.operator_actions"
        " WHERE action = 'change_setting'"
    )
    assert action[:2] == ("calling_hours", "done: version 2")
    assert newest["who"] == action[2]


def _wrong_is_refused(gateway: Gateway, said: dict[str, str]) -> None:
    assert form(gateway, "/act/change_setting", said | {"value": "nine to five"}) == 303
    (outcome,) = gateway.stack.rows(
        "SELECT outcome FROM assignment.operator_actions ORDER BY id DESC LIMIT 1"
    )[0]
    assert outcome.startswith("refused: calling_hours='nine to five': 'nine to five': days and")
    assert "\n" not in outcome
    assert gateway.get("/v1/settings", bearer="supervisor").json["version"] == 2
