"""docs/gateway.md says what is so: routes, roles, settings and figures."""

from __future__ import annotations

import re

import pytest

from assignment_workers.assignment.lifecycle.moves import VERBS
from assignment_workers.gateway import abandoned, limits, serve
from assignment_workers.gateway.auth import callers
from assignment_workers.gateway.bodies import TIMEOUT_MS_MOST
from assignment_workers.gateway.events import feed, live, stream
from assignment_workers.settings import Settings
from tests.gateway.routes.test_document import SCHEMA
from tests.gateway.stage import Gateway
from tests.support.root import ROOT

PAGE = (ROOT / "docs" / "gateway.md").read_text()
NOBODY = "00000000-0000-7000-8000-000000000000"
ROLES = ("agent 1", "frontend", "supervisor", "operator")
BODIES: dict[str, dict[str, object]] = {
    "complete": {"agent_id": 1, "outcome": "no_answer"},
    "close": {"agent_id": 1, "why": "moved away"},
    "defer": {"agent_id": 1, "seconds": 60},
    "state": {"state": "available"},
    "heartbeat": {},
}
"""By the end of a path; of other paths the agent alone."""
ROUTES = [
    (found[1], found[2].replace("{verb}", verb), [cell.strip() for cell in found[3].split("|")])
    for found in re.finditer(r"^\| `(GET|POST|PUT) (/\S*)` \|(.*)\|$", PAGE, re.MULTILINE)
    for verb in (VERBS if "{verb}" in found[2] else [""])
]


def test_it_names_every_route() -> None:
    open_to_all = {("GET", "/healthz"), ("GET", "/readyz")}
    there = {
        (method.upper(), path)
        for path, item in SCHEMA.raw_schema["paths"].items()
        for method in item
    }
    named = {(method, path) for method, path, _ in ROUTES}
    assert named | open_to_all == there | {("GET", "/openapi.json"), ("GET", "/api")}


@pytest.mark.parametrize(("method", "path", "cells"), ROUTES, ids=lambda each: str(each)[:60])
def test_each_role_may_do_what_it_says(
    gateway: Gateway, method: str, path: str, cells: list[str]
) -> None:
    for name, value in (
        ("{assignment}", NOBODY),
        ("{agent}", "1"),
        ("{queue}", "unsigned_users"),
        ("{user}", "1"),
        ("{number}", "1"),
    ):
        path = path.replace(name, value)
    assert len(cells) == len(ROLES)
    for role, cell in zip(ROLES, cells, strict=True):
        if path == "/v1/events" and cell:
            with gateway.stream(path, bearer=role):
                continue
        body = BODIES.get(path.rpartition("/")[2], {"agent_id": 1})
        answer = gateway.call(method, path, body, bearer=role)
        forbidden = answer.status == 403 and answer.json["code"] == "forbidden"
        assert forbidden == (not cell), (role, answer.text)


def test_its_settings_are_settings_with_these_defaults() -> None:
    fields = {field.alias: field for field in Settings.model_fields.values()}
    rows = re.findall(r"^\| `(ASSIGNMENT_WORKERS_\w+)` \| (\S+) \|", PAGE, re.MULTILINE)
    of_others = {"ASSIGNMENT_WORKERS_GATEWAY_PASSWORD"}  # of `schema migrate --roles`
    also = {
        "ASSIGNMENT_WORKERS_ALLOWED_HOSTS",
        "ASSIGNMENT_WORKERS_ENVIRONMENT",
        "ASSIGNMENT_WORKERS_LOCK_DATABASE_URL",
    }
    ours = {name for name in fields if name and "GATEWAY" in name}
    assert {name for name, _ in rows} == (ours - of_others) | also
    for name, told in rows:
        default = fields[name].default
        if isinstance(default, int | float | str):
            assert told == f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        else:
            assert default is None
    assert set(re.findall(r"ASSIGNMENT_WORKERS_[A-Z_]+", PAGE)) <= set(fields)


@pytest.mark.parametrize(
    "said",
    [
        f"{live.READERS:,} streams",
        f"{live.READERS_OF_ONE} by one agent's token",
        f"{live.BUFFERED:,} events",
        f"more than {feed.BEHIND_AT_MOST:,}",
        f"every {stream.BEAT_SECONDS:g} seconds",
        f"{stream.BEAT_SECONDS:g} more",
        f"for {serve.STALLED_SECONDS} seconds",
        f"under way {serve.GRACE_SECONDS} seconds",
        f"after {abandoned.GRACE.total_seconds():g} seconds",
        f"after {callers.KNOWN_SECONDS:g} seconds",
        f"{limits.BODY_BYTES // 1024} KiB",
        f"({TIMEOUT_MS_MOST:,})",
    ],
)
def test_its_figures_are_those_of_the_code(said: str) -> None:
    assert said in PAGE
