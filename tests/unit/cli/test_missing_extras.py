"""A command whose packages are not installed says in one line which extra brings them."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["assignment-workers", *{words!r}]
from assignment_workers.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (["up"], ["setproctitle"], "embedded"),
        (["status"], ["typer"], "server"),
        (["--version"], ["typer"], "server"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    words: list[str], missing: list[str], extra: str
) -> None:
    code = WITHOUT.format(words=words, missing=missing)
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"assignment-workers: {missing[0]} is not installed; ")
    assert f"[{extra}]" in line
