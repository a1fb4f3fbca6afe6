"""Errors that keep a stack from running. Each message is one line for the person who started it."""

from __future__ import annotations

from pathlib import Path

from assignment_workers.errors import AssignmentWorkersError, UsageError


class HomeUnusable(UsageError):
    """The home (the directory of a stack) cannot be used.

    It cannot be created or written, or it has files of other programs.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"the home {path} cannot be used: {reason}; "
            "set ASSIGNMENT_WORKERS_HOME to a directory of its own that can be written"
        )


class HomeHeld(AssignmentWorkersError):
    """Another process already runs with this home (the directory of a stack)."""


class PortTaken(UsageError):
    """A configured port is in use by another program."""

    def __init__(self, port: int, *, purpose: str, setting: str, holder: str | None) -> None:
        by = f" by {holder}" if holder else ""
        super().__init__(f"port {port}, for {purpose}, is in use{by}: set {setting} to another")


class NoStack(UsageError):
    """No stack runs with this home (the directory of a stack), so its addresses are not known."""

    def __init__(self, home: Path) -> None:
        super().__init__(
            f"no stack runs at {home}; start one with `assignment-workers up`, "
            "or set DATABASE_URL and REDIS_URL"
        )


class StackFailed(AssignmentWorkersError):
    """A process or server that the stack needs does not run."""
