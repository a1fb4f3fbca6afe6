"""The files for Prometheus and Grafana: each rule fires when it should, each figure is one we tell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import Metric
from ruamel.yaml import YAML

from assignment_workers.assignment.reports import details, figures
from assignment_workers.assignment.reports.figures import (
    Figures,
    JobFigures,
    QueueFigures,
    StoredCheck,
)
from assignment_workers.assignment.reports.figures import RecentTimeToAssign as Times
from assignment_workers.assignment.reports.status import (
    COUNTED_AT_MOST,
    CrmStatus,
    Leader,
    SequencerStatus,
)
from assignment_workers.gateway.auth import sessions
from assignment_workers.gateway.dashboard.acts import ACTS
from assignment_workers.gateway.metrics import Metrics, _gauges, gauge, health_gauges
from assignment_workers.health.model import Health
from assignment_workers.health.runbooks import runbooks
from assignment_workers.settings import Settings
from assignment_workers.telemetry import PREFIX, REGISTRY
from tests.support.root import ROOT

OPS = ROOT / "ops"
PROMTOOL = shutil.which("promtool")
AT = datetime(2026, 11, 24, tzinfo=UTC)
LED = SequencerStatus(
    lane="default",
    queues=["outstanding_requests", "unsigned_users"],
    term=3,
    leader=Leader(pid=1, host="here", since=AT),
    standbys=1,
    silent_seconds=1.0,
    probe_seconds=0.01,
)
NOW = Figures(
    at=AT,
    queues=[
        QueueFigures(
            queue="unsigned_users",
            paused=False,
            paused_by=None,
            claimable=30,
            waiting=2,
            held=1,
            generation=7,
            size=40,
            trigger="hourly",
            published_at=AT,
            age_seconds=60.0,
            claimed_last_hour=60,
            skipped_last_hour=3,
            quarantined=2,
            runway_minutes=30.0,
        )
    ],
    sequencer=LED,
    lanes=[LED],
    holds=1,
    holds_lapsing=0,
    holds_lapsed=0,
    answers_last_hour={"assigned": 60},
    ended_last_hour={"expired": 1},
    races_last_hour={"not_active": 1},
    time_to_assign=Times(measured=60, average=0.02, p50=0.01, p95=0.03, p99=0.05),
    jobs=[
        JobFigures(
            job="queue.regenerate",
            queue="unsigned_users",
            trigger="hourly",
            status="succeeded",
            started_at=AT,
            seconds=1.0,
            error=None,
            succeeded_at=AT,
            failed_last_day=0,
            overlapping_last_day=0,
            missed_last_day=0,
        )
    ],
    dead_letters=0,
    dead_letters_new=0,
    audit_lag_seconds=0.0,
    unpublished=0,
    findings=[
        StoredCheck(check="one", guarantee=1, ok=True, count=0, examples=[], repairable=False)
    ],
    examined_at=AT,
    crm=CrmStatus(elsewhere=True, trouble=None, mirror_age_seconds=12.0),
)


def told() -> dict[str, set[str]]:
    """By name as a query says it: the labels of every figure that any process tells."""
    metrics: list[Metric] = [
        *_gauges(NOW),
        *health_gauges(Health(at=AT, components=[])),
        gauge("database_up", "", {(): 1}),
        *REGISTRY.collect(),
        *Metrics().registry.collect(),
    ]
    # Families with labels have no sample before their first: their names are known all the same.
    families = {
        name
        for registry in (REGISTRY, Metrics().registry)
        for name in registry._names_to_collectors  # there is no public way
        if name.startswith(PREFIX)
    }
    names: dict[str, set[str]] = {name: set() for name in families}
    names |= {metric.name: set() for metric in metrics}
    for metric in metrics:
        for sample in metric.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def expressions() -> list[tuple[str, str]]:
    rules = YAML(typ="safe").load((OPS / "alerts.yml").read_text())
    found = [
        (rule["alert"], str(rule["expr"])) for group in rules["groups"] for rule in group["rules"]
    ]
    board: dict[str, Any] = json.loads((OPS / "grafana.json").read_text())
    for panel in board["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel["targets"]]
    return found


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: Debian's `prometheus`")
def test_every_alert_fires_when_it_should_and_not_before() -> None:
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "alerts.test.yml"],
        cwd=OPS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_for_operators_is_true() -> None:
    page = (OPS.parent / "docs" / "operators.md").read_text()
    known = {field.alias for field in Settings.model_fields.values()}
    assert set(re.findall(r"ASSIGNMENT_WORKERS_[A-Z_]+", page)) <= known
    rules = YAML(typ="safe").load((OPS / "alerts.yml").read_text())["groups"][0]["rules"]
    table = page[page.index("| alert |") : page.index("## Logs")]
    assert set(re.findall(r"`([A-Z]\w+[a-z])`", table)) == {rule["alert"] for rule in rules}
    acting = page[page.index("## Acting") : page.index("## Service levels")]
    assert [act.title for act in ACTS.values() if act.title not in acting] == []
    for said in (
        f"to {COUNTED_AT_MOST:,}: then",
        f"| to {figures.COUNTED_AT_MOST:,} |",
        f"the newest {figures.NEWEST:,}",
        f"a pool of up to {details.SAMPLED:,} users",
        f"the newest {details.LOOKED_BACK:,} of all agents",
        f"for {sessions.LASTS.seconds // 3600} hours",
    ):
        assert said in page, said


def test_every_alert_links_to_a_runbook_that_exists() -> None:
    rules = YAML(typ="safe").load((OPS / "alerts.yml").read_text())["groups"][0]["rules"]
    linked = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules}
    for alert, url in linked.items():
        path, _, anchor = url.partition("#")
        assert path.endswith("/runbooks"), alert
        assert anchor in runbooks(), alert


def test_every_alert_has_its_test() -> None:
    yaml = YAML(typ="safe")
    rules = yaml.load((OPS / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.load((OPS / "alerts.test.yml").read_text())["tests"]
    assert {rule["alert"] for rule in rules} == {
        each["alertname"]
        for test in tests
        for each in test["alert_rule_test"]
        if each["exp_alerts"]
    }


def test_a_gauge_of_which_several_states_are_asked_for_is_summed_over_them() -> None:
    """Each state is a series of its own, and 0 but for one: the least of several is always 0."""
    several = [each for _, each in expressions() if "state=~" in each]
    assert several
    for expression in several:
        assert re.search(r"sum without \(state\) \(\w+\{[^}]*state=~", expression), expression


@pytest.mark.parametrize(("name", "expression"), expressions(), ids=lambda each: str(each)[:40])
def test_every_figure_that_is_asked_for_is_told(name: str, expression: str) -> None:
    asked = set(re.findall(rf"{PREFIX}_\w+", expression))
    assert asked
    assert asked <= told().keys()


def test_figures_are_named_as_prometheus_asks() -> None:
    for registry in (REGISTRY, Metrics().registry):
        for metric in registry.collect():
            if metric.name.startswith(PREFIX):
                assert metric.documentation.endswith("."), metric.name
                for part in ("_ms", "_milliseconds", "_minutes", "_count_total"):
                    assert not metric.name.endswith(part), metric.name
    for metric in (*_gauges(NOW), *health_gauges(Health(at=AT, components=[]))):
        assert metric.type == "gauge"
        assert not metric.name.endswith("_total")
        assert metric.documentation.endswith("."), metric.name


def test_what_is_not_known_is_left_out_and_not_zero() -> None:
    assert gauge("sequencer_silent_seconds", "", {(): None}).samples == []
