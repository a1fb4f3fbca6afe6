"""A worker boot step that sends Celery's task events in batches, not one message per task."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

LATER_SECONDS = 0.1
"""Seconds for which a task's event waits, so that later events are sent in the same message.

Flower shows events with this delay.
"""


class EventBuffer(bootsteps.StartStopStep):
    """Sends Celery's task events in batches.

    Celery sends a message of events for each task before it takes the next task, which costs a busy
    assignment queue about half a millisecond per message. With this step, events wait for
    `LATER_SECONDS` and share one message. Celery's own limit of waiting events still applies.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._waiting: Any = None

    def start(self, consumer: Any) -> None:
        """Attach to the event dispatcher of a new broker connection."""
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
        """Send the waiting events before the broker connection or the worker ends."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            consumer.event_dispatcher.flush()
