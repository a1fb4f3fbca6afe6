"""What an operator does on the dashboard is done, recorded, and refused to everybody else."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import needs_chromium
from tests.e2e.dashboard.looking import (
    SOON,
    WHY,
    act,
    cookie_of,
    post,
    proof_of,
    session_of,
    sign_in,
    visit,
)
from tests.gateway.stage import Gateway
from tests.support.processes import wait_until

pytestmark = needs_chromium


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
