"""The worker's boot step: Celery's events of tasks go out together, after the answers."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

LATER_SECONDS = 0.1
"""How much later Flower learns of a task."""


class EventBuffer(bootsteps.StartStopStep):
    """Celery sends a message of events for each task before it looks for the next one.

    That costs a busy line about half a millisecond a message. Here the events wait for a moment
    and go in one message; Celery's own limit of events that wait stands.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._waiting: Any = None

    def start(self, consumer: Any) -> None:
        """Called at every connection to the broker."""
        self._waiting = None
        dispatcher = consumer.event_dispatcher

        def flush() -> None:
            self._waiting = None
            dispatcher.flush()

        def later() -> None:
            if self._waiting is None:
                self._waiting = consumer.timer.call_after(LATER_SECONDS, flush)

        dispatcher.on_send_buffered = later

    def stop(self, consumer: Any) -> None:
        """The connection to the broker ends, or the worker does: what waits goes now."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            consumer.event_dispatcher.flush()
