"""Other Celery programs in the test's own process, whose connections end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from assignment_workers.settings import Settings
from assignment_workers.tasks import create_app


@contextmanager
def ended(app: Celery) -> Iterator[Any]:
    """The application, whose connections for results are closed at the end.

    Celery leaves them to the garbage collector, which may find the socket before its owner: then
    it warns, in whatever test runs at that time. `close` of the backend's client leaves the
    connections in its pool open. The pools of connections to the broker are the process's own.
    """
    with app:
        try:
            yield app
        finally:
            backend: Any = app.backend
            if consumer := getattr(backend, "result_consumer", None):
                consumer.stop()
                backend.client.connection_pool.disconnect()


def dialer_program(redis_url: str) -> Any:
    """The application of the product itself, as its processes make it."""
    return ended(create_app(Settings.from_environment({"REDIS_URL": redis_url})))


def celery_program(broker: str, results: str) -> Any:
    """A program that sends tasks through `broker` and reads their results in `results`."""
    return ended(Celery(broker=broker, backend=results, set_as_current=False))
