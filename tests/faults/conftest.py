"""The servers that several modules of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from assignment_workers.devstack.guardian import Guardian
from assignment_workers.runtime.home import Home
from tests.support.servers import RABBITMQ, Rabbit


@pytest.fixture(scope="session")
def rabbit(test_home: Home, guardian: Guardian) -> Iterator[Rabbit]:
    """A node for all that need one: to start one takes longer than most of them."""
    if not RABBITMQ.exists():
        pytest.skip("RabbitMQ is not installed (Debian: apt install rabbitmq-server)")
    made = Rabbit(test_home.path / "rabbitmq", guardian)
    yield made
    made.close()
