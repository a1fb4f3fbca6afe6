"""Takes the pictures of the documentation, on a stack of its own: `make screenshots`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from textwrap import wrap

from playwright.sync_api import Page, sync_playwright

from assignment_workers.client import Assigned
from assignment_workers.devstack import demo
from benchmarks.stage import servers
from tests.e2e.recording import COLUMNS, Line, svg
from tests.support.commands import type_in
from tests.support.pictures import IMAGES, remember
from tests.support.processes import Stack, running, wait_until
from tests.support.servers import free_port

LOGIN = ("flower", "a password")
SIZE = (1400, 900)


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
            wait_until(partial(_answers, port, path), f"port {port}", seconds=90)
        _work(stack)
        _record(stack)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            width, height = SIZE
            page = browser.new_context(
                viewport={"width": width, "height": height},
                http_credentials={"username": LOGIN[0], "password": LOGIN[1]},
            ).new_page()
            _look(page, f"http://127.0.0.1:{flower}", f"http://127.0.0.1:{gateway}")
            browser.close()
    remember()
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


def _record(stack: Stack) -> None:
    """An agent who asks while the dialer queue is rebuilt, as commands that are really typed."""
    environment = {
        **{key: value for key, value in os.environ.items() if "ASSIGNMENT" not in key},
        "DATABASE_URL": stack.database_url,
        "REDIS_URL": stack.redis_url,
    }
    lines: list[Line] = []
    at = 0.5

    def typed(*words: str, lines_at_most: int = 4) -> str:
        nonlocal at
        lines.append(Line(at, f"$ assignment-workers {' '.join(words)}", "typed"))
        begun = time.monotonic()
        ran = type_in(words, environment)
        took = time.monotonic() - begun
        at += min(max(took, 0.8), 3)
        assert ran.returncode == 0, ran.stderr
        said = ran.stdout.splitlines()[:lines_at_most]
        lines.extend(Line(at, part) for each in said for part in wrap(each, COLUMNS))
        at += 1.2
        return ran.stdout

    def noted(text: str) -> None:
        lines.append(Line(at, text, "note"))

    noted("# agent 40 is handed the next user, and calls them")
    offer = typed("request", "40", "--queue", "unsigned_users", lines_at_most=1)
    held = offer.split("assignment ")[1].split()[0]
    typed("accept", held, "--agent", "40", lines_at_most=1)
    noted("# meanwhile the whole dialer queue is rebuilt")
    typed("regenerate", "unsigned_users", "--wait", lines_at_most=1)
    noted("# the hold is untouched; others go on; nobody gets the same user")
    typed("request", "41", "--queue", "unsigned_users", lines_at_most=1)
    typed("complete", held, "--agent", "40", "--outcome", "no_answer", lines_at_most=1)
    assert type_in(("doctor",), environment).returncode == 0
    said = "every guarantee holds"
    lines.append(Line(at, f"$ assignment-workers doctor >/dev/null && echo {said}", "typed"))
    lines.append(Line(at + 1, said))
    path = IMAGES / "recording.svg"
    path.write_text(svg(lines, "An agent holds a user while the dialer queue is rebuilt"))
    print(f"docs/images/{path.name}")


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
    for name, path in (("queue", "queues/unsigned_users"), ("engine", "engine"), ("wall", "wall")):
        page.goto(f"{gateway}/{path}")
        page.wait_for_selector("#live[data-live=yes]")
        _take(page, f"dashboard-{name}")


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
