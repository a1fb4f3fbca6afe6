"""The stack as a whole: start it, find it, be one of its processes."""

from __future__ import annotations

from typing import Annotated

import typer

from assignment_workers.cli.servers import resolved
from assignment_workers.tasks import process as processes


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command()(process)


def process(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(processes.PROCESSES)}.")],
) -> int:
    """Be one process of a stack, in the foreground; DATABASE_URL and REDIS_URL say where."""
    return processes.run(name, resolved())
