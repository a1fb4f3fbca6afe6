"""The demo CRM takes rows that somebody adds by hand."""

from __future__ import annotations

from datetime import UTC, datetime

from assignment_workers.devstack import demo
from tests.support.world import opened


def test_a_row_that_is_added_by_hand_has_an_id_after_the_demos(database_url: str) -> None:
    with opened(database_url) as world:
        with world.engine.begin() as connection:
            demo.seed(connection, users=1100, seed=7, now=datetime.now(UTC))
        added = "INSERT INTO crm.{} DEFAULT VALUES RETURNING id"
        assert world.value(added.format("users")) == 2201
        last = world.value("SELECT max(id) FROM crm.claims")
        claim = "INSERT INTO crm.claims (user_id) VALUES (2201) RETURNING id"
        assert world.value(claim) == last + 1
