"""What we are measured against works on the schema as it is: the benchmarks are run too rarely."""

from __future__ import annotations

import asyncio

from benchmarks.claim import measure
from benchmarks.same_work import SkipLocked
from tests.support.world import UNSIGNED, User, World


def test_eight_connections_claim_and_finish_as_we_do(world: World, database_url: str) -> None:
    world.add_agents(1, 2)
    world.add_users([User(each, each) for each in (11, 12, 13)])
    world.regenerate(UNSIGNED)
    peer = SkipLocked(database_url, world.settings)

    async def both() -> list[int]:
        way = peer.way()
        given = [await way.ask(agent) for agent in (1, 2)]
        await way.finish(1, given[0])
        return [user for _, user in given]

    try:
        users = asyncio.run(both())
    finally:
        peer.close()
    assert users == [11, 12]
    states = dict(world.rows("SELECT user_id, state FROM assignment.assignments"))
    assert states == {11: "completed", 12: "active"}
    assert world.column("SELECT outcome FROM assignment.requests") == ["assigned", "assigned"]
    assert world.unhealthy() == []


def test_turns_of_claims_can_be_measured(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(each, each) for each in range(1, 20)])
    world.regenerate(UNSIGNED)
    assert len(measure(world.engine, 1, 2, world.settings)) == 2
