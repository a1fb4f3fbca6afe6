"""A dialer's database is taken over, and looked at afterwards."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import create_engine

from assignment_workers.adoption.migrate import migrate
from assignment_workers.assignment.history import history
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.engine import driver_url
from assignment_workers.settings import Settings
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected

SETTINGS = Settings.from_environment({})


class Killed(BaseException):
    """What a test ends a migration with."""


def nobody(_: str) -> None:
    """Listens to nothing."""


def moved(url: str, *, batch: int = 3, tell: Callable[[str], None] = nobody) -> str:
    return migrate(url, settings=SETTINGS, tell=tell, batch=batch)


def rows(url: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with connected(url) as connection:
        return connection.execute(sql, values).fetchall()


def check(url: str) -> None:
    """This version runs on it, and no guarantee is broken."""
    engine = create_engine(driver_url(url))
    with engine.connect() as connection:
        migrations.check(connection)
        connection.rollback()
        assert [each for each in examine(connection, loaded()) if not each.ok] == []
        connection.rollback()
        assert (
            history.check(
                connection, dialer=loaded(), settings=SETTINGS, bound=timedelta(minutes=2)
            )
            == []
        )
    engine.dispose()


def columns(url: str, table: str) -> list[tuple[Any, ...]]:
    """The columns of a table or view in their order, with their types."""
    return rows(
        url,
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        table,
    )


def state(url: str) -> list[Any]:
    """What a taking over ends in, without what is made anew by each: numbers, ids and times."""
    with connected(url) as connection:
        agents = {
            table: dialers.agent_column(connection, table) for table in (UNSIGNED, OUTSTANDING)
        }
    return [
        rows(url, f"SELECT user_id, queue_position, status, {agent} FROM {table} ORDER BY 1")
        for table, agent in agents.items()
    ] + [
        rows(url, "SELECT user_id, agent_id, queue, state FROM assignment.assignments ORDER BY 1"),
        rows(
            url,
            "SELECT found_in, user_id, agent_id, rule FROM assignment.adoption_decisions "
            "ORDER BY 1, 2, 3, 4",
        ),
    ]
