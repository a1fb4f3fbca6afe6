"""The names and the prose of the package keep to the rules of CONTRIBUTING.md.

Counted over `src/assignment_workers` without the migrations; `whoever` over the documents as well.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.support.root import ROOT

PACKAGE = ROOT / "src" / "assignment_workers"
MIGRATIONS = PACKAGE / "schema" / "migrations"
DOCUMENTS = [
    *(each for each in ROOT.glob("*.md") if each.name != "CHANGELOG.md"),
    *(each for each in (ROOT / "docs").rglob("*.md") if "benchmarks" not in each.parts),
    *(ROOT / "examples").rglob("*.md"),
]

QUESTIONS = re.compile(r"(?:who|whom|whose|what|how|where|whether|when|why)\b", re.IGNORECASE)
QUESTIONS_AT_MOST = 0.01
"""Of all docstrings, the share that may open with one of `QUESTIONS`."""
WHOEVER_BELOW = 10
"""Lines."""


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.is_relative_to(MIGRATIONS) and "node_modules" not in path.parts:
            yield path, ast.parse(path.read_text())


def _docstrings() -> Iterator[str]:
    """Docstrings of modules, classes and functions, and the strings that follow an assignment."""
    for _, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for each in node.body:
                    if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                        yield str(each.value.value)


def test_no_two_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(path.relative_to(PACKAGE)))
    assert len(homes) > 200
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_docstrings_do_not_open_with_a_question() -> None:
    docstrings = list(_docstrings())
    asking = [each.split("\n")[0] for each in docstrings if QUESTIONS.match(each.strip())]
    assert len(docstrings) > 1500
    assert len(asking) / len(docstrings) < QUESTIONS_AT_MOST, asking[:20]


def test_prose_speaks_of_users_and_agents_not_of_whoever() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [*(path for path, _ in _modules()), *DOCUMENTS]
        if "node_modules" not in path.parts
        for line in path.read_text().splitlines()
        if re.search(r"\bwhoever\b", line, re.IGNORECASE)
    ]
    assert len(found) < WHOEVER_BELOW, found[:20]
