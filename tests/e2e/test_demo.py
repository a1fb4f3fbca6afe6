"""The simulated call centre: a short day with faults on a stack of its own, and forged bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from assignment_workers.assignment.answers import Held
from assignment_workers.lab.call_centre.recorder import Recorder

NOW = datetime(2026, 1, 5, 9, 5, tzinfo=UTC)


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    names = ("ASSIGNMENT_WORKERS_", "DATABASE_URL", "REDIS_URL", "BROKER_URL")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return subprocess.run(
        [sys.executable, "-m", "assignment_workers", "demo", "--json", *arguments],
        cwd=folder,
        env=inherited,
        capture_output=True,
        text=True,
        check=False,
    )


class Page(HTMLParser):
    """What the page shows, and whether it asks for anything elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts = 0
        self.words: list[str] = []
        self.elsewhere: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg"
        self.elsewhere += [each for each in attrs if each[0] in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.timeout(180)
def test_a_short_day_with_faults_breaks_no_guarantee(tmp_path: Path) -> None:
    run = demo(
        tmp_path,
        *("--agents", "20", "--users", "5000", "--seconds", "11", "--speed", "60"),
        *("--seed", "3", "--chaos", "--report", "day.html"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    verdict: dict[str, Any] = json.loads(run.stdout)
    assert verdict["broken"] == []
    assert verdict["levels"]["assigned"] > 40
    assert verdict["levels"]["unanswered"] == 0
    assert verdict["faults"], "something was broken on purpose"
    assert verdict["counts"]["said twice"] > 0
    assert verdict["records"]["generations retired"] > 0, "both dialer queues were rebuilt"
    page = Page((tmp_path / "day.html").read_text())
    assert page.charts == 4
    assert page.elsewhere == []
    assert "Every guarantee held." in page.words
    assert not list(tmp_path.glob(".assignment-workers*")), "nothing is left beside the page"


def test_a_report_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path) -> None:
    run = demo(tmp_path, "--report", "nowhere/day.html")
    assert run.returncode == 2
    assert run.stderr.startswith("assignment-workers: --report nowhere/day.html: there is no")


def held(number: int, *, agent: int, user: int, at: datetime = NOW) -> Held:
    return Held(
        id=UUID(int=number),
        user_id=user,
        agent_id=agent,
        queue="unsigned_users",
        source="queue",
        reason="new",
        rank=1,
        claimed_at=at,
        lease_expires_at=at + timedelta(seconds=10),
        version=1,
        state="active",
    )


def test_the_book_names_a_user_whom_two_agents_have() -> None:
    recorder = Recorder()
    recorder.record(held(1, agent=26, user=2064))
    recorder.record(held(2, agent=27, user=2064, at=NOW + timedelta(seconds=9)))
    (said,) = recorder.surprises
    assert said.startswith("user 2064 was given to agent 27 while agent 26 had them until")


def test_the_book_finds_nothing_wrong_with_a_user_given_on() -> None:
    recorder = Recorder()
    recorder.record(held(1, agent=26, user=2064))
    recorder.record(held(2, agent=27, user=2064, at=NOW + timedelta(seconds=11)))
    recorder.gives_up(held(2, agent=27, user=2064))
    recorder.record(held(3, agent=28, user=2064, at=NOW + timedelta(seconds=12)))
    assert recorder.surprises == []
