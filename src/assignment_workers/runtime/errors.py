"""What can keep a stack from running. Each message is one line for the person who started it."""

from __future__ import annotations

from pathlib import Path

from assignment_workers.errors import AssignmentWorkersError, UsageError


class HomeUnusable(UsageError):
    """The home directory cannot be made or written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"the home {path} cannot be used: {reason}; "
            "set ASSIGNMENT_WORKERS_HOME to a directory of its own that can be written"
        )


class HomeHeld(AssignmentWorkersError):
    """Another process runs on this home."""


class PortTaken(UsageError):
    """A port that was asked for belongs to another program."""

    def __init__(self, port: int, *, purpose: str, setting: str, holder: str | None) -> None:
        by = f" by {holder}" if holder else ""
        super().__init__(f"port {port}, for {purpose}, is in use{by}: set {setting} to another")


class NoStack(UsageError):
    """No stack runs, and no variable says where the servers are."""

    def __init__(self, home: Path) -> None:
        super().__init__(
            f"no stack runs at {home}; start one with `assignment-workers up`, "
            "or set DATABASE_URL and REDIS_URL"
        )


class StackFailed(AssignmentWorkersError):
    """Something that the stack cannot do without does not run."""
