"""Each source that the code cites stands in this repository."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.root import ROOT

DOCS = ROOT / "docs"
CITING = [
    *(ROOT / "src").rglob("*.py"),
    *(each for each in (ROOT / "tests").rglob("*.py") if each != Path(__file__)),
    *(ROOT / "benchmarks").rglob("*.py"),
    *DOCS.rglob("*.md"),
    ROOT / "README.md",
    ROOT / "celeryconfig.py",
]
NUMBERS = r"(\d+(?:(?:, | and | to )\d+)*)"


def _cited(pattern: str) -> dict[str, set[str]]:
    """Each number or letter that `pattern` finds, with the files that cite it."""
    cited: dict[str, set[str]] = {}
    for path in CITING:
        text = " ".join(path.read_text().split())
        for found in re.finditer(pattern, text):
            for each in re.findall(r"[A-Z]?\d+", found[1]):
                cited.setdefault(each, set()).add(str(path.relative_to(ROOT)))
    return cited


def test_each_cited_section_of_the_original_dialer_exists() -> None:
    page = (DOCS / "original-dialer.md").read_text()
    sections = set(re.findall(r"^## Section (\d+)", page, re.MULTILINE))
    cited = _cited(rf"original-dialer (?:sections? |§ ?){NUMBERS}")
    assert len(cited) > 4
    assert {each: cited[each] for each in cited.keys() - sections} == {}


def test_each_cited_hazard_has_its_row() -> None:
    rows = set(re.findall(r"^\| ([A-Z]\d+) \|", (DOCS / "hazards.md").read_text(), re.MULTILINE))
    cited = _cited(r"[Hh]azards? ([A-Z]\d+(?:(?:, | and )[A-Z]\d+)*)")
    assert len(cited) > 8
    assert {each: cited[each] for each in cited.keys() - rows} == {}


def test_each_cited_guarantee_is_one_of_the_eleven() -> None:
    cited = _cited(rf"[Gg]uarantees? {NUMBERS}") | _cited(r"\b(G\d+)\b")
    assert cited.keys() <= {str(number) for number in range(1, 12)}


def test_each_page_of_docs_that_code_or_text_names_exists() -> None:
    named = {
        (name, str(path.relative_to(ROOT)))
        for path in CITING
        for name in re.findall(r"\bdocs/([\w./-]+\.md)\b", path.read_text())
    }
    assert len(named) > 10
    assert {each for each in named if not (DOCS / each[0]).is_file()} == set()


def test_no_message_names_a_file_that_only_the_repository_has() -> None:
    """Docstrings may: they are read in the repository."""
    named = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / "src").rglob("*.py")
        for line, said in _texts(ast.parse(path.read_text()))
        if re.search(r"\bdocs/[\w./-]+\.md\b", said)
    ]
    assert named == []


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each text of the program that is not a docstring, with its line."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield node.lineno, str(node.value)
