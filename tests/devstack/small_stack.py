"""A stack of small programs, run by its path as a program of its own: `up` as the tests need it.

Its one argument is a JSON object: `children`, each {name, code or argv, stop_seconds}; `verbose`;
`migrate_seconds`, how long the migration takes; `table`, whether it makes one. Settings come from
the environment, as for the real command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import psycopg

from assignment_workers.devstack.process import ProcessSpec
from assignment_workers.devstack.up import Steps, up
from assignment_workers.errors import AssignmentWorkersError
from assignment_workers.runtime.stack import Stack
from assignment_workers.settings import Settings


def main(plan: dict[str, Any]) -> int:
    def migrate(url: str) -> None:
        say("MIGRATING")
        time.sleep(plan.get("migrate_seconds", 0))
        if plan.get("table"):
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept (line text)")

    def announce(stack: Stack) -> None:
        say(f"READY {stack.model_dump_json()}")

    children = [
        ProcessSpec(
            child["name"],
            child.get("argv") or [sys.executable, "-u", "-c", child["code"]],
            stop_seconds=child.get("stop_seconds", 30),
        )
        for child in plan["children"]
    ]
    try:
        return up(
            Settings.from_environment(os.environ),
            children,
            Steps(migrate=migrate, seed=None, missing=lambda _: None, announce=announce),
            verbose=plan.get("verbose", True),
        )
    except AssignmentWorkersError as error:
        say(f"error: {error}")
        return error.exit_code


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(json.loads(sys.argv[1])))
