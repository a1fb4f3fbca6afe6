"""What a CRM in another database costs: a turn of claims beside one with it here, and the mirror.

.venv/bin/python -m benchmarks.crm [--also mysql://user:password@host/database ...]

`elsewhere` is another database of the same PostgreSQL; those of `--also` are empty ones to fill.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    create_engine,
    make_url,
    select,
    text,
)
from sqlalchemy.types import BigInteger, TypeEngine

from assignment_workers.assignment import jobs
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.mirror import READING, read_whole
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.assignment.jobs import Job
from assignment_workers.dialers.claims import dialer
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.engine import driver_url
from assignment_workers.settings import Settings
from benchmarks.claim import measure
from benchmarks.dialer import UNSIGNED_USERS
from benchmarks.stage import build_and_publish, engine, milliseconds, seed, servers, show

LISTS = (1, 64)
AGENTS = max(LISTS)
BATCH = 10_000


def fill(on: Engine, url: str) -> None:
    """Copy the CRM that is here into this database, with the indexes that a CRM has."""
    address = make_url(url)
    if address.get_backend_name() in {"mysql", "mariadb"}:
        there = create_engine(address.set(drivername="mysql+pymysql"))
    else:
        there = create_engine(driver_url(url))
    kinds: dict[type[Any], TypeEngine[Any]]
    kinds = {bool: Boolean(), int: BigInteger(), str: String(255)}
    made = MetaData()
    with on.connect() as source, there.begin() as target:
        for facts in dialer.external_facts("original", {}).sources:
            of = CrmBase.metadata.tables[f"crm.{facts.name}"]
            columns: list[Column[Any]] = [
                Column(
                    name,
                    kinds.get(of.c[name].type.python_type, DateTime()),
                    primary_key=name == "id",
                    autoincrement=False,
                    index=name in {"user_id", "claim_id"},
                )
                for name in facts.columns
            ]
            table = Table(facts.of, made, *columns)
            table.create(target)
            found = source.execute(select(*(of.c[name] for name in facts.columns)))
            for batch in found.mappings().partitions(BATCH):
                target.execute(table.insert(), [dict(row) for row in batch])
    there.dispose()


def mirrored(on: Engine, crm: Crm) -> float:
    """The seconds of one reading of the CRM as a whole."""
    began = time.perf_counter()
    jobs.run(on, Job(READING, "benchmark"), partial(read_whole, dialer=dialer, crm=crm))
    return time.perf_counter() - began


def main() -> None:
    """Measure by turns, and print two tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--users", type=int, default=50_000, help="in each of two pools")
    options.add_argument("--turns", type=int, default=20)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--also", nargs="+", default=[], help="empty databases for a CRM")
    given = options.parse_args()
    settings = Settings.from_environment({})
    with servers() as at, ExitStack() as opened:
        here = opened.enter_context(engine(at.database_url))
        seed(here, users=given.users)
        with here.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
            admin.execute(text("CREATE DATABASE crm_elsewhere"))
        own = make_url(at.database_url).set(database="crm_elsewhere")
        addresses = [own.render_as_string(hide_password=False), *given.also]
        build_and_publish(here, UNSIGNED_USERS, settings)
        ways: list[tuple[str, Engine, Crm | None]] = [("here", here, None)]
        mirrors: list[list[object]] = []
        for url in addresses:
            fill(here, url)
            crm = Crm(url, dialer.external_facts("original", {}), timeout=timedelta(seconds=5))
            opened.callback(crm.close)
            on = opened.enter_context(engine(at.database_url, pool_size=4))
            use_fact_schema(on, dialer, crm)
            name = f"elsewhere, {make_url(url).get_backend_name()}"
            ways.append((name, on, crm))
            # An empty mirror, then one in which nothing differs.
            with here.begin() as connection:
                connection.execute(text("TRUNCATE crm_mirror.users, crm_mirror.claims"))
                connection.execute(text("TRUNCATE crm_mirror.claim_requirements"))
            share = given.users * 2 / 100_000
            mirrors.append([name, *(f"{mirrored(on, crm) / share:.2f}" for _ in range(2))])
        show("A turn of claims, ms", ["CRM", "requests", "median", "p99"], turns(ways, given))
    show("The mirror, seconds for 100,000 users", ["CRM", "all new", "nothing changed"], mirrors)


def turns(
    ways: Sequence[tuple[str, Engine, Crm | None]], given: argparse.Namespace
) -> list[list[object]]:
    """By way and size of list: the turns of all rounds, each of which goes through all the ways."""
    settings = Settings.from_environment({})
    rows: list[list[object]] = []
    for size in LISTS:
        seconds: dict[str, list[float]] = {name: [] for name, _, _ in ways}
        for number in range(given.rounds):
            for name, on, crm in ways:
                label = f"{name}-{number}-"
                seconds[name] += measure(on, size, given.turns, settings, crm=crm, label=label)
        rows += [[name, size, *milliseconds(found)] for name, found in seconds.items()]
    return rows


if __name__ == "__main__":
    main()
