"""A live stack for the tests of one file, and a browser in which an operator has signed in."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from assignment_workers.assignment.dead_letters import store_dead_letter
from tests.e2e.dashboard.looking import signed_in, visit
from tests.gateway.serving import serving
from tests.gateway.stage import Gateway


@pytest.fixture(scope="module")
def gateway(
    postgres_server: str,
    migrated_template: str,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A live stack with beat. Agents 1 to 9 have asked; some hold, some have ended in each way."""
    with serving(
        "pages",
        postgres_server,
        migrated_template,
        valkey_server,
        tmp_path_factory.mktemp("pages"),
        redis_database=2,
    ) as found:
        found.stack.start("beat")
        holds = {agent: found.assigned(agent) for agent in range(1, 10)}
        for agent, move in ((1, "complete"), (2, "complete"), (3, "skip"), (4, "release")):
            body = {"agent_id": agent} | ({"outcome": "no_answer"} if move == "complete" else {})
            assert found.post(f"/v1/assignments/{holds[agent]['id']}/{move}", body).status == 200
        store_dead_letter(
            found.stack.engine,
            celery_queue="assignment",
            task="assignment.expire",
            task_id="1",
            body=json.dumps({"args": [], "kwargs": {}}),
            error="refused: <b>not</b> a tag",
        )
        yield found


@pytest.fixture(scope="module")
def operator(browser: Browser, gateway: Gateway) -> Iterator[BrowserContext]:
    """A browser in which an operator has signed in."""
    with browser.new_context() as context:
        signed_in(context, gateway)
        yield context


@pytest.fixture
def page(operator: BrowserContext, gateway: Gateway) -> Iterator[Page]:
    """The overview, live, where no script went wrong and nothing was refused to it."""
    made = operator.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda said: errors.append(said.text) if "Security" in said.text else None)
    visit(made, gateway)
    yield made
    made.close()
    assert errors == []
