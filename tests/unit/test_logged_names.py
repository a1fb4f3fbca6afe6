"""Names of log lines that steps and documents tell an operator to look for are logged."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.root import ROOT

PACKAGE = ROOT / "src" / "assignment_workers"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
QUOTED = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")
SENTENCE_OF_LOGS = re.compile(r"[^.|\n]*\blogs?\b(?! in)[^.|\n]*")
"""A sentence that says the log has something."""


def logged() -> set[str]:
    """The first argument of every call of a logger in the package."""
    return {
        call.args[0].value
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


def named(text: str) -> set[str]:
    """The quoted names of the sentences that speak of a log."""
    return {name for each in SENTENCE_OF_LOGS.findall(text) for name in QUOTED.findall(each)}


@pytest.mark.parametrize(
    "file", ["docs/operators.md", "src/assignment_workers/health/judgement.py"]
)
def test_what_an_operator_is_to_look_for_in_a_log_is_logged(file: str) -> None:
    found = named((ROOT / file).read_text())
    assert "cannot_lead" in found
    settings = {"synchronous_standby_names"}
    assert found - settings <= logged()
