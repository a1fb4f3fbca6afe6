"""Connections to an external CRM write nothing, whatever the role would be allowed to."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from assignment_workers.schema.external_crm import reader


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("pool", [None, 1])
def test_the_server_refuses_a_write(
    request: pytest.FixtureRequest, kind: str, pool: int | None
) -> None:
    if kind == "mariadb":
        url = f"{request.getfixturevalue('maria').url}test_read_only"
        request.getfixturevalue("maria").run("CREATE DATABASE IF NOT EXISTS test_read_only")
    else:
        url = request.getfixturevalue("empty_database_url")
    engine = reader(url, 2.0, pool=pool)
    try:
        for _ in range(2):  # the second time on a connection of the pool that was used before
            with engine.connect() as connection:
                assert connection.execute(text("SELECT 1")).scalar() == 1
                with pytest.raises(DBAPIError, match=r"(?i)read.only"):
                    connection.execute(text("CREATE TABLE written (id integer)"))
    finally:
        engine.dispose()
