"""The sequencer's pool: one task at a time, in the worker's own thread."""

from __future__ import annotations

from typing import Any

from celery.concurrency import solo
from celery.exceptions import WorkerTerminate


class TaskPool(solo.TaskPool):
    """Celery's solo pool, which can be ended at once without losing the running task.

    The stock one raises NotImplementedError inside the task on SIGQUIT, and the message is then
    acknowledged. Here the task is given up, its transaction rolled back, its message put back.
    """

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Give up the running task."""
        raise WorkerTerminate(0)
