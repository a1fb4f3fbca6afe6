"""The banner and the engine room say what the health model says, and nothing is done that was only asked for."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from assignment_workers.gateway.dashboard.render import code, environment
from assignment_workers.gateway.redaction import HIDDEN, redacted
from assignment_workers.health.model import (
    CeleryQueueHealth,
    Component,
    ComponentKind,
    Health,
    HealthState,
    JobHealth,
    JobState,
    ProcessHealth,
)
from tests.support.root import ROOT
from tests.unit.deployment.test_ops import NOW

AT = datetime(2026, 11, 28, 9, 5, tzinfo=UTC)


def component(name: str, state: HealthState) -> Component:
    return Component(
        name=name,
        title=f"The {name}",
        kind=ComponentKind.SERVER,
        state=state,
        since=AT,
        finding=f"{name} <does> not answer",
        meaning="No agent is handed a user.",
        first_step=f"Look at {name}.",
        runbook=name,
        serving=name == "leader",
    )


def health(*components: Component, jobs: list[JobHealth] | None = None) -> Health:
    process = ProcessHealth(
        role="sequencer",
        lane="default",
        host="host-1",
        pid=12,
        version="0.3.0",
        state=HealthState.DOWN,
        since=AT,
        seen_at=AT,
        silent_seconds=9.0,
        memory_bytes=90_000_000,
        leads=True,
        task="assignment.request_many",
        task_since=AT,
    )
    waiting = CeleryQueueHealth(
        name="assignment", depth=1_234, head_task="assignment.expire", head_age_seconds=90.0
    )
    return Health(
        at=AT,
        components=list(components),
        processes=[process],
        celery_queues=[waiting],
        jobs=jobs or [],
    )


def words(part: str, found: Health, *, sees_text: bool = True) -> str:
    """What a region says to a reader."""
    given: dict[str, Any] = {"health": redacted(found, sees_text=sees_text), "now": NOW, "due": {}}
    html = environment().get_template(f"parts/{part}.html").render(given)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


@pytest.mark.parametrize("sees_text", [True, False])
def test_the_banner_says_what_is_wrong_for_whom_since_when_and_what_to_do(sees_text: bool) -> None:
    found = health(
        component("broker", HealthState.DEGRADED),
        component("leader", HealthState.DOWN),
        component("crm", HealthState.GOOD),
    )
    said = words("banner", found, sees_text=sees_text)
    assert said.startswith(
        "Agents are not served: The leader: leader &lt;does&gt; not answer since "
    )
    for part in ("No agent is handed a user.", "Do now: Look at leader.", "The broker"):
        assert part in said
    assert "crm" not in said
    assert HIDDEN not in said
    html = environment().get_template("parts/banner.html").render(health=found)
    assert 'href="/runbooks#leader"' in html


def test_a_command_in_a_text_is_code_and_all_else_is_escaped() -> None:
    found = code("Start <it>: `assignment-workers process beat`, or `<b>`.")
    assert found == (
        "Start &lt;it&gt;: <code>assignment-workers process beat</code>, or <code>&lt;b&gt;</code>."
    )


def test_there_is_no_banner_when_all_is_well() -> None:
    assert words("banner", health(component("crm", HealthState.GOOD))) == ""


def test_components_processes_and_queues_are_all_listed_the_worst_first() -> None:
    found = health(component("crm", HealthState.GOOD), component("leader", HealthState.DOWN))
    said = words("components", found, sees_text=False)
    assert said.index("The leader down") < said.index("The crm good")
    assert "Agents are not served" in said
    said = words("processes", found, sees_text=False)
    for part in ("sequencer leads down", "host-1, pid 12", "0.3.0", "90 MB", "request_many"):
        assert part in said
    assert "assignment 1,234 assignment.expire 1 min 30 s" in words("celery_queues", found)


@pytest.mark.parametrize("state", JobState)
def test_a_job_that_was_only_asked_for_is_not_done(state: JobState) -> None:
    (job,) = NOW.jobs
    found = JobHealth(
        job=job.job,
        queue=job.queue,
        state=state,
        asked_at=AT + timedelta(hours=1),
        started_at=AT,
        succeeded_at=AT,
        due_at=None,
        error=None,
    )
    said = words("jobs", health(jobs=[found]))
    assert state in said.partition(job.job)[2]
    assert ("succeeded" in said) == (state is JobState.SUCCEEDED)


SCRIPTS = [
    *(ROOT / "src/assignment_workers/gateway/dashboard").rglob("*.js"),
    *(ROOT / "src/assignment_workers/gateway/dashboard").rglob("*.html"),
    *(each for each in (ROOT / "examples").rglob("*.js") if "node_modules" not in each.parts),
]
SHOWS_TIME = re.compile(r"toLocale(?:Time|Date)?String\(|DateTimeFormat\(|getHours\(|strftime\(")
ISO = re.compile(
    r"""^(?:"sv-SE"|"%Y-%m-%d %H:%M(?::%S)?Z"|\)\.resolvedOptions|"en-GB", \{ timeZoneName)"""
)


def test_times_have_one_clock_of_24_hours() -> None:
    """A browser's own language would write 11:58 PM beside the 23:58 of a chart."""
    assert len(SCRIPTS) > 50
    found = [
        (each.name, text, at)
        for each in SCRIPTS
        if (text := each.read_text())
        for at in SHOWS_TIME.finditer(text)
    ]
    wrong = [
        (name, text[at.start() : at.end() + 40])
        for name, text, at in found
        if not ISO.match(text[at.end() :])
    ]
    assert len(found) > 5
    assert wrong == []
