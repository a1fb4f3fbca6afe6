"""A Python file of the tests is of one theme, and short enough to be read at once."""

from __future__ import annotations

from tests.support.root import ROOT

LINES_AT_MOST = 500


def test_no_file_of_the_tests_is_longer_than_is_read_at_once() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / "tests").rglob("*.py")
        if "node_modules" not in path.parts
    }
    assert len(lengths) > 200
    assert {path: length for path, length in lengths.items() if length > LINES_AT_MOST} == {}
