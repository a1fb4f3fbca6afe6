"""How the places of users are found: by their key, whatever was so when statistics were gathered."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from assignment_workers.assignment.generations import entries
from tests.support.world import HOUR, UNSIGNED, User, World


@pytest.mark.parametrize("done", ["give_back", "take_out", "put_off"])
def test_places_are_found_by_their_key_however_rare_their_state_was(
    world: World, done: str
) -> None:
    """Else each user is looked for among all who are in that state: five thousand times as many."""
    world.add_users([User(each) for each in range(1, 2_001)])
    number = world.build(UNSIGNED)
    world.publish(number)
    world.execute("UPDATE assignment.entries SET state = 'out', reason = 'disabled'")
    world.execute("ANALYZE assignment.entries")
    users = list(range(1, 501))
    plans: list[str] = []

    def explain(_: Any, cursor: Any, statement: str, given: Any, *__: Any) -> None:
        if statement.startswith("UPDATE assignment.entries"):
            cursor.execute(f"EXPLAIN {statement}", given)
            plans.append("\n".join(row[0] for row in cursor.fetchall()))

    event.listen(world.engine, "before_cursor_execute", explain)
    with world.transaction() as transaction:
        if done == "give_back":
            entries.give_back(transaction, users)
        elif done == "take_out":
            entries.take_out(transaction, UNSIGNED, number, dict.fromkeys(users, "disabled"))
        else:
            until = world.now + HOUR
            entries.put_off(transaction, UNSIGNED, number, dict.fromkeys(users, ("resting", until)))
    (plan,) = plans
    scans = [line for line in plan.splitlines() if "Scan" in line and "entries" in line]
    assert scans
    assert all("pkey" in line for line in scans), plan
