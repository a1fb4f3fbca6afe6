"""Takes the pictures of the documentation, on a stack of its own: `make screenshots`."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from assignment_workers.client import Assigned
from assignment_workers.runtime import demo
from benchmarks.stage import servers
from tests.e2e.node import ROOT
from tests.gateway.stage import free_port
from tests.processes import Stack, running, wait_until

IMAGES = ROOT / "docs" / "images"
LOGIN = ("flower", "a password")
SIZE = (1280, 720)


def main() -> int:
    """Start it all, let some agents work, and look."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium is installed here", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with (
        servers() as at,
        tempfile.TemporaryDirectory() as folder,
        running(at.database_url, at.redis_url, Path(folder)) as stack,
    ):
        with stack.engine.begin() as connection:
            demo.seed(connection, users=5000, seed=7, now=datetime.now(UTC))
        flower, gateway = free_port(), free_port()
        for name in ("sequencer", "sequencer", "maintenance", "beat"):
            stack.start(name)
        stack.start("flower", flower_port=str(flower), flower_basic_auth=":".join(LOGIN))
        stack.start(
            "gateway",
            gateway_port=str(gateway),
            gateway_tokens="off",
            embedded="true",
            flower_port=str(flower),
        )
        for port, path in ((flower, "/healthcheck"), (gateway, "/healthz")):
            wait_until(partial(_answers, port, path), f"port {port}")
        _work(stack)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            width, height = SIZE
            page = browser.new_context(
                viewport={"width": width, "height": height},
                http_credentials={"username": LOGIN[0], "password": LOGIN[1]},
            ).new_page()
            _look(page, f"http://127.0.0.1:{flower}", f"http://127.0.0.1:{gateway}")
            browser.close()
    return 0


def _work(stack: Stack) -> None:
    client = stack.client()
    stack.wait_for_leader()
    stack.regenerate(client)
    for agent in range(1, 31):
        answer = client.request_next(agent)
        assert isinstance(answer, Assigned), answer
        held = answer.assignment
        if agent % 3:
            client.complete(held.id, agent, "no_answer", version=held.version)
        if agent % 7 == 0:
            client.release(held.id, 99)
        time.sleep(0.1)
    for name in ("doctor.examine", "queue.check_levels", "generation.tend"):
        client.send_again(name, (), {}, "maintenance")
    wait_until(
        lambda: stack.value("SELECT count(*) FROM assignment.findings") > 0, "the doctor's findings"
    )


def _look(page: Page, flower: str, gateway: str) -> None:
    page.goto(f"{flower}/workers")
    page.wait_for_selector("tbody tr td")
    _take(page, "flower-workers")
    page.goto(f"{flower}/tasks")
    page.wait_for_selector("a[href*='/task/']")
    _take(page, "flower-tasks")
    row = page.locator("#tasks-table tbody tr", has_text="request_many").first
    row.locator("a[href*='/task/']").click()
    page.wait_for_url("**/task/**")
    _take(page, "flower-task")
    page.goto(gateway)
    page.wait_for_selector("#live[data-live=yes]")
    _take(page, "dashboard")
    page.goto(f"{gateway}/queues/unsigned_users")
    page.wait_for_selector("#live[data-live=yes]")
    _take(page, "dashboard-queue")


def _take(page: Page, name: str) -> None:
    page.wait_for_timeout(500)
    page.screenshot(path=IMAGES / f"{name}.png")
    print(f"docs/images/{name}.png")


def _answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
