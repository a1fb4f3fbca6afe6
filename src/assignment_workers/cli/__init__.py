"""The command line, `assignment-workers`. Exit codes: 0 success, 1 a problem, 2 wrong usage."""

from __future__ import annotations

from assignment_workers.cli.main import main

__all__ = ["main"]
