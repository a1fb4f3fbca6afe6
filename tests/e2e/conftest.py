"""One stack with a gateway for the clients in other languages, and Node to run them with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import text

from tests.e2e.browser import CHROMIUM
from tests.e2e.node import CLIENT, Node
from tests.gateway.serving import serving
from tests.gateway.stage import Gateway
from tests.support.root import ROOT
from tests.support.servers import free_port

LEASE_SECONDS = 6
"""Long enough for a slow machine between two moves, short enough to see it lapse."""


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the packages of our lock files and the client built; fails where they are not."""
    found = Node()
    found.require(CLIENT / "dist/index.js", newer_than=(CLIENT / "src").iterdir())
    found.require(ROOT / "examples/celery-node/node_modules/celery-node/package.json")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a module: each opens a context of its own.

    While it is open an event loop runs in this thread, and no other test could begin one.
    """
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def page_port() -> int:
    """Where the dialer page is served, for the gateway to know."""
    return free_port()


@pytest.fixture(scope="session")
def gateway(
    postgres_server: str,
    migrated_template: str,
    valkey_server: str,
    page_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """Nobody is in `outstanding_requests`."""
    with serving(
        "e2e",
        postgres_server,
        migrated_template,
        valkey_server,
        tmp_path_factory.mktemp("e2e"),
        redis_database=1,
        lease_seconds=str(LEASE_SECONDS),
        gateway_origins=f"http://127.0.0.1:{page_port}",
    ) as found:
        with found.stack.engine.begin() as connection:
            connection.execute(text("UPDATE crm.users SET is_enabled = false WHERE id % 2 = 1"))
        found.stack.regenerate(found.stack.client())
        yield found
