"""The tables of `status` and the checks of `doctor`, without servers."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

from rich.console import Console

from assignment_workers.assignment.reports.status import LastJobRun
from assignment_workers.cli.operator import _jobs, _serving
from assignment_workers.health.model import (
    Component,
    ComponentKind,
    Health,
    HealthState,
    JobHealth,
    JobState,
)

AT = datetime(2026, 11, 28, 9, 5, tzinfo=UTC)


def test_a_job_is_one_row_with_its_state_and_its_last_run() -> None:
    late = JobHealth(
        job="queue.regenerate",
        queue="unsigned_users",
        state=JobState.LATE,
        asked_at=AT,
        started_at=None,
        succeeded_at=None,
        due_at=None,
        error=None,
    )
    printed = StringIO()
    runs = [ran("queue.regenerate", "unsigned_users"), ran("scores.age", None)]
    table = _jobs([late], {(each.job, each.queue): each for each in runs})
    Console(file=printed, width=160).print(table)
    rows = [" ".join(line.replace("│", "").split()) for line in printed.getvalue().splitlines()]
    assert rows[3:] == [
        "queue.regenerate unsigned_users late 11-28 09:05:00Z hourly: size 7 in 0.25 s",
        "scores.age succeeded 11-28 09:05:00Z hourly: size 7 in 0.25 s",
    ]


def test_a_check_is_a_sentence_whatever_the_number_of_its_component() -> None:
    components = [component("crm", "CRM"), component("gateways", "Gateways")]
    found = _serving(Health(at=AT, components=components))
    assert [each.check for each in found] == ["CRM serves agents", "Gateways serve agents"]


def ran(job: str, queue: str | None) -> LastJobRun:
    return LastJobRun(
        job=job,
        queue=queue,
        trigger="hourly",
        status="succeeded",
        started_at=AT,
        seconds=0.25,
        counts={"size": 7},
        error=None,
    )


def component(name: str, title: str) -> Component:
    kind, state = ComponentKind.SERVER, HealthState.GOOD
    return Component(name=name, title=title, kind=kind, state=state, serving=True)
