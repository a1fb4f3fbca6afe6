"""The dialer page in a real browser: what an agent sees for each answer, by keyboard alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from assignment_workers.policy.process_dialer import loaded
from tests.e2e.browser import needs_chromium
from tests.e2e.node import Node
from tests.gateway.stage import Gateway
from tests.support.root import ROOT

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(node: Node, page_port: int) -> Iterator[str]:
    program = str(ROOT / "examples/dialer/serve.py")
    command = [sys.executable, program, "--port", str(page_port)]
    with Popen(command, stdout=PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline().strip()
        assert said == f"http://127.0.0.1:{page_port}"
        yield said
        server.terminate()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, where nothing went wrong that it did not expect."""
    with browser.new_context(locale="en-GB", timezone_id="Europe/London") as context:
        made = context.new_page()
        errors: list[str] = []
        made.on("pageerror", lambda error: errors.append(str(error)))
        made.goto(address)
        yield made
        assert errors == []


def sign_in(page: Page, gateway: Gateway, agent: int, *, bearer: str = "frontend") -> None:
    """As an agent does: no mouse."""
    page.keyboard.type(str(agent))
    page.keyboard.press("Tab")
    page.keyboard.type(gateway.tokens[bearer])
    page.get_by_label("Gateway").fill(gateway.url)
    page.keyboard.press("Enter")


def press(page: Page, key: str) -> None:
    """Press a key, once the page is not busy with what was asked of it before."""
    expect(page.locator("#desk")).to_have_attribute("aria-busy", "false")
    page.keyboard.press(key)


def called(page: Page) -> int:
    """Whom the page says to call."""
    expect(page.locator("#title")).to_have_text(re.compile(r"Call user \d+"))
    return int(page.locator("#title").inner_text().split()[-1])


def held(gateway: Gateway, agent: int) -> int | None:
    """Whom the agent holds."""
    answer = gateway.get(f"/v1/agents/{agent}/assignment")
    return int(answer.json["user_id"]) if answer.status == 200 else None


@contextmanager
def unanswered(gateway: Gateway) -> Iterator[None]:
    """Nothing on the assignment queue gets on."""
    with gateway.stack.connection() as connection:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        yield
        connection.rollback()


def test_an_agent_asks_calls_and_says_what_came_of_it(page: Page, gateway: Gateway) -> None:
    sign_in(page, gateway, 1, bearer="agent 1")
    expect(page.locator("#title")).to_have_text("Ready")
    press(page, "n")
    user = called(page)
    assert held(gateway, 1) == user
    page.get_by_label("Notes").press_sequentially("12 n s")  # no shortcut while one writes
    page.locator("#title").focus()
    press(page, "1")
    expect(page.locator("#title")).to_have_text(f"User {user}: no answer")
    expect(page.locator("#done li")).to_have_count(1)
    said = (
        "SELECT notes, outcome FROM assignment.assignments WHERE user_id = :user"
        " ORDER BY claimed_at DESC LIMIT 1"
    )
    assert gateway.stack.rows(said, user=user) == [("12 n s", "no_answer")]
    for key, outcome in (("s", "skipped"), ("r", "released")):
        press(page, "Enter")  # the focus is on the next user
        user = called(page)
        press(page, key)
        expect(page.locator("#title")).to_have_text(f"User {user}: {outcome}")
    assert held(gateway, 1) is None


def test_a_call_back_without_its_time_is_refused_and_the_user_stays(
    page: Page, gateway: Gateway
) -> None:
    sign_in(page, gateway, 60)
    press(page, "n")
    user = called(page)
    page.get_by_role("button", name="Call back").click()
    expect(page.locator("#detail")).to_contain_text("needs callback_at")
    assert called(page) == user
    assert held(gateway, 60) == user
    page.get_by_label("Call back at").fill("2999-07-01T09:30")
    page.get_by_role("button", name="Call back").click()
    expect(page.locator("#title")).to_have_text(f"User {user}: call back")
    (promised,) = gateway.stack.rows(
        "SELECT scheduled_for FROM callbacks WHERE user_id = :u", u=user
    )
    assert promised[0].isoformat().startswith("2999-07-01T08:30")


def test_no_single_key_does_what_cannot_be_undone(page: Page, gateway: Gateway) -> None:
    sign_in(page, gateway, 62)
    press(page, "n")
    user = called(page)
    for key in "9-":  # no claim, do not contact: asked first, and Enter is on Cancel
        press(page, key)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(f"user {user}?")
        page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
    assert held(gateway, 62) == user
    page.get_by_label("Notes").fill("asked for it")
    page.locator("#title").focus()
    press(page, "-")
    page.get_by_role("dialog").get_by_role("button", name="Do not contact").click()
    expect(page.locator("#title")).to_have_text(f"User {user}: do not contact")


