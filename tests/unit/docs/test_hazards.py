"""docs/hazards.md has a row for every hazard, and every test that it names exists."""

from __future__ import annotations

import ast
import re

from tests.support.root import ROOT

TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "hazards.md").read_text()
ROW = re.compile(r"^\| ([A-E][0-9]+) \|(.*)\|(.*)\|(.*)\|$", re.MULTILINE)
HAZARDS = {"A": 12, "B": 17, "C": 14, "D": 15, "E": 6}


def test_every_hazard_has_its_row_in_order() -> None:
    expected = [
        f"{section}{number}" for section, count in HAZARDS.items() for number in range(1, count + 1)
    ]
    assert [found[1] for found in ROW.finditer(PAGE)] == expected


def test_every_test_that_is_named_exists() -> None:
    there = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40
    assert named - there == set()


def test_a_hazard_without_a_test_says_that_it_cannot_arise_or_is_open() -> None:
    without = {
        found[1]: found[3] for found in ROW.finditer(PAGE) if not re.search("`test_", found[4])
    }
    assert [
        here for here in without.values() if "cannot arise" not in here and "open" not in here
    ] == []


def test_what_stands_against_a_hazard_names_the_guarantee_that_it_is_part_of() -> None:
    """Sessions have theirs in words: the telephone and the dialer's own sessions are not ours."""
    without = [
        found[1]
        for found in ROW.finditer(PAGE)
        if found[1][0] in "BCD"
        and "cannot arise" not in found[3]
        and not re.search(r"\((?:[1-9]|1[01])(?:, (?:[1-9]|1[01]))*\)", found[3])
    ]
    assert set(without) <= {"D14"}
