"""A worker boot step: a worker returns to the first RabbitMQ node of its address.

The address lists several nodes. On each host, the node of that host is to be listed first
(docs/how-to/high-availability.md). If the first node does not answer, the worker connects to a node
on another host. If the worker stayed with that node, the loss of the other host would interrupt the
worker, although the worker's own host still runs.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog
from celery import bootsteps

log = structlog.get_logger()

LOOK_SECONDS = 3.0
"""Seconds between two attempts to reach the first node, while the worker uses another one."""
ANSWER_SECONDS = 2.0
"""The most seconds that the first node may take to accept a connection."""


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
        self._attempt: threading.Thread | None = None
        self._answers = threading.Event()

    def start(self, consumer: Any) -> None:
        """Start the attempts to reach the first node, if the new connection is to another node."""
        connection = consumer.connection
        nodes = connection.alt
        if connection.transport.driver_type != "amqp" or not nodes:
            return
        first = nodes[0]
        if consumer.app.connection_for_read(first).host == connection.host:
            return
        self._answers.clear()
        every = consumer.timer.call_repeatedly
        self._timer = every(LOOK_SECONDS, self._look, (consumer, first))

    def stop(self, consumer: Any) -> None:
        """Stop trying to reach the first node when the broker connection or the worker ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, consumer: Any, first: str) -> None:
        if self._answers.is_set():
            log.info("returns_to_first_node")
            # The acknowledgements that were sent reach the node before the connection ends.
            consumer.task_consumer.cancel()
            consumer.connection.close()
            # Celery connects again after such an error, and begins with the first node.
            raise ConnectionResetError("the first node of BROKER_URL answers again")
        if self._attempt is None or not self._attempt.is_alive():
            self._attempt = threading.Thread(
                target=self._try, args=(consumer.app, first), name="first-node", daemon=True
            )
            self._attempt.start()

    def _try(self, app: Any, first: str) -> None:
        with app.connection_for_read(first, connect_timeout=ANSWER_SECONDS) as connection:
            try:
                connection.connect()
            except connection.connection_errors + connection.channel_errors:
                return  # the next attempt may succeed
        self._answers.set()
