"""docs/glossary.md is short, in order, and names what is there."""

from __future__ import annotations

import ast
import re

from tests.support.root import ROOT

PACKAGE = ROOT / "src" / "assignment_workers"
PAGE = (ROOT / "docs" / "glossary.md").read_text()
ROW = re.compile(r"^\| ([^|`]+) \| ([^|]+) \| `([\w/]+\.py)`(?: `(\w+)`)? \|$", re.MULTILINE)
ENTRIES_AT_MOST = 30


def test_the_glossary_has_at_most_thirty_entries_each_once_in_order() -> None:
    words = [word.casefold() for word, *_ in ROW.findall(PAGE)]
    assert 20 <= len(words) <= ENTRIES_AT_MOST
    assert words == sorted(set(words))
    # Every row of the table has the form that is checked here.
    assert len(words) == len(re.findall(r"^\| ", PAGE, re.MULTILINE)) - 1


def test_each_entry_names_a_definition_that_exists() -> None:
    missing = []
    for word, _, path, name in ROW.findall(PAGE):
        file = PACKAGE / path
        if not file.is_file():
            missing.append((word, path))
        elif name:
            tree = ast.parse(file.read_text())
            defined = {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            }
            if name not in defined:
                missing.append((word, f"{path}: {name}"))
    assert missing == []


def test_each_word_is_used_in_the_code() -> None:
    text = " ".join(
        " ".join(path.read_text().casefold().split()) for path in PACKAGE.rglob("*.py")
    ).replace("_", " ")
    assert [word for word, *_ in ROW.findall(PAGE) if word.casefold() not in text] == []
