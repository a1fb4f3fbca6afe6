"""The servers that several modules of faults share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import pytest

from assignment_workers.devstack import rabbitmq, valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.runtime.home import Home
from tests.support.servers import OwnServer, Rabbit

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def rabbit(test_home: Home, guardian: Guardian) -> Iterator[Rabbit]:
    """A node for all that need one: to start one takes longer than most of them."""
    if not rabbitmq.PROGRAM.exists():
        pytest.skip("RabbitMQ is not installed (Debian: apt install rabbitmq-server)")
    made = Rabbit(test_home.path / "rabbitmq", guardian)
    yield made
    made.close()


@pytest.fixture
def own_valkey(test_home: Home, guardian: Guardian) -> Iterator[OwnServer]:
    """A Valkey of the test's own, which the test may fill."""
    directory = test_home.path / f"valkey-full-{next(NUMBERS)}"
    made = OwnServer(partial(valkey.prepare, fsync=False), directory, guardian)
    yield made
    made.stop()
