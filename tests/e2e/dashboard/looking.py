"""A browser that looks at the dashboard and acts on it, and a program in its place."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import BrowserContext, Page, expect

from assignment_workers.gateway.auth import sessions
from tests.gateway.stage import Gateway
from tests.support.processes import wait_until
from tests.support.root import ROOT

AXE = ROOT / "tests/e2e/node_modules/axe-core/axe.min.js"
VIOLATIONS = "axe.run({resultTypes: ['violations']}).then((run) => run.violations)"
SOON = 2_000
"""Milliseconds within which what happens is shown."""
WHY = "a test of the dashboard"


def sign_in(page: Page, gateway: Gateway, bearer: str, path: str = "/") -> None:
    """By keyboard alone: the field has the focus."""
    page.goto(gateway.url + path)
    expect(page.get_by_label("Token of")).to_be_focused()
    page.keyboard.type(gateway.tokens.get(bearer, bearer))
    page.keyboard.press("Enter")


def signed_in(context: BrowserContext, gateway: Gateway) -> Page:
    """A page on which an operator has signed in, and sees the overview."""
    page = context.new_page()
    sign_in(page, gateway, "operator")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    expect(page.locator("#live")).to_have_text("Live")
    return page


def visit(page: Page, gateway: Gateway, path: str = "/") -> None:
    """Open a page, and wait until it is live."""
    page.goto(gateway.url + path)
    expect(page.locator("#live")).to_have_text("Live")


def figure(page: Page, name: str) -> str:
    return page.locator(f'[data-figure="{name}"]').inner_text().split("\n")[0].strip()


def agrees(page: Page, name: str, told: Callable[[], object]) -> None:
    """Wait, at most 15 seconds, until what the page shows of this name begins with what `told` gives.

    Both are read again each time: an offer may lapse and an answer grow too old to be counted in
    between, however long before this test the stack was started.
    """

    def same() -> bool:
        read = told()
        words = f"{read:,}" if isinstance(read, int) else str(read)
        return (figure(page, name) + " ").startswith(f"{words} ")

    wait_until(same, f"{name} to be what the database says", seconds=15.0)


def paths(gateway: Gateway) -> list[str]:
    """A page of each kind."""
    hold = gateway.stack.rows("SELECT id, user_id FROM assignment.assignments WHERE agent_id = 1")[
        0
    ]
    race = provoke(gateway, gateway.assigned(20))
    return [
        "/",
        "/queues/unsigned_users",
        "/queues/unsigned_users?period=week",
        "/engine",
        "/wall",
        "/holds",
        "/agents",
        "/agents?state=holding&sort=lease",
        "/agents/1",
        f"/users/{hold.user_id}",
        f"/assignments/{hold.id}",
        "/jobs",
        "/jobs/queue.regenerate",
        "/races",
        f"/events/{race}",
        "/dead-letters",
        "/dead-letters/1",
        "/quarantine",
        "/closed",
        "/do-not-contact",
        "/report?period=hour",
        "/login",
        "/users/999999999",
    ]


def provoke(gateway: Gateway, hold: dict[str, Any]) -> int:
    """A move by an agent who does not hold it: the number of the race's event."""
    answer = gateway.post(f"/v1/assignments/{hold['id']}/release", {"agent_id": 90})
    assert answer.status == 409
    found = gateway.stack.value(
        "SELECT max(id) FROM assignment.events WHERE kind = 'ASSIGNMENT_RACE_CONDITION'"
    )
    return int(found)


def post(
    gateway: Gateway, path: str, form: dict[str, str], *, cookie: str = "", site: str | None = None
) -> tuple[int, str]:
    """Send a form as a browser would, or as another site would make it: status, and where to."""
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
    headers |= {"Cookie": f"assignment_workers={cookie}"} if cookie else {}
    headers |= {"Sec-Fetch-Site": site} if site else {}
    try:
        connection.request("POST", path, urlencode(form), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers.get("location", "")
    finally:
        connection.close()


def cookie_of(page: Page) -> str:
    (cookie,) = page.context.cookies()
    return str(cookie["value"])


def session_of(gateway: Gateway, bearer: str) -> str:
    """The cookie of a new session that this token opened."""
    token = gateway.tokens[bearer].split("_")[1]
    with gateway.stack.engine.begin() as connection:
        made = sessions.begin(connection, token=token)
    assert made is not None
    return made


def proof_of(page: Page) -> str:
    return str(page.locator("input[name=proof]").first.input_value())


def act(page: Page, button: str, **fields: str) -> str:
    """Do something from the page: what it says came of it."""
    form = page.locator("form", has=page.get_by_role("button", name=button, exact=True))
    for name, value in fields.items():
        form.locator(f"input[name={name}]").fill(value)
    form.get_by_label("Why").fill(WHY)
    form.get_by_label("Why").press("Enter")
    expect(page.locator("#said")).to_be_visible()
    return page.locator("#said strong").inner_text()
