"""Operational settings over HTTP and on the dashboard: operators change them, who watches reads."""

from __future__ import annotations

import json
from typing import Any

from tests.gateway.browsing import HTML, fetch, form, signed_in
from tests.gateway.stage import Gateway, Reply
from tests.support.commands import type_in

PATH = "/v1/settings"


def put(gateway: Gateway, *changes: dict[str, Any], bearer: str = "operator") -> Reply:
    return gateway.call("PUT", PATH, {"changes": changes, "why": "a test"}, bearer=bearer)


def value(gateway: Gateway, name: str) -> list[tuple[str | None, str]]:
    found = gateway.get(PATH, bearer="supervisor").json["settings"]
    (setting,) = [each for each in found if each["name"] == name]
    return [(each["queue"], each["value"]) for each in setting["values"]]


def page(gateway: Gateway, role: str) -> str:
    return fetch(gateway, "/settings", HTML, {"Cookie": signed_in(gateway, role)})[1]


def test_an_operator_changes_and_a_supervisor_reads(gateway: Gateway) -> None:
    before = value(gateway, "callback_preferred")
    said = put(gateway, {"name": "callback_preferred", "value": "601"})
    assert (said.status, said.json["outcome"]) == (200, "done")
    assert value(gateway, "callback_preferred") == [(None, "601")]
    newest = gateway.get(f"{PATH}/versions?most=1", bearer="supervisor").json[0]
    assert newest["version"] == said.json["counts"]["version"]
    assert newest["changes"][0]["after"] == "601"
    assert newest["why"] == "(for operators)"
    assert gateway.get(f"{PATH}/versions", bearer="operator").json[0]["why"] == "a test"
    assert (
        put(gateway, {"name": "callback_preferred", "value": "7"}, bearer="supervisor").status
        == 403
    )
    assert gateway.get(PATH, bearer="frontend").status == 403
    assert put(gateway, {"name": "callback_preferred", "value": None}).status == 200
    assert value(gateway, "callback_preferred") == before
    (action,) = gateway.stack.rows(
        "SELECT subject, outcome FROM assignment.operator_actions WHERE action = 'settings'"
        " ORDER BY id DESC LIMIT 1"
    )
    assert tuple(action) == ("callback_preferred", "done")


def test_a_wrong_value_is_refused_at_each_door_in_one_line(gateway: Gateway) -> None:
    wrong = put(gateway, {"name": "calling_hours", "value": "nine to five"})
    assert (wrong.status, wrong.json["code"]) == (422, "malformed")
    line = wrong.json["detail"]
    assert "accepted: days and hours such as mon-thu 10:00-19:00" in line
    assert "\n" not in line
    said = {
        "name": "calling_hours",
        "value": "nine to five",
        "queue": "",
        "team": "",
        "why": "test",
    }
    assert form(gateway, "/act/change_setting", said) == 303
    outcome = gateway.stack.value(
        "SELECT outcome FROM assignment.operator_actions WHERE action = 'change_setting'"
        " ORDER BY id DESC LIMIT 1"
    )
    assert outcome == f"refused: {line}"
    typed = type_in(
        ["settings", "set", "calling_hours", "nine to five", "--why", "test"],
        {"DATABASE_URL": gateway.stack.database_url, "REDIS_URL": gateway.stack.redis_url},
    )
    assert typed.returncode == 2
    assert typed.stderr == f"assignment-workers: {line}\n"


def test_the_page_shows_what_is_in_force_and_only_operators_a_form(gateway: Gateway) -> None:
    said = {"name": "level_minimum", "value": "21", "queue": "", "team": "", "why": "more agents"}
    assert form(gateway, "/act/change_setting", said) == 303
    seen, acts = page(gateway, "supervisor"), page(gateway, "operator")
    for text in (seen, acts):
        assert "level_minimum</th><td>all</td><td>21</td>" in text
    assert "/act/change_setting" in acts
    assert "/act/change_setting" not in seen
    assert "more agents" in acts
    assert "more agents" not in seen
    assert form(gateway, "/act/change_setting", said | {"value": ""}) == 303
    assert value(gateway, "level_minimum") == [(None, "20")]


def test_by_command_it_is_the_same(gateway: Gateway) -> None:
    servers = {
        "DATABASE_URL": gateway.stack.database_url,
        "REDIS_URL": gateway.stack.redis_url,
        "ASSIGNMENT_WORKERS_LEVEL_INTERVAL_SECONDS": "5",
    }

    def said(*words: str) -> str:
        found = type_in(["settings", *words], servers)
        assert found.returncode == 0, found.stderr
        return found.stdout

    queue = ("--queue", "unsigned_users", "--why", "a test")
    assert "level_interval for unsigned_users is 901" in said(
        "set", "level_interval", "901", *queue
    )
    assert value(gateway, "level_interval") == [(None, "900"), ("unsigned_users", "901")]
    (shown,) = json.loads(said("show", "level_interval", "--json"))["settings"]
    assert [each["value"] for each in shown["values"]] == ["900", "901"]
    assert "it was already so" in said("set", "level_interval", "901", *queue)
    assert "has no value of its own" in said("set", "level_interval", "--unset", *queue)
    versions = json.loads(said("history", "--json"))
    assert [each["changes"][0]["before"] for each in versions[:2]] == ["901", None]
    assert (versions[-1]["version"], versions[-1]["who"]) == (1, "sequencer")
    assert "level_interval" in said("list")
    told = type_in(["status", "--json"], servers)
    assert json.loads(told.stdout)["settings_version"] == versions[0]["version"]
