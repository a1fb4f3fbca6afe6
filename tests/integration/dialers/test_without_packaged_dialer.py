"""The core's tests pass where the packaged dialer is not installed, and another one is configured.

`make test` runs the model, by the clinic's file, whose words nothing else knows. `make core` runs
all, by a file that has the packaged dialer's words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import assignment_workers
from assignment_workers.dialer.loading import NAME, VARIABLE
from tests.support.dialers import DIALERS, EXAMPLES
from tests.support.root import ROOT

PACKAGE = Path(assignment_workers.__file__).parent
FEW = "tests/model/test_assignment_model.py::test_operations_in_any_order_do_what_the_model_says[clinic]"
"""Every operation, in any order."""
ALL = ("unit", "integration", "model", "races")
ABOUT_THE_PACKAGED = (
    "assignment_workers.dialers",
    "lab.incident",
    "is_packaged",
    "from benchmarks",
)
"""A test file that contains one of these is about the packaged dialer, or uses it."""
ABOUT_EVERYTHING = ("import COMMANDS", "walk_packages")
"""A test file that contains one of these imports every command or module that is installed."""

pytestmark = pytest.mark.skipif(
    "claims" not in DIALERS, reason="this is the run without the packaged dialer"
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the package is installed as from its wheel, but for its dialers."""
    package = tmp_path / "installed" / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("dialers"))
    shutil.copy(ROOT / "celeryconfig.py", package / "_celeryconfig.py")
    shutil.copy(ROOT / "docs" / "operators.md", package / "_operators.md")
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return given | {"PYTHONPATH": f"{package.parent}:{ROOT}"}


def pytest_passes(environment: dict[str, str], folder: Path, *words: str) -> None:
    said = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"),
            *(f"--config-file={ROOT}/pyproject.toml", f"--rootdir={ROOT}", *words),
        ],
        env=environment,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert said.returncode == 0, said.stdout
    assert " passed" in said.stdout


def test_without_any_file_a_command_says_what_is_missing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "assignment_workers", "dialer", "check"]
    said = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == (
        f"assignment-workers: there is no {NAME} here, and {VARIABLE} names none\n"
    )


def test_some_of_the_core_s_tests_pass_by_the_clinic_s_file(
    environment: dict[str, str], tmp_path: Path, postgres_server: str
) -> None:
    configured = {VARIABLE: str(EXAMPLES / "clinic" / NAME), "TEST_DATABASE_URL": postgres_server}
    pytest_passes(environment | configured, tmp_path, f"{ROOT}/{FEW}")


@pytest.mark.skipif("EVERY_ROW" not in os.environ, reason="make core: it takes minutes")
def test_all_of_the_core_s_tests_pass_by_a_file_of_the_same_words(
    environment: dict[str, str], tmp_path: Path
) -> None:
    shutil.copy(PACKAGE / "dialers" / "claims.py", tmp_path / NAME)
    others = [
        f"--ignore={path}"
        for path in (ROOT / "tests").rglob("test_*.py")
        if any(
            word in path.read_text(encoding="utf-8")
            for word in (*ABOUT_THE_PACKAGED, *ABOUT_EVERYTHING)
        )
    ]
    folders = [f"{ROOT}/tests/{each}" for each in ALL]
    configured = {VARIABLE: str(tmp_path / NAME)}
    pytest_passes(environment | configured, tmp_path, "--numprocesses=4", *others, *folders)