def test_an_offer_is_accepted_by_the_main_button_and_then_renewed_by_another(
    page: Page, gateway: Gateway
) -> None:
    sign_in(page, gateway, 63)
    press(page, "n")
    called(page)
    accept, renew = (
        page.get_by_role("button", name="Accept"),
        page.get_by_role("button", name="Renew"),
    )
    expect(accept).to_have_class("main")
    expect(renew).to_be_hidden()
    press(page, "a")
    expect(accept).to_be_hidden()
    expect(renew).to_be_visible()
    press(page, "r")


def test_whoever_comes_back_finds_the_call_they_were_on(page: Page, gateway: Gateway) -> None:
    user = gateway.assigned(61)["user_id"]
    sign_in(page, gateway, 61)
    assert called(page) == user
    expect(page.locator("#detail")).to_contain_text("already")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Agent")).to_be_visible()
    assert held(gateway, 61) is None


def test_empty_and_paused_are_told_apart(page: Page, gateway: Gateway) -> None:
    sign_in(page, gateway, 62)
    page.get_by_label("From").select_option("outstanding_requests")
    page.get_by_role("button", name="Next user").click()
    expect(page.locator("#title")).to_have_text("Nobody to call")
    expect(page.locator("#detail")).to_have_text(
        re.compile(r"outstanding_requests: none eligible. Ask again in 0:\d\d.")
    )
    gateway.post("/v1/queues/outstanding_requests/pause", bearer="operator")
    try:
        press(page, "n")
        expect(page.locator("#title")).to_have_text("Paused")
    finally:
        gateway.post("/v1/queues/outstanding_requests/resume", bearer="operator")


def test_a_refusal_says_why(page: Page, gateway: Gateway) -> None:
    sign_in(page, gateway, 2, bearer="agent 1")
    expect(page.locator("#detail")).to_contain_text("acts for agent 1 alone")
    press(page, "n")
    expect(page.locator("#title")).to_have_text("Refused")


def test_no_answer_is_told_and_may_be_waited_for_no_longer(page: Page, gateway: Gateway) -> None:
    sign_in(page, gateway, 69)
    expect(page.locator("#title")).to_have_text("Ready")
    with unanswered(gateway):
        press(page, "n")
        expect(page.locator("#title")).to_have_text("Asking")
        page.keyboard.press("Escape")
        expect(page.locator("#title")).to_have_text("Cancelled")

    def down(route: Route) -> None:
        route.abort("connectionrefused")

    page.clock.install()
    page.route("**/v1/requests", down)
    press(page, "n")
    page.clock.run_for(11_000)
    expect(page.locator("#title")).to_have_text("No answer for now")
    expect(page.locator("#detail")).to_contain_text(gateway.url)
    page.unroute("**/v1/requests")
    press(page, "n")
    called(page)


def test_a_lease_is_counted_down_renewed_and_told_when_it_is_lost(
    page: Page, gateway: Gateway
) -> None:
    sign_in(page, gateway, 64)
    press(page, "n")
    called(page)
    with page.expect_response("**/renew") as renewed:  # the keeper, unasked
        pass
    assert renewed.value.status == 200
    page.get_by_label("Renew while this page is open").uncheck()
    seen = page.locator("#left").inner_text()
    expect(page.locator("#left")).not_to_have_text(seen)
    page.get_by_role("button", name="Renew now").click()
    expect(page.locator("#detail")).to_contain_text("The lease runs anew.")
    expect(page.locator("#title")).to_have_text("No longer yours", timeout=15_000)
    press(page, "n")  # a claim ends what has lapsed first
    again = called(page)
    gateway.post(
        f"/v1/assignments/{gateway.get('/v1/agents/64/assignment').json['id']}/release",
        {"agent_id": 64},
    )
    press(page, "1")
    expect(page.locator("#title")).to_have_text("No longer yours")
    expect(page.locator("#detail")).to_contain_text(f"Do not call user {again}")


def test_the_page_offers_every_outcome_there_is(page: Page, gateway: Gateway) -> None:
    sign_in(page, gateway, 66)
    expect(page.locator("#outcomes button")).to_have_count(len(loaded().outcomes_by_name))
    shown = [each.get_attribute("id") for each in page.locator("#outcomes button").all()]
    assert shown == [*loaded().outcomes_by_name]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_stands_out_from_its_ground(browser: Browser, address: str, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 at the least."""
    with browser.new_context(color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(address)
        for ink, ground in (
            ("ink", "sheet"),
            ("faint", "sheet"),
            ("wrong", "sheet"),
            ("on-main", "main"),
            ("ink", "ground"),
            ("faint", "ground"),
        ):
            assert _contrast(_colour(page, ink), _colour(page, ground)) >= 4.5, (ink, ground)


def _colour(page: Page, name: str) -> list[float]:
    script = """name => {
      const probe = document.body.appendChild(document.createElement("i"));
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number);
    }"""
    found: list[float] = page.evaluate(script, name)
    return found


def _contrast(one: list[float], other: list[float]) -> float:
    def light(colour: list[float]) -> float:
        parts = [each / 255 for each in colour]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)
