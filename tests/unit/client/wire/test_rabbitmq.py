"""Which node of an address of several a connection is to."""

from __future__ import annotations

import pytest
from kombu import Connection

from assignment_workers.client.wire.rabbitmq import FirstNodeWatch


@pytest.mark.parametrize(
    ("first", "opened", "is_in_use"),
    [
        ("amqp://localhost//", "amqp://127.0.0.1:5672//", True),
        ("amqp://localhost:5672//", "amqp://127.0.0.1:5672//", True),
        ("amqp://a//", "amqp://a:5672//", True),
        ("amqps://a//", "amqps://a:5671//", True),
        ("amqp://ann:secret@a:5672/dialer", "amqp://ann:secret@a:5672/dialer", True),
        ("amqp://[::1]:5672//", "amqp://[::1]:5672//", True),
        ("amqp://a//", "amqp://b:5672//", False),
        ("amqp://a:5673//", "amqp://a:5672//", False),
    ],
)
def test_the_first_node_is_known_however_it_is_written(
    first: str, opened: str, is_in_use: bool
) -> None:
    """An opened connection has the values that kombu sets: 127.0.0.1 for localhost, and a port."""
    watch = FirstNodeWatch(lambda: Connection(first))
    assert watch.is_in_use(Connection(opened)) is is_in_use
