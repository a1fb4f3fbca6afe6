"""What happens shows soon on every page, and what is sick is named."""

from __future__ import annotations

import json
import os
import re
import signal
from http.client import HTTPConnection

from playwright.sync_api import Page, expect

from tests.e2e.browser import needs_chromium
from tests.e2e.dashboard.looking import SOON, provoke, visit
from tests.gateway.serving import COMMAND_KEY
from tests.gateway.stage import Gateway
from tests.support.processes import Agents
from tests.support.servers import free_port

pytestmark = needs_chromium


def test_a_frozen_sequencer_is_named_on_every_page_with_what_to_do(
    page: Page, gateway: Gateway
) -> None:
    stack = gateway.stack
    term, leader = stack.term(), stack.value("SELECT leader_pid FROM assignment.sequencer")
    banner = page.locator('[data-region="banner"] .banner')
    region = page.locator("#banner")
    expect(region).not_to_contain_text("Sequencer")
    os.kill(leader, signal.SIGSTOP)
    try:
        for path in ("/", "/engine", "/wall"):
            visit(page, gateway, path)
            expect(banner).to_contain_text(
                "Sequencer: the leader gives no sign of life since", timeout=10_000
            )
            expect(banner).to_contain_text("Nobody is handed out")
            expect(banner).to_contain_text(
                "Do now: A standby takes over within 10 s. Without one, restart"
            )
            assert "down" in str(banner.get_attribute("class")).split()
            since = banner.locator("time[data-at]")
            expect(since).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
        link = banner.get_by_role("link", name="In full")
        href = str(link.get_attribute("href"))
        link.click()
        book = page.locator(href.removeprefix("/runbooks"))
        expect(book).to_have_text("Sequencer")
        expect(book).to_be_in_viewport()
        # A page that does not keep itself up to date counts its times on, too.
        expect(region.locator("time[data-since]")).to_have_text(re.compile(r"ago$"))
        expect(since).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    finally:
        os.kill(leader, signal.SIGKILL)
    stack.start("sequencer", command_key=COMMAND_KEY)
    stack.wait_for_leader(after=term)
    visit(page, gateway)
    expect(region).not_to_contain_text("Sequencer", timeout=10_000)


def test_a_race_shows_soon_while_agents_work(page: Page, gateway: Gateway) -> None:
    visit(page, gateway, "/engine")
    with Agents(gateway.stack, 4):
        hold = gateway.assigned(21)
        seen = page.locator('[data-figure="race not_owner"]')
        before = int(seen.inner_text()) if seen.count() else 0
        number = provoke(gateway, hold)
        expect(seen).to_have_text(str(before + 1), timeout=SOON)
        first = page.locator("#races_by_kind .lines a").first
        expect(first).to_have_attribute("href", f"/events/{number}", timeout=SOON)
    first.click()
    for words in ("not_owner", "refused", str(hold["user_id"]), "90"):
        expect(page.locator("#event")).to_contain_text(words)


def test_a_rebuild_that_is_late_shows_soon(page: Page, gateway: Gateway) -> None:
    row = page.locator("#queues tbody tr").first
    expect(row).not_to_contain_text("late")
    moved = "UPDATE assignment.generations SET published_at = published_at {} interval '2 h'"
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(moved.format("-") + " WHERE queue = 'unsigned_users'")
    expect(row).to_contain_text("late", timeout=SOON)
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(moved.format("+") + " WHERE queue = 'unsigned_users'")
    expect(row).not_to_contain_text("late", timeout=SOON)


def test_a_leader_that_is_killed_shows_soon_and_its_successor_tells_what_it_counts(
    page: Page, gateway: Gateway
) -> None:
    stack = gateway.stack
    leader = stack.value("SELECT leader_pid FROM assignment.sequencer")
    term = stack.term()
    visit(page, gateway, "/engine")
    os.kill(leader, signal.SIGKILL)
    expect(page.locator("#sequencer")).to_contain_text("nobody leads", timeout=SOON)
    expect(page.locator("#alarms")).to_contain_text("nobody leads", timeout=SOON)
    port = free_port()
    process = stack.start(
        "sequencer",
        metrics_port=str(port),
        log_format="json",
        log_level="debug",
        command_key=COMMAND_KEY,
    )
    stack.wait_for_leader(after=term)
    expect(page.locator('[data-figure="term"]')).to_have_text(str(term + 1), timeout=SOON)
    expect(page.locator("#alarms")).not_to_contain_text("nobody leads", timeout=SOON)
    hold = gateway.assigned(22)
    provoke(gateway, hold)

    def told() -> dict[str, float]:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    found = told()
    assert found["assignment_workers_sequencer_own_term"] == term + 1
    name = 'assignment_workers_answers_total{outcome="assigned",task="assignment.request_many"}'
    assert found[name] == 1
    assert found['assignment_workers_races_total{kind="not_owner"}'] == 1
    assert found["assignment_workers_turn_seconds_count"] > 2
    lines = [json.loads(line) for line in process.said().splitlines() if line.startswith("{")]
    race = next(each for each in lines if each["event"] == "ASSIGNMENT_RACE_CONDITION")
    expected = {
        "agent_id": 90,
        "user_id": hold["user_id"],
        "error_code": "not_owner",
        "kind": "not_owner",
        "done": "refused",
        "term": term + 1,
        "level": "warning",
    }
    assert expected.items() <= race.items()
    assert re.fullmatch(r"\d+/\d+", race["queue_entry_id"])
    assert race["timestamp"].endswith("Z")
    answered = [each for each in lines if each["event"] == "answered" and each.get("assigned")]
    request = stack.value(
        "SELECT request_id FROM assignment.assignments WHERE id = :id", id=hold["id"]
    )
    assert [(each["request_id"], each["term"]) for each in answered] == [(request, term + 1)]


def test_what_cannot_be_known_is_said_and_the_page_comes_back(page: Page, gateway: Gateway) -> None:
    move = "ALTER TABLE assignment.{} RENAME TO {}"
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(move.format("findings", "away"))
    try:
        expect(page.locator("#trouble")).to_contain_text("the database cannot answer")
    finally:
        with gateway.stack.engine.begin() as connection:
            connection.exec_driver_sql(move.format("away", "findings"))
    expect(page.locator("#trouble")).to_be_hidden()


def test_the_focus_and_what_is_open_stay_while_a_region_changes(
    page: Page, gateway: Gateway
) -> None:
    visit(page, gateway, "/holds")
    page.keyboard.press("Tab")
    expect(page.get_by_text("To the content")).to_be_focused()
    link = page.locator("#holds tbody a").first
    link.focus()
    href = link.get_attribute("href")
    before = page.locator("#holds tbody tr").count()
    gateway.assigned(23)
    expect(page.locator("#holds tbody tr")).to_have_count(before + 1, timeout=SOON)
    assert page.evaluate("document.activeElement.getAttribute('href')") == href
