"""A worker boot step: a worker returns to the first RabbitMQ node of its address.

The address lists several nodes. On each host, the node of that host is to be listed first
(docs/how-to/high-availability.md). If the first node does not answer, the worker connects to a node
on another host. If the worker stayed with that node, the loss of the other host would interrupt the
worker, although the worker's own host still runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import structlog
from celery import bootsteps

from assignment_workers.client.wire.rabbitmq import (
    CONNECT_SECONDS,
    LOOK_SECONDS,
    FirstNodeWatch,
)

log = structlog.get_logger()


class FirstNode(bootsteps.StartStopStep):
    """Reconnects a worker to the first RabbitMQ node of BROKER_URL, once that node answers again.

    While the worker uses another node, a thread tries to connect to the first one. As soon as that
    succeeds, the worker closes its connection between two messages and connects anew, which takes a
    fraction of a second. The step does nothing with Redis, or with an address of one node.
    """

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Start the attempts to reach the first node, if the new connection is to another node."""
        connection = consumer.connection
        nodes = connection.alt
        if connection.transport.driver_type != "amqp" or not nodes:
            return
        to_first = partial(
            consumer.app.connection_for_read, nodes[0], connect_timeout=CONNECT_SECONDS
        )
        watch = FirstNodeWatch(to_first)
        if not watch.is_in_use(connection):
            every = consumer.timer.call_repeatedly
            self._timer = every(LOOK_SECONDS, self._look, (consumer, watch))

    def stop(self, consumer: Any) -> None:
        """Stop trying to reach the first node when the broker connection or the worker ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, consumer: Any, watch: FirstNodeWatch) -> None:
        if watch.answers:
            log.info("returns_to_first_node")
            # The acknowledgements that were sent reach the node before the connection ends.
            consumer.task_consumer.cancel()
            consumer.connection.close()
            # Celery connects again after such an error, and begins with the first node.
            raise ConnectionResetError("the first node of BROKER_URL answers again")
        watch.look()
