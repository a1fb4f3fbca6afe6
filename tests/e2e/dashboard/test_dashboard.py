"""The dashboard in a real browser, on a live stack: what it shows is so, soon, and to everybody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from assignment_workers.gateway.auth import tokens
from tests.e2e.browser import needs_chromium
from tests.e2e.dashboard.looking import (
    AXE,
    SOON,
    VIOLATIONS,
    agrees,
    figure,
    paths,
    post,
    sign_in,
    signed_in,
    visit,
)
from tests.gateway.stage import Gateway
from tests.support.processes import wait_until

pytestmark = needs_chromium


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


CUT = (
    "[...document.querySelectorAll('.wide')]"
    ".filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.innerText)"
)
"""The tables that are wider than their place: the rest of them is seen by scrolling."""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_every_page_can_be_used_by_everybody(
    browser: Browser, gateway: Gateway, scheme: str, width: int
) -> None:
    """axe-core finds no barrier, no script fails; no table is cut, and a phone scrolls one way."""
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
            assert width < 1280 or page.evaluate(CUT) == [], path
        assert errors == []


def test_the_overview_says_what_the_database_says(page: Page, gateway: Gateway) -> None:
    value, hold = gateway.stack.value, gateway.assigned(44)
    states = (
        "SELECT count(*) FROM assignment.entries e JOIN assignment.generations g"
        " ON g.id = e.generation_id WHERE g.state = 'published' AND g.queue = :queue AND e.state = :state"
    )
    for queue in ("unsigned_users", "outstanding_requests"):
        for name, state in (("claimable", "ready"), ("waiting", "waiting"), ("held", "held")):
            agrees(page, f"{name} {queue}", partial(value, states, queue=queue, state=state))
    active = "SELECT count(*) FROM assignment.assignments WHERE state = 'active'"
    assigned = "SELECT count(*) FROM assignment.requests WHERE outcome = 'assigned'"
    claimable = (
        "SELECT count(*) FROM assignment.entries e JOIN assignment.generations g"
        " ON g.id = e.generation_id WHERE g.state = 'published' AND e.state = 'ready'"
    )
    completed = "SELECT count(*) FROM assignment.assignments WHERE state = 'completed'"
    for name, told in {
        "holds": lambda: value(active),
        "agents holding": lambda: value(active),
        "agents idle": lambda: value(f"SELECT count(*) - ({active}) FROM agents WHERE is_active"),
        "waiting to be called": lambda: value(claimable),
        "calls": lambda: value(completed),
        "conversions": lambda: value("SELECT count(*) FROM conversions"),
        "oldest promise": lambda: "none",
        "success": lambda: "100.00%",
    }.items():
        agrees(page, name, told)
    page.get_by_text("The charts as a table").click()
    counts = page.locator("#charts details tbody td:nth-child(2)")
    wait_until(
        lambda: sum(map(int, counts.all_inner_texts())) == value(assigned),
        "the minutes to add up: they are read every five seconds",
    )
    bars = page.locator("#charts .bar.done title")
    told_by_bars = [int(each.split(": ")[1].split()[0]) for each in bars.all_text_contents()]
    assert sum(told_by_bars) == value(assigned)
    visit(page, gateway, "/engine")
    average = (
        "SELECT avg(greatest(extract(epoch FROM answered_at - received_at), 0)) FROM assignment.requests"
        " WHERE outcome = 'assigned' AND received_at IS NOT NULL"
        " AND answered_at > now() - interval '5 minutes'"
    )
    answers = "SELECT outcome, count(*) FROM assignment.requests GROUP BY 1"
    for name, told in {
        "term": lambda: value("SELECT term FROM assignment.sequencer"),
        "answers": lambda: ", ".join(f"{each} {n}" for each, n in gateway.stack.rows(answers)),
        "average": lambda: f"{float(value(average)) * 1000:.1f} ms",
        "lost": lambda: "0",
    }.items():
        agrees(page, name, told)
    visit(page, gateway, "/holds")
    held = page.locator("#holds tbody tr", has=page.locator("td:nth-child(7)"))
    wait_until(lambda: held.count() == value(active), "each hold to have its row", seconds=15.0)
    expect(held.filter(has_text=str(hold["user_id"]))).to_have_count(1)


def test_a_queue_says_where_it_drains_and_which_rules_hold_users_back(
    page: Page, gateway: Gateway
) -> None:
    visit(page, gateway, "/queues/unsigned_users")
    drains = (
        "SELECT kind, coalesce(details->>'reason', details->>'outcome', '') AS why, count(*)"
        " FROM assignment.events WHERE queue = 'unsigned_users' AND kind IN"
        " ('assigned', 'completed', 'skipped', 'released', 'taken_out', 'expired') GROUP BY 1, 2"
    )
    reasons = [(each.kind, each.why) for each in gateway.stack.rows(drains)]
    assert {kind for kind, _ in reasons} >= {"assigned", "completed", "skipped", "released"}
    count = f"SELECT count FROM ({drains}) AS drain WHERE kind = :kind AND why = :why"
    for kind, why in reasons:
        agrees(page, f"drain {kind} {why}", partial(gateway.stack.value, count, kind=kind, why=why))
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
    first = (
        "SELECT user_id FROM assignment.entries e JOIN assignment.generations g"
        " ON g.id = e.generation_id WHERE g.state = 'published' AND g.queue = 'unsigned_users'"
        " AND e.state = 'ready' ORDER BY rank LIMIT 1"
    )
    shown = page.locator("#next_users tbody a").first
    wait_until(
        lambda: shown.inner_text() == str(gateway.stack.value(first)),
        "the first of the queue to be shown first",
    )


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
    user, number = hold["user_id"], "+442079460958"  # the demo's users share their numbers
    request = gateway.stack.value(
        "SELECT request_id FROM assignment.assignments WHERE id = :id", id=hold["id"]
    )
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE crm.users SET phone_number = %s WHERE id = %s", (number, user)
        )
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


@pytest.mark.parametrize("width", [1024, 1280, 1345, 1366, 1400, 1920])
def test_the_overview_s_tables_are_whole_on_every_desk(
    browser: Browser, gateway: Gateway, width: int
) -> None:
    """`Next rebuild`, the last column, was cut off on the screens of most laptops."""
    with browser.new_context(viewport={"width": width, "height": 800}) as context:
        page = signed_in(context, gateway)
        expect(page.locator("#queues tbody tr")).to_have_count(2)
        assert page.evaluate(CUT) == []


def test_without_a_script_the_page_says_the_same(browser: Browser, gateway: Gateway) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(gateway.url)
        page.get_by_label("Token of").fill(gateway.tokens["supervisor"])
        page.keyboard.press("Enter")
        expect(page.locator("#live")).to_contain_text("Not live")
        expect(page.locator("#queues tbody tr")).to_have_count(2)
        expect(page.locator("time").first).to_contain_text("Z")


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
