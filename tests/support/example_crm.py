"""The CRM of an example in another database: a PostgreSQL, or a MariaDB with the same rows."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
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
from sqlalchemy.dialects import mysql
from sqlalchemy.pool import NullPool

from assignment_workers.identity import UserId
from assignment_workers.policy.facts import FactSource, kind_of
from assignment_workers.schema.engine import driver_url
from tests.support.dialers import DIALERS, EXAMPLES
from tests.support.servers import Maria

NUMBERS = itertools.count(1)
TYPES: dict[type[Any] | None, Any] = {
    bool: Boolean(),
    int: BigInteger(),
    date: Date(),
    datetime: DateTime().with_variant(mysql.DATETIME(fsp=3), "mysql"),
}
"""The types of a CRM in MariaDB; everything else is a text there."""


@dataclass(frozen=True)
class ExampleCrm:
    """The CRM's side: who may write there. `url` is what our side is told."""

    url: str
    engine: Engine

    def change(self, sql: str, user: UserId | None = None) -> None:
        """Run a statement there; `:user` is the CRM's own id."""
        with self.engine.begin() as connection:
            connection.execute(text(sql), {} if user is None else {"user": user})


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    """The address of a new database of this PostgreSQL, dropped in the end."""
    name = f"example_{os.getpid()}_{next(NUMBERS)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    try:
        yield f"{server.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def example_elsewhere(name: str, server: str, further: str = "") -> Iterator[ExampleCrm]:
    """The CRM of the example of this name in a database of its own; `further` SQL fills it more."""
    ours = "INSERT INTO public.agents"
    sql = (EXAMPLES / name / "crm.sql").read_text().partition(ours)[0] + further
    with empty_database(server) as url:
        engine = create_engine(driver_url(url), poolclass=NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql(sql.replace("%", "%%"))
        yield ExampleCrm(url, engine)


@contextmanager
def example_in_maria(name: str, server: str, maria: Maria) -> Iterator[ExampleCrm]:
    """As `example_elsewhere`, with the rows of the tables that are read in a MariaDB."""
    maria.run(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    url = f"{maria.url}{name}"
    engine = create_engine(make_url(url).set(drivername="mysql+pymysql"), poolclass=NullPool)
    try:
        with example_elsewhere(name, server) as crm:
            for source in DIALERS[name].external_facts("original", {}).sources:
                _copy(source, crm.engine, engine)
        yield ExampleCrm(url, engine)
    finally:
        maria.run(f"DROP DATABASE {name}")


def _copy(source: FactSource, there: Engine, engine: Engine) -> None:
    schema, _, name = source.of.rpartition(".")
    metadata = MetaData(schema=schema)
    columns = {
        theirs: Column(
            theirs,
            String(200)
            if ours in source.person_columns
            else TYPES.get(kind_of(source.types[ours]), String(200)),
            primary_key=ours == "id",
            autoincrement=False,
            index=ours in source.person_columns and ours != "id",
        )
        for ours, theirs in source.columns.items()
    }
    table = Table(name, metadata, *columns.values())
    with there.connect() as reading, engine.begin() as writing:
        table.create(writing)
        found = reading.execute(select(*(text(f'"{each}"') for each in columns)).select_from(table))
        rows = [dict(row) for row in found.mappings()]
        writing.execute(table.insert(), [{k: _said(v) for k, v in row.items()} for row in rows])


def _said(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value
