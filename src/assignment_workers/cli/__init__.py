"""The command line: `assignment-workers`. Exit codes: 0 good, 1 found wrong, 2 used wrong."""

from __future__ import annotations

from assignment_workers.cli.main import main

__all__ = ["main"]
