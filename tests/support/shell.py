"""A shell in which the command is typed: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assignment_workers.settings import Settings
from tests.support.commands import type_in

FAILED, USED_WRONGLY = 1, 2
OURS = {field.alias for field in Settings.model_fields.values()}


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    output: str
    complaint: str

    def check(self, code: int, *words: str) -> None:
        """It ended with this code, and with one line that has these words."""
        assert self.output == "", self
        self.complains(code, *words)

    def complains(self, code: int, *words: str) -> None:
        """As `check`, beside what it put out."""
        assert self.code == code, self
        line, *rest = self.complaint.splitlines()
        assert not rest, self.complaint
        assert line.startswith("assignment-workers: ")
        for word in words:
            assert word.lower() in line.lower()
        assert "hunter2" not in line

    def json(self, code: int) -> Any:
        """The JSON that it printed, with nothing beside it, when it ended with this code."""
        assert (self.code, self.complaint) == (code, ""), self
        return json.loads(self.output)


@dataclass(frozen=True)
class Shell:
    """Where commands are typed: a folder without a stack, and some variables."""

    folder: Path

    def run(self, *words: str, **variables: str) -> Said:
        """What the command says."""
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        done = type_in(words, inherited | variables, self.folder)
        return Said(done.returncode, done.stdout, done.stderr)
