"""The words of the packaged dialer stand in its file, in adoption, in the laboratory and the demo."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from assignment_workers.dialers import claims
from tests.support.root import ROOT

SOURCE = ROOT / "src" / "assignment_workers"
OF_EVERY_DIALER = {"do_not_contact", "missed_call", "no_answer", "call_back"}
"""Words that the mechanism, its documentation or a new file uses too."""
WORDS = (
    {queue.name for queue in claims.dialer.queues}
    | {queue.conversion for queue in claims.dialer.queues}
    | {outcome.name for outcome in claims.dialer.outcomes}
) - OF_EVERY_DIALER
MAY = {
    "adoption": "takes over the tables of the original dialer",
    "devstack/demo.py": "fills the demo CRM of the packaged dialer",
    "dialers": "is the packaged dialer",
    "lab": "replays the incident",
    "schema/dialer.py": "has the original dialer's tables, column for column",
    "schema/dialer_schema.py": "finds the original dialer's tables",
    "schema/migrate.py": "finds the original dialer's tables",
    "schema/migrations": "is history",
    "schema/tables.py": "has an index that serves the packaged dialer's outcomes",
    "assignment/pools/convert.py": "writes a column of the original dialer's table",
}


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The names and the strings of a module, docstrings too; comments are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id


def test_no_other_module_names_what_is_the_packaged_dialer_s() -> None:
    pattern = re.compile(rf"(?i)\b({'|'.join(sorted(WORDS))})")
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text.strip()[:60]}"
        for path in sorted(SOURCE.rglob("*.py"))
        if not any(path.is_relative_to(SOURCE / each) for each in MAY)
        for line, text in texts(ast.parse(path.read_text()))
        if pattern.search(text)
    ]
    assert found == []


def test_each_exception_is_one() -> None:
    pattern = re.compile(rf"(?i)\b({'|'.join(sorted(WORDS))})")
    for each in MAY:
        path = SOURCE / each
        files = path.rglob("*.py") if path.is_dir() else [path]
        assert any(pattern.search(file.read_text()) for file in files), each
