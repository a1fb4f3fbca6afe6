"""What the proof of a term costs while somebody reads an old snapshot, and what it cost before.

    .venv/bin/python -m benchmarks.proof

A reader keeps a snapshot open, as a backup does, and turns that do nothing follow one another: half
of them begin with the proof as it is, half with the UPDATE that it was until release 0.1.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter

from sqlalchemy import Engine, bindparam, func, text, update

from assignment_workers.schema.pipeline import Statement, commit, run_statements
from assignment_workers.schema.tables import LaneTerm
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from benchmarks.stage import engine, line, servers, show

TURNS = 20_000
LAST = 500
"""Turns whose median is the figure, at the beginning and at the end."""

UPDATED = (
    update(LaneTerm)
    .where(LaneTerm.lane == bindparam("of_lane"), LaneTerm.term == bindparam("of_term"))
    .values(seen_at=func.clock_timestamp())
    .returning(func.clock_timestamp())
)


def proves(on: TransactionRunner) -> None:
    """A turn that does nothing."""
    with on.transaction():
        pass


def updates(on: TransactionRunner) -> None:
    """The same as release 0.1 began it."""
    with on.engine.begin() as connection:
        run_statements(connection, Statement(UPDATED, {"of_lane": on.lane, "of_term": on.term}))
        commit(connection)


SIZE = text("SELECT pg_relation_size('assignment.sequencer')")


def under_an_old_snapshot(
    on: Engine, way: Callable[[TransactionRunner], None], turns: int
) -> tuple[list[float], int]:
    """Milliseconds of each turn, while a snapshot from before the first is held; bytes grown.

    Each dead version of the row makes its table grow, on a busy machine too.
    """
    queue = line(on)
    took = []
    with on.begin() as connection:
        before = connection.execute(SIZE).scalar_one()
    with on.connect() as reader:
        reader.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        reader.execute(text("SELECT term FROM assignment.sequencer")).all()
        for _ in range(turns):
            began = perf_counter()
            way(queue)
            took.append((perf_counter() - began) * 1000)
        return took, reader.execute(SIZE).scalar_one() - before


def main() -> None:
    """Print the medians of the first and the last turns of either way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=TURNS)
    turns = parser.parse_args().turns
    rows = []
    with servers() as given, engine(given.database_url) as on:
        for name, way in {"locks the row": proves, "updates it (0.1)": updates}.items():
            took, grown = under_an_old_snapshot(on, way, turns)
            first, last = statistics.median(took[:LAST]), statistics.median(took[-LAST:])
            rows.append((name, f"{first:.2f}", f"{last:.2f}", f"{grown // 1024:,}"))
    title = "A turn that does nothing, while a snapshot from before it is held, ms"
    show(title, ("the proof", "at first", f"after {turns:,} turns", "table grew, kB"), rows)


if __name__ == "__main__":
    main()
