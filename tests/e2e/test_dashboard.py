"""The dashboard in a real browser, on a live stack: what it shows is so, soon, and to everybody."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from assignment_workers.assignment.dead_letters import store_dead_letter
from assignment_workers.gateway.auth import sessions, tokens
from tests.e2e.browser import needs_chromium
from tests.gateway.serving import COMMAND_KEY, serving
from tests.gateway.stage import Gateway, free_port
from tests.support.processes import Agents, wait_until
from tests.support.root import ROOT

pytestmark = needs_chromium
AXE = ROOT / "tests/e2e/node_modules/axe-core/axe.min.js"
VIOLATIONS = "axe.run({resultTypes: ['violations']}).then((run) => run.violations)"
SOON = 2_000
"""Milliseconds within which what happens is shown."""
WHY = "a test of the dashboard"


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


def test_nobody_looks_without_a_token_that_may(browser: Browser, gateway: Gateway) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        sign_in(page, gateway, "aw_0123456789ab_wrong", "/races")
        expect(page.get_by_role("alert")).to_have_text("this token is not in force")
        page.get_by_label("Token of").fill(gateway.tokens["agent 1"])
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("operator or supervisor may")
        page.get_by_label("Token of").fill(gateway.tokens["supervisor"])
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Races")
        (cookie,) = context.cookies()
        assert cookie["httpOnly"]
        assert cookie["secure"]
        assert cookie["sameSite"] == "Strict"
        assert cookie["value"] not in gateway.tokens["supervisor"]
        assert page.evaluate("document.cookie") == ""
        assert page.evaluate("fetch('/v1/queues').then((answer) => answer.status)") == 401
        as_cookie = {"Cookie": f"assignment_workers={cookie['value']}", "Accept": "text/html"}
        assert gateway.get("/races", bearer=None, headers=as_cookie).status == 200
        assert gateway.get("/v1/queues", bearer=cookie["value"]).status == 401
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token of")).to_be_visible()
        assert context.cookies() == []
        over = gateway.get("/races", bearer=None, headers=as_cookie)
        assert (over.status, over.headers["location"]) == (303, "/login?next=/races")
        token_as_cookie = f"assignment_workers={gateway.tokens['supervisor']}"
        as_cookie["Cookie"] = token_as_cookie
        assert gateway.get("/races", bearer=None, headers=as_cookie).status == 303


def test_it_leads_nowhere_else_after_signing_in(gateway: Gateway) -> None:
    for onward in ("//elsewhere.example", "https://elsewhere.example", "/\\elsewhere.example"):
        form = {"token": gateway.tokens["supervisor"], "next": onward}
        assert post(gateway, "/login", form) == (303, "/")


def test_a_page_of_a_revoked_token_ends(browser: Browser, gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        token = tokens.create(connection, "supervisor")
    with browser.new_context() as context:
        page = context.new_page()
        sign_in(page, gateway, token)
        expect(page.locator("#live")).to_have_text("Live")
        with gateway.stack.engine.begin() as connection:
            assert tokens.revoke(connection, token.split("_")[1])
        expect(page.locator("#live")).to_contain_text("Not live", timeout=10_000)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_every_page_can_be_used_by_everybody(
    browser: Browser, gateway: Gateway, scheme: str, width: int
) -> None:
    """axe-core finds no barrier, no script fails, and on a phone nothing sticks out."""
    if not AXE.is_file():
        pytest.fail("axe-core is not installed: run `make client`", pytrace=False)
    axe = AXE.read_text()
    with browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": 800},
        bypass_csp=True,
    ) as context:
        page = signed_in(context, gateway)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        for path in paths(gateway):
            page.goto(gateway.url + path)
            if path not in {"/login", "/users/999999999"}:
                expect(page.locator("#live"), path).to_have_text("Live")
            page.evaluate(axe)
            found = page.evaluate(VIOLATIONS)
            told = [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]
            assert told == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert errors == []


def test_the_overview_says_what_the_database_says(page: Page, gateway: Gateway) -> None:
    value = gateway.stack.value
    states = (
        "SELECT count(*) FROM assignment.entries e JOIN assignment.generations g"
        " ON g.id = e.generation_id WHERE g.state = 'published' AND g.queue = :queue AND e.state = :state"
    )
    for queue in ("unsigned_users", "outstanding_requests"):
        for name, state in (("claimable", "ready"), ("waiting", "waiting"), ("held", "held")):
            expect(page.locator(f'[data-figure="{name} {queue}"]')).to_have_text(
                f"{value(states, queue=queue, state=state):,}", timeout=SOON
            )
    active = value("SELECT count(*) FROM assignment.assignments WHERE state = 'active'")
    idle = value("SELECT count(*) FROM agents WHERE is_active") - active
    answers = dict(
        gateway.stack.rows("SELECT outcome, count(*) FROM assignment.requests GROUP BY 1")
    )
    average = value(
        "SELECT avg(greatest(extract(epoch FROM answered_at - received_at), 0)) FROM assignment.requests"
        " WHERE outcome = 'assigned' AND received_at IS NOT NULL"
        " AND answered_at > now() - interval '5 minutes'"
    )
    claimable = (
        "SELECT count(*) FROM assignment.entries e JOIN assignment.generations g"
        " ON g.id = e.generation_id WHERE g.state = 'published' AND e.state = 'ready'"
    )
    for name, told in {
        "holds": active,
        "agents holding": active,
        "agents idle": idle,
        "waiting to be called": f"{value(claimable):,}",
        "calls": value("SELECT count(*) FROM assignment.assignments WHERE state = 'completed'"),
        "conversions": value("SELECT count(*) FROM conversions"),
        "oldest promise": "none",
        "success": "100.00%",
    }.items():
        shown = page.locator(f'[data-figure="{name}"]')
        expect(shown, name).to_contain_text(re.compile(f"^{re.escape(str(told))}"), timeout=10_000)
    page.get_by_text("The charts as a table").click()
    counts = page.locator("#charts details tbody td:nth-child(2)")
    wait_until(
        lambda: sum(map(int, counts.all_inner_texts())) == answers["assigned"],
        "the minutes to add up: they are read every five seconds",
    )
    bars = page.locator("#charts .bar.done title")
    told_by_bars = [int(each.split(": ")[1].split()[0]) for each in bars.all_text_contents()]
    assert sum(told_by_bars) == answers["assigned"]
    visit(page, gateway, "/engine")
    for name, told in {
        "term": value("SELECT term FROM assignment.sequencer"),
        "answers": ", ".join(f"{name} {count}" for name, count in answers.items()),
        "average": f"{float(average) * 1000:.1f} ms",
        "lost": "0 ",
    }.items():
        shown = page.locator(f'[data-figure="{name}"]')
        expect(shown, name).to_contain_text(re.compile(f"^{re.escape(str(told))}"), timeout=SOON)
    visit(page, gateway, "/holds")
    assert page.locator("#holds tbody tr").count() == active


def test_a_queue_says_where_it_drains_and_which_rules_hold_users_back(
    page: Page, gateway: Gateway
) -> None:
    visit(page, gateway, "/queues/unsigned_users")
    drains = gateway.stack.rows(
        "SELECT kind, coalesce(details->>'reason', details->>'outcome', '') AS why, count(*)"
        " FROM assignment.events WHERE queue = 'unsigned_users' AND kind IN"
        " ('assigned', 'completed', 'skipped', 'released', 'taken_out', 'expired') GROUP BY 1, 2"
    )
    assert {kind for kind, _, _ in drains} >= {"assigned", "completed", "skipped", "released"}
    for kind, why, count in drains:
        shown = page.locator(f'[data-figure="drain {kind} {why}"]')
        expect(shown).to_have_text(str(count), timeout=10_000)  # read every five seconds
    in_pool = "SELECT count(*) FROM user_call_scores WHERE current_queue_type = 'unsigned_users'"
    disabled = (
        "SELECT count(*) FROM user_call_scores s JOIN crm.users u ON u.id = s.user_id"
        " WHERE current_queue_type = 'unsigned_users' AND NOT u.is_enabled"
    )
    rules = page.locator('#funnel [data-figure^="rule "]')
    wait_until(
        lambda: (
            sum(int(each.replace(",", "")) for each in rules.all_inner_texts())
            == gateway.stack.value(in_pool)
        ),
        "each user of the pool to be counted once: they are read every five seconds",
    )
    expect(page.locator('[data-figure="rule disabled"]')).to_have_text(
        str(gateway.stack.value(disabled))
    )
    first = gateway.stack.value(
        "SELECT user_id FROM assignment.entries e JOIN assignment.generations g"
        " ON g.id = e.generation_id WHERE g.state = 'published' AND g.queue = 'unsigned_users'"
        " AND e.state = 'ready' ORDER BY rank LIMIT 1"
    )
    expect(page.locator("#next_users tbody a").first).to_have_text(str(first), timeout=SOON)


def test_a_user_an_agent_and_an_assignment_tell_their_history(page: Page, gateway: Gateway) -> None:
    hold = gateway.assigned(41)
    ended = {"agent_id": 41, "outcome": "no_answer"}
    assert gateway.post(f"/v1/assignments/{hold['id']}/complete", ended).status == 200
    search(page, str(hold["user_id"]))
    expect(page.get_by_role("heading", level=1)).to_have_text(f"User {hold['user_id']}")
    assert figure(page, "place unsigned_users") == "out"
    assert figure(page, "attempts").startswith("1, ")
    explained = gateway.get(f"/v1/users/{hold['user_id']}/explain", bearer="supervisor").json
    for each in explained["queues"]:
        assert figure(page, f"why {each['queue']}") == each["why"].replace("_", " ")
    told = page.locator("#events tbody a[href^='/events/']").all_inner_texts()
    assert told[:2] == ["completed", "assigned"]
    page.locator("#assignments tbody a").first.click()
    assert figure(page, "state") == "completed: no answer"
    page.locator("#assignment a[href='/agents/41']").click()
    expect(page.locator("#agent")).to_contain_text("without a user")
    assert page.locator("#assignments tbody tr").count() == 1
    assert page.locator("body").inner_text().find("@") == -1  # no address, no name


def search(page: Page, said: str) -> None:
    page.get_by_label("Search").fill(said)
    page.keyboard.press("Enter")


def test_the_search_knows_what_people_know(browser: Browser, page: Page, gateway: Gateway) -> None:
    hold = gateway.assigned(43)
    user, number = hold["user_id"], f"+447700{900_000 + hold['user_id'] % 1000}"
    request = gateway.stack.value(
        "SELECT request_id FROM assignment.assignments WHERE id = :id", id=hold["id"]
    )
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO assignment.phones (user_id, reader, numbers, kinds, tails, unread, zones,"
            " read_at) VALUES (%s, 'test', ARRAY[%s], '{}', '{}', '{}', '{}', now())"
            " ON CONFLICT (user_id) DO UPDATE SET numbers = excluded.numbers",
            (user, number),
        )
    title = page.get_by_role("heading", level=1)
    for said, told in {
        str(user): f"User {user}",
        "agent 43": "Agent 43",
        str(hold["id"]): f"Assignment {hold['id']}",
        request: f"Assignment {hold['id']}",
        number.replace("+44", "0"): f"User {user}",
        "no such thing": "Found",
    }.items():
        search(page, said)
        expect(title, said).to_have_text(told)
        assert number[3:] not in page.url
    with browser.new_context() as context:
        other = context.new_page()
        sign_in(other, gateway, "supervisor")
        search(other, number)
        expect(other.locator("main")).to_contain_text("phone numbers are searched by operators")
        search(other, str(user))
        expect(other.get_by_role("heading", level=1)).to_have_text(f"User {user}")


def test_agents_are_filtered_sorted_and_paged(page: Page, gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE agents SET team = 'Team <A>' WHERE id IN (61, 62, 63)")
    hold = gateway.assigned(62)
    visit(page, gateway, "/agents?sort=agent")
    rows = page.locator("#agents tbody th")
    assert rows.count() == 50
    page.get_by_role("link", name="next").click()
    expect(rows.first).to_have_text("51")
    page.get_by_label("Team").select_option("Team <A>")
    page.get_by_role("button", name="Show").click()
    expect(rows).to_have_text(["61", "62", "63"])
    page.get_by_label("Show").first.select_option("holding")
    page.get_by_role("button", name="Show").click()
    expect(rows).to_have_text(["62"])
    expect(page.locator("#agents tbody")).to_contain_text(str(hold["user_id"]))
    expect(page.locator("#live")).to_have_text("Live")
    assert gateway.post(f"/v1/assignments/{hold['id']}/release", {"agent_id": 62}).status == 200
    expect(page.locator("#agents tbody")).to_contain_text("no agent is like that", timeout=SOON)
    visit(page, gateway, "/wall")
    team = page.locator("#teams tbody tr", has_text="Team <A>")
    expect(team.locator("td").last).to_have_text("3")


def test_times_are_those_of_the_viewer_and_the_zone_is_named(
    browser: Browser, gateway: Gateway
) -> None:
    with browser.new_context(timezone_id="Asia/Kolkata") as context:
        page = context.new_page()
        sign_in(page, gateway, "supervisor", "/jobs/queue.regenerate")
        zone = re.compile(r"Times in Asia/(Calcutta|Kolkata) \(GMT\+5:30\)")
        expect(page.locator("#zone")).to_have_text(zone)
        time = page.locator("#job time[data-at]").first
        at = datetime.fromisoformat(str(time.get_attribute("datetime")))
        local = at.astimezone(timezone(timedelta(hours=5, minutes=30)))
        expect(time).to_have_text(re.compile(f"{local:%H:%M}"))


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


def test_the_overview_fits_a_screen_and_the_pages_are_light(
    browser: Browser, gateway: Gateway
) -> None:
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        page = signed_in(context, gateway)
        assert page.evaluate("document.documentElement.scrollHeight") <= 900
        sent = page.evaluate(
            "performance.getEntries().filter((each) => each.encodedBodySize)"
            ".reduce((sum, each) => sum + each.encodedBodySize, 0)"
        )
        assert sent < 60_000
        began = page.evaluate("performance.getEntriesByType('navigation')[0].responseStart")
        assert began < 2_000


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


def test_without_a_script_the_page_says_the_same(browser: Browser, gateway: Gateway) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(gateway.url)
        page.get_by_label("Token of").fill(gateway.tokens["supervisor"])
        page.keyboard.press("Enter")
        expect(page.locator("#live")).to_contain_text("Not live")
        expect(page.locator("#queues tbody tr")).to_have_count(2)
        expect(page.locator("time").first).to_contain_text("Z")


def test_an_operator_pauses_and_resumes_and_it_is_kept_who_and_why(
    page: Page, gateway: Gateway
) -> None:
    visit(page, gateway, "/queues/outstanding_requests")
    assert act(page, "Pause") == "done"
    expect(page.locator("#queue")).to_contain_text("paused by token", timeout=SOON)
    paused = gateway.stack.rows(
        "SELECT details || texts AS details FROM assignment.events JOIN assignment.event_texts"
        " ON event_id = id WHERE kind = 'queue_paused' ORDER BY id DESC LIMIT 1"
    )[0].details
    who = f"token {gateway.tokens['operator'].split('_')[1]}"
    assert paused == {"by": who, "why": WHY}
    assert act(page, "Resume") == "done"
    expect(page.locator("#queue")).to_contain_text("open", timeout=SOON)
    kept = gateway.stack.rows(
        "SELECT who, action, subject, why, outcome FROM assignment.operator_actions ORDER BY id DESC"
        " LIMIT 2"
    )
    assert kept[::-1] == [
        (who, action, "outstanding_requests", WHY, "done") for action in ("pause", "resume")
    ]


def test_an_operator_drains_and_lets_go_on(page: Page, gateway: Gateway) -> None:
    visit(page, gateway, "/engine")
    assert act(page, "Drain for maintenance") == "done"
    expect(page.locator("#alarms")).to_contain_text(re.compile("drain(ing|ed)"), timeout=SOON)
    assert gateway.post("/v1/requests", {"agent_id": 30}).json["outcome"] == "paused"
    assert act(page, "Resume all") == "done"
    expect(page.locator("#alarms")).not_to_contain_text("drain", timeout=SOON)


def test_an_operator_rebuilds_now(page: Page, gateway: Gateway) -> None:
    visit(page, gateway, "/queues/unsigned_users")
    newest = "SELECT max(id) FROM assignment.generations WHERE queue = 'unsigned_users'"
    before = gateway.stack.value(newest)
    assert act(page, "Rebuild now").startswith("asked")
    published = newest + " AND state = 'published'"
    wait_until(lambda: gateway.stack.value(published) > before, "the new generation")
    expect(page.locator("#generations tbody td").first).to_have_text(
        str(gateway.stack.value(newest)), timeout=SOON
    )


def test_an_operator_releases_a_hold_and_gives_another_on(page: Page, gateway: Gateway) -> None:
    first, second = gateway.assigned(31), gateway.assigned(32)
    visit(page, gateway, f"/assignments/{first['id']}")
    assert act(page, "Release") == "done"
    expect(page.locator('[data-figure="state"]')).to_have_text("released", timeout=SOON)
    visit(page, gateway, f"/assignments/{second['id']}")
    assert act(page, "Give to another agent", agent="31") == "done"
    assert gateway.get("/v1/agents/31/assignment").json["user_id"] == second["user_id"]
    assert gateway.get("/v1/agents/32/assignment").status == 404
    assert act(page, "Give to another agent", agent="33").startswith("refused: ")
    gateway.stack.assert_healthy()


def test_an_operator_sends_a_dead_letter_again(page: Page, gateway: Gateway) -> None:
    visit(page, gateway, "/dead-letters/1")
    expect(page.locator("pre").first).to_have_text("refused: <b>not</b> a tag")
    assert act(page, "Send again").startswith("done: sent as task")
    expect(page.locator("#dead_letter")).to_contain_text(" as ", timeout=SOON)
    assert gateway.stack.value("SELECT replayed_as IS NOT NULL FROM assignment.dead_letters")


def test_an_operator_releases_from_quarantine_and_keeps_the_do_not_contact_list(
    page: Page, gateway: Gateway
) -> None:
    other = gateway.stack.value("SELECT max(id) FROM crm.users")
    user = other - 1
    visit(page, gateway, "/quarantine")
    with gateway.stack.engine.begin() as connection:
        for each in (user, other):
            connection.exec_driver_sql(
                "INSERT INTO assignment.suppressions (kind, user_id, reason, since, by)"
                f" VALUES ('quarantine', {each}, '3 times not_in_crm', now(), 'claim')"
            )
    row = page.locator("#quarantine tbody tr")
    expect(row).to_have_count(2, timeout=SOON)
    assert act(page, "Release from quarantine", user=str(other)) == "done"
    assert page.url.startswith(f"{gateway.url}/users/{other}?")
    visit(page, gateway, "/quarantine")
    expect(row).to_have_count(1)
    row.get_by_role("link").click()
    expect(page.locator('[data-figure="quarantine"]')).to_contain_text("set aside")
    assert act(page, "Release from quarantine") == "done"
    assert page.locator('[data-figure="quarantine"]').count() == 0
    assert page.get_by_role("button", name="Release from quarantine").count() == 0
    assert act(page, "Do not contact") == "done"
    expect(page.locator('[data-figure="do_not_contact"]')).to_contain_text("offered to nobody")
    assert act(page, "Take off the do-not-contact list") == "done"

    visit(page, gateway, "/do-not-contact")
    assert act(page, "Do not contact", phone="07700 900 321") == "done"
    expect(page.locator("#do_not_contact tbody")).to_contain_text("07700 900 321")
    assert act(page, "Do not contact", user="3", phone="07700 900 321").startswith(
        "refused: a user or"
    )
    visit(page, gateway, "/do-not-contact")
    assert act(page, "Do not contact", phone="12").startswith("refused: phone '12'")
    assert act(page, "Take off the do-not-contact list", phone="+447700900321") == "done"
    expect(page.locator("#do_not_contact tbody")).to_have_text("nobody")
    kept = gateway.stack.rows(
        "SELECT kind, user_id, by, lifted_by, lifted_why FROM assignment.suppressions ORDER BY id"
    )
    who = f"token {gateway.tokens['operator'].split('_')[1]}"
    assert kept == [
        ("quarantine", user, "claim", who, WHY),
        ("quarantine", other, "claim", who, WHY),
        ("do_not_contact", user, who, who, WHY),
        ("do_not_contact", None, who, who, WHY),
    ]
    subjects = gateway.stack.rows(
        "SELECT DISTINCT subject FROM assignment.operator_actions WHERE action IN ('lift', 'do_not_contact')"
    )
    assert {row[0] for row in subjects} == {str(user), "3", "a phone number"}


def test_what_the_doctor_finds_shows_and_is_repaired(page: Page, gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE assignment.entries SET state = 'held' WHERE state = 'ready' AND rank = 500"
        )
    visit(page, gateway, "/engine")
    client = gateway.stack.client()
    client.send_again("doctor.examine", (), {}, "maintenance")
    expect(page.locator("#findings")).to_contain_text("repairable", timeout=10_000)
    expect(page.locator("#alarms")).to_contain_text("1 broken", timeout=SOON)
    assert act(page, "Repair").startswith("done: ")
    client.send_again("doctor.examine", (), {}, "maintenance")
    expect(page.locator("#alarms")).to_contain_text("all hold", timeout=10_000)
    consistency = gateway.stack.value("SELECT count(*) FROM assignment.findings")
    expect(page.locator('[data-figure="consistency"]')).to_contain_text(
        f"{consistency} of {consistency} checks hold", timeout=SOON
    )


def test_a_form_from_elsewhere_or_without_a_reason_does_nothing(
    page: Page, gateway: Gateway
) -> None:
    token, proof = cookie_of(page), proof_of(page)
    form = {"subject": "unsigned_users", "why": WHY, "proof": proof}
    before = gateway.stack.value("SELECT count(*) FROM assignment.operator_actions")
    for sent, cookie, site, status in (
        (form | {"proof": ""}, token, None, 403),
        (form | {"proof": "0" * 64}, token, None, 403),
        (form, token, "cross-site", 403),
        (form, token, "same-site", 403),
        (form, session_of(gateway, "supervisor"), None, 403),
        (form, "", None, 401),
        (form | {"why": " "}, token, "same-origin", 422),
        (form | {"why": "x" * 501}, token, "same-origin", 422),
    ):
        assert post(gateway, "/act/pause", sent, cookie=cookie, site=site)[0] == status
    assert post(gateway, "/act/dance", form, cookie=token)[0] == 422
    assert gateway.stack.value("SELECT count(*) FROM assignment.operator_actions") == before
    assert post(gateway, "/act/pause", form | {"subject": "nobody"}, cookie=token)[0] == 303
    refused = gateway.stack.value(
        "SELECT outcome FROM assignment.operator_actions ORDER BY id DESC LIMIT 1"
    )
    assert refused.startswith("refused: no dialer queue 'nobody'")


def test_what_cannot_be_kept_is_not_done(page: Page, gateway: Gateway) -> None:
    move = "ALTER TABLE assignment.{} RENAME TO {}"
    form = {"subject": "unsigned_users", "why": WHY, "proof": proof_of(page)}
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(move.format("operator_actions", "away"))
    try:
        assert post(gateway, "/act/pause", form, cookie=cookie_of(page))[0] == 503
    finally:
        with gateway.stack.engine.begin() as connection:
            connection.exec_driver_sql(move.format("away", "operator_actions"))
    assert not gateway.stack.rows("SELECT 1 FROM assignment.queues WHERE paused_at IS NOT NULL")


def test_a_supervisor_sees_and_does_not_act(browser: Browser, gateway: Gateway) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        sign_in(page, gateway, "supervisor", "/dead-letters/1")
        expect(page.get_by_role("heading", level=1)).to_have_text("Dead letter 1")
        assert page.locator("pre").count() == 0
        assert page.locator(".acts").count() == 0


def test_the_report_is_one_page_that_needs_nothing_else(
    browser: Browser, gateway: Gateway, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    clean = {name: value for name, value in os.environ.items() if "ASSIGNMENT" not in name}
    servers = {
        "DATABASE_URL": gateway.stack.database_url,
        "REDIS_URL": gateway.stack.redis_url,
    }
    words = ("report", "--since", "1h", "--html", str(file))
    command = [sys.executable, "-m", "assignment_workers", *words]
    subprocess.run(command, env=clean | servers, check=True, capture_output=True)
    with browser.new_context(bypass_csp=True) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert asked == [file.as_uri()]
        count = gateway.stack.value("SELECT count(*) FROM assignment.assignments")
        assert page.locator("#assignments-count").inner_text() == f"{count:,}"
        bars = page.locator("svg .bar.done title").all_text_contents()
        assert sum(int(each.split(": ")[1].split()[0]) for each in bars) == count
        assert page.locator("polyline").count() >= 3
        page.evaluate(AXE.read_text())
        assert page.evaluate(VIOLATIONS) == []


def test_a_program_is_told_what_this_is_and_a_browser_nothing_to_load_from_elsewhere(
    gateway: Gateway,
) -> None:
    told = gateway.get("/", bearer="agent 1")
    assert told.json["name"] == "assignment-workers"
    page = gateway.get("/login", bearer=None, headers={"Accept": "text/html"})
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert re.findall(r'(?:src|href)="(?!/|data:,|#)[^"]*"', page.text) == []
