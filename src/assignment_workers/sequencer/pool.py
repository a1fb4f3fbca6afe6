"""The sequencer's pool: one task at a time, in the worker's own thread."""

from __future__ import annotations

from typing import Any

from celery.concurrency import solo
from celery.exceptions import WorkerTerminate


class TaskPool(solo.TaskPool):
    """Celery's solo pool, changed so that SIGQUIT ends the worker at once and loses no message.

    On SIGQUIT, Celery's own pool raises NotImplementedError inside the running task. The message is
    then acknowledged, although the task is not finished. This pool raises WorkerTerminate instead.
    The task's transaction is rolled back, and its message stays unacknowledged. So the message is
    delivered again: with Redis the next leader puts it back into the queue, with RabbitMQ the
    broker does.
    """

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Abandon the running task. `pid` and `signal` are ignored: there is one process."""
        raise WorkerTerminate(0)
