"""The list of commands in the help: true, and had without importing what the commands need."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_group

from assignment_workers.cli.main import COMMANDS, app

SLOW = ("assignment_workers.client", "celery", "fastapi", "redis", "sqlalchemy")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_the_first_of_its_own_help(name: str) -> None:
    command = get_group(app).commands[name]
    own = (command.help or "").partition("\n\n")[0]
    assert " ".join(own.split()) == COMMANDS[name][1]


def test_every_command_of_a_module_is_in_the_list() -> None:
    commands = get_group(app).commands
    for name in COMMANDS:
        _ = commands[name]
    assert set(vars(commands)["_loaded"]) == set(COMMANDS)


@pytest.mark.parametrize("words", ["--help", "--version"])
def test_help_imports_nothing_that_takes_long(words: str) -> None:
    code = (
        "import sys; from assignment_workers.cli import main\n"
        f"sys.argv = ['assignment-workers', {words!r}]\n"
        "try: main()\n"
        f"finally: print(sorted(set(sys.modules) & set({SLOW!r})))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.splitlines()[-1] == "[]", ran.stderr
