"""docs/how-it-works.md and docs/decisions name files, indexes and guarantees that are there."""

from __future__ import annotations

import re

from assignment_workers.assignment.reports.doctor import CHECKS
from assignment_workers.schema.base import Base
from tests.support.root import ROOT

PACKAGE = ROOT / "src" / "assignment_workers"
PAGE = (ROOT / "docs" / "how-it-works.md").read_text()
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[a-z]*.md"))


def test_every_file_that_is_named_exists() -> None:
    pages = PAGE + "".join(each.read_text() for each in DECISIONS)
    named = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+(?:\.py)?)?)`", pages))
    assert len(named) > 40
    there = {name for name in named if any((start / name).exists() for start in (ROOT, PACKAGE))}
    assert named - there == set()


def test_every_index_that_is_named_is_one_of_the_schema() -> None:
    ours = {index.name for table in Base.metadata.tables.values() for index in table.indexes}
    named = set(re.findall(r"`(uq_\w+)`", PAGE))
    assert named
    assert named - ours == set()


def test_every_guarantee_has_its_row_and_its_checks_by_the_doctor() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (yes|no) \|$", PAGE, re.MULTILINE)
    asked = {str(check.guarantee) for check in CHECKS if check.guarantee is not None}
    assert [number for number, _ in rows] == [str(number) for number in range(1, 12)]
    assert {number for number, answer in rows if answer == "yes"} == asked


def test_every_decision_is_listed_and_says_what_else_there_was_and_what_it_costs() -> None:
    listed = re.findall(r"\]\((.*)\)", (ROOT / "docs" / "decisions" / "README.md").read_text())
    assert sorted(listed) == [each.name for each in DECISIONS]
    for each in DECISIONS:
        parts = re.findall(r"^\*\*(\w+)", each.read_text(), re.MULTILINE)
        assert parts == ["Chosen", "Instead", "Costs"], each.name
