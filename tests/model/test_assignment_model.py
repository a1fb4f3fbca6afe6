"""The real operations, in any order and at any time, against the dialer in memory.

`make model` takes forty times as many steps as `make test`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Machine
from tests.model.trades import TRADES, Trade
from tests.support.dialers import using
from tests.support.world import opened

SHARES = {"claims": 24, "clinic": 48, "charity": 48}
"""By trade: of how many examples of Hypothesis's profile one is run."""
STEPS = 50


@pytest.fixture(params=TRADES)
def trade(request: pytest.FixtureRequest) -> Iterator[Trade]:
    """A dialer, which is the process's while it is tested."""
    made = TRADES[request.param]
    with using(made.dialer):
        yield made


@pytest.mark.timeout(120 + 40 * (settings().max_examples // min(SHARES.values())))
def test_operations_in_any_order_do_what_the_model_says(database_url: str, trade: Trade) -> None:
    examples = settings().max_examples // SHARES[trade.name]
    names = [each.name for each in trade.dialer.queues]
    with opened(database_url) as world:
        trade.prepare(world)
        world.execute("DELETE FROM agents")
        for name in names:
            world.execute(
                "INSERT INTO assignment.queues VALUES (:name) ON CONFLICT DO NOTHING", name=name
            )
        world.add_agents(1, 2, 3, allowed_queues=names)
        world.add_agents(4, allowed_queues=names[-1:])
        world.add_agents(5, is_active=False, allowed_queues=names[:1])
        begun: Any = partial(Machine, world, trade)
        run_state_machine_as_test(
            begun,
            settings=settings(max_examples=examples, stateful_step_count=STEPS, database=None),
        )
