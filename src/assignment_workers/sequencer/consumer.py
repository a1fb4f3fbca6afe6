"""Celery's consumer without what this project never uses."""

from __future__ import annotations

from typing import Any, ClassVar

from celery.worker.consumer import consumer

_Blueprint: Any = consumer.Consumer.Blueprint


class Consumer(consumer.Consumer):
    """Celery's own, but for the 28 queues and exchanges that it declares for delayed messages.

    A delayed message would lose its place in the order; nothing here sends one.
    """

    class Blueprint(_Blueprint):  # type: ignore[misc]
        """The steps of its start."""

        default_steps: ClassVar[list[str]] = [
            step for step in _Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]
