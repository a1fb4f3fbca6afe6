"""The connection over which a gateway reads PostgreSQL's health: kept, replaced, and lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from assignment_workers.assignment.lanes import ONE_LANE
from assignment_workers.health.database import KEPT_SECONDS, DatabaseReader
from assignment_workers.health.readings import NotRead
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.crm import CrmUser
from tests.support.steady_clock import SteadyClock
from tests.support.world import World

CRM = CrmUser.__tablename__
PIDS = b"""
SELECT pid FROM pg_stat_activity
WHERE datname = %s AND application_name = 'assignment-workers health'
"""


REFUSALS = {
    "no login": (
        "ALTER ROLE {0.role} NOLOGIN",
        "ALTER ROLE {0.role} LOGIN",
        "refuses our login",
    ),
    "no role": (
        "ALTER ROLE {0.role} RENAME TO {0.role}_renamed",
        "ALTER ROLE {0.role}_renamed RENAME TO {0.role}",
        "does not have the database or the role of DATABASE_URL",
    ),
    "no database": (
        "ALTER DATABASE {0.database} ALLOW_CONNECTIONS false",
        "ALTER DATABASE {0.database} ALLOW_CONNECTIONS true",
        "lets nobody use the database of DATABASE_URL",
    ),
    "no right": (
        "REVOKE CONNECT ON DATABASE {0.database} FROM PUBLIC",
        "GRANT CONNECT ON DATABASE {0.database} TO PUBLIC",
        "refuses our login",
    ),
    "no connection of the role": (
        "ALTER ROLE {0.role} CONNECTION LIMIT 0",
        "ALTER ROLE {0.role} CONNECTION LIMIT -1",
        "has no free connection",
    ),
    "no connection of the database": (
        "ALTER DATABASE {0.database} CONNECTION LIMIT 0",
        "ALTER DATABASE {0.database} CONNECTION LIMIT -1",
        "has no free connection",
    ),
}
"""Ways in which PostgreSQL refuses a new connection, the way back, and the words for it."""


@pytest.fixture
def seconds() -> SteadyClock:
    return SteadyClock()


class Server:
    """PostgreSQL as its superuser has it, and a role that reads the health of one database."""

    role = f"health_{uuid4().hex[:12]}"

    def __init__(self, to: psycopg.Connection, database: str) -> None:
        self._to = to
        self.database = database

    def execute(self, sql: str) -> None:
        self._to.execute(sql.encode())

    def pids(self) -> list[int]:
        return [pid for (pid,) in self._to.execute(PIDS, [self.database])]

    def end_connections(self) -> None:
        for pid in self.pids():
            self.execute(f"SELECT pg_terminate_backend({pid}, 5000)")


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    url = make_url(database_url)
    superuser = url.set(username="postgres", database="postgres").render_as_string()
    with psycopg.connect(superuser, autocommit=True) as connection:
        made = Server(connection, str(url.database))
        made.execute(f"CREATE ROLE {made.role} LOGIN IN ROLE pg_read_all_data, pg_read_all_stats")
        yield made
        made.execute(f"DROP ROLE {made.role}")


@pytest.fixture
def reader(database_url: str, seconds: SteadyClock, server: Server) -> Iterator[DatabaseReader]:
    url = make_url(database_url).set(username=server.role).render_as_string()
    made = DatabaseReader(url, ONE_LANE, loaded(), own_crm=True, clock=seconds)
    yield made
    made.close()


def test_a_connection_is_kept_for_two_seconds_and_then_replaced(
    server: Server, reader: DatabaseReader, seconds: SteadyClock
) -> None:
    reader()
    [first] = server.pids()
    seconds.now += KEPT_SECONDS - 0.01
    reader()
    assert server.pids() == [first]
    seconds.now += 0.01
    reader()
    [second] = server.pids()
    assert second != first


def test_clock_and_queues_are_read_anew_over_a_kept_connection(
    world: World, server: Server, reader: DatabaseReader
) -> None:
    before = reader()
    world.execute("UPDATE assignment.queues SET paused_at = now()")
    after = reader()
    assert len(server.pids()) == 1
    assert after.now > before.now
    assert not any(each.paused_at for each in before.queues)
    assert after.queues
    assert all(each.paused_at for each in after.queues)
    assert after.jobs == before.jobs


def test_the_other_facts_are_read_over_each_new_connection(
    world: World, server: Server, reader: DatabaseReader, seconds: SteadyClock
) -> None:
    assert reader().crm_trouble is None
    world.execute(f"ALTER TABLE crm.{CRM} RENAME TO gone")
    assert reader().crm_trouble is None
    seconds.now += KEPT_SECONDS
    assert reader().crm_trouble is not None


def test_a_kept_connection_that_the_server_ended_is_replaced_in_the_same_reading(
    server: Server, reader: DatabaseReader
) -> None:
    reader()
    before = server.pids()
    server.end_connections()
    reader()
    assert len(server.pids()) == 1
    assert server.pids() != before


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_server_that_takes_no_new_connection_is_named_when_the_kept_one_is_replaced(
    server: Server, reader: DatabaseReader, seconds: SteadyClock, refusal: Sequence[str]
) -> None:
    way, back, said = refusal
    reader()
    server.execute(way.format(server))
    try:
        reader()
        seconds.now += KEPT_SECONDS
        with pytest.raises(NotRead, match=said):
            reader()
    finally:
        server.execute(back.format(server))
    reader()


def test_after_a_loss_the_error_is_that_of_a_new_connection(
    server: Server, reader: DatabaseReader
) -> None:
    reader()
    server.execute(f"ALTER ROLE {server.role} NOLOGIN")
    server.end_connections()
    with pytest.raises(NotRead, match="refuses our login"):
        reader()


def test_an_error_over_a_kept_connection_is_named_and_the_connection_closed(
    world: World, server: Server, reader: DatabaseReader
) -> None:
    reader()
    world.execute("ALTER TABLE assignment.queues RENAME TO gone")
    with pytest.raises(NotRead, match="does not have our tables of this version"):
        reader()
    assert server.pids() == []
    world.execute("ALTER TABLE assignment.gone RENAME TO queues")
    reader()
