"""What nothing can go below on this machine: a transaction, a commit, a write to the disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable

import psycopg


def floors(database_url: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by what was done."""
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        tempfile.NamedTemporaryFile() as file,
    ):
        connection.execute("CREATE TABLE floor (n bigint)")

        def empty() -> None:
            with connection.transaction():
                pass

        def commit() -> None:
            with connection.transaction():
                connection.execute("INSERT INTO floor VALUES (1)")

        def fsync() -> None:
            file.write(b"x" * 8192)
            file.flush()
            os.fsync(file.fileno())

        found = {
            "an empty transaction": _timed(empty, rounds),
            "a transaction that writes a row": _timed(commit, rounds),
            "8 kB written and synced": _timed(fsync, rounds),
        }
        connection.execute("DROP TABLE floor")
    return found


def _timed(what: Callable[[], None], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - began)
    return seconds
