"""`runbook`: what `status` says to read can be read where only the package is installed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from assignment_workers.cli.main import app
from assignment_workers.cli.runbook import runbook
from assignment_workers.errors import UsageError


def test_a_runbook_is_printed_with_its_steps() -> None:
    ran = CliRunner().invoke(app, ["runbook", "redis"], standalone_mode=False)
    assert ran.stdout.startswith("Redis\n\nNobody is handed out")
    assert "\n1. Does `redis-cli" in ran.stdout


def test_without_a_name_the_runbooks_are_listed() -> None:
    ran = CliRunner().invoke(app, ["runbook"], standalone_mode=False)
    assert "celery-queues" in [line.split()[0] for line in ran.stdout.splitlines()]


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"there is no runbook 'nonsense'"):
        runbook("nonsense")
