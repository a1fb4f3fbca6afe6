"""A database that fails while a command runs is one line, and any other error is a traceback."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from assignment_workers.schema.deadline import NoAnswer

cli = import_module("assignment_workers.cli.main")  # the package has a function of this name


def test_a_database_that_fails_meanwhile_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: Any) -> int:
        raise OperationalError("SELECT secret", {}, NoAnswer(22.0))

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"assignment-workers: the database cannot answer: {NoAnswer(22.0)}\n"


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> int:
        raise ProgrammingError("SELECT", {}, psycopg.errors.UndefinedColumn("no such column"))

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(ProgrammingError):
        cli.main()
