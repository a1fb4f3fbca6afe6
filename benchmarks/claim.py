"""What a turn of claims costs, by how many requests it answers and how long the dialer queue is.

.venv/bin/python -m benchmarks.claim
"""

from __future__ import annotations

import argparse
import time

from sqlalchemy import Engine, text

from assignment_workers.assignment.answers import Assigned, RequestAnswer
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete, Owner
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from benchmarks.dialer import POLICIES, UNSIGNED_USERS
from benchmarks.stage import (
    build_and_publish,
    engine,
    line,
    milliseconds,
    seed,
    servers,
    show,
)

LISTS = (1, 8, 64, 256)
AGENTS = max(LISTS)


def measure(
    on: Engine,
    size: int,
    turns: int,
    settings: Settings,
    *,
    crm: Crm | None = None,
    label: str = "",
) -> list[float]:
    """The seconds of each of so many turns that answer `size` requests.

    `crm`: the CRM if it is in another database. `label` begins their ids: who measures twice on one
    database gives another each time.
    """
    seconds: list[float] = []
    sequence = line(on, crm)
    for number in range(turns + 5):
        asked = [
            ClaimRequest(agent, f"{label}{size}-{number}-{agent}", "unsigned_users", None, None)
            for agent in range(1, size + 1)
        ]

        def transaction(
            transaction: FencedTransaction, asked: list[ClaimRequest] = asked
        ) -> list[RequestAnswer | None]:
            return claim(transaction, asked, policies=POLICIES, settings=settings)

        began = time.perf_counter()
        answers = sequence.run(transaction)
        seconds.append(time.perf_counter() - began)
        given = [each for each in answers if isinstance(each, Assigned)]
        if len(given) != size:
            raise RuntimeError(f"{len(given)} of {size} were given a user")
        give_up(sequence, given)
    return seconds[5:]


def give_up(sequence: TransactionRunner, given: list[Assigned]) -> None:
    """End these holds, outside of what is measured."""

    def transaction(transaction: FencedTransaction) -> None:
        owners = [Owner(each.assignment.id, each.assignment.agent_id) for each in given]
        finish(transaction, [Complete(owner, "no_answer") for owner in owners])

    sequence.run(transaction)


def main() -> None:
    """Measure, and print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--users", type=int, nargs="+", default=[20_000, 200_000])
    options.add_argument("--turns", type=int, default=50)
    given = options.parse_args()
    settings = Settings.from_environment({})
    rows: list[list[object]] = []
    for users in given.users:
        with servers() as at, engine(at.database_url) as on:
            seed(on, users=users)
            with on.begin() as connection:
                connection.execute(
                    text(
                        "INSERT INTO agents (id, email, first_name, last_name, created_at,"
                        " updated_at) SELECT n, 'more' || n, 'A', n::text, now(), now()"
                        " FROM generate_series(101, :last) n"
                    ),
                    {"last": AGENTS},
                )
            build_and_publish(on, UNSIGNED_USERS, settings)
            for size in LISTS:
                seconds = measure(on, size, given.turns, settings)
                median, worst = milliseconds(seconds)
                each = f"{1000 * sum(seconds) / len(seconds) / size:.3f}"
                rows.append([f"{users:,}", size, median, worst, each])
    show(
        "A turn of claims, ms",
        ["users in the pool", "requests", "median", "p99", "mean for each"],
        rows,
    )


if __name__ == "__main__":
    main()
