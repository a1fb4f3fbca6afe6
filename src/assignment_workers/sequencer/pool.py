"""The sequencer's pool: one task at a time, in the worker's own thread."""

from __future__ import annotations

from typing import Any

from celery.concurrency import solo
from celery.exceptions import WorkerTerminate


class TaskPool(solo.TaskPool):
    """Celery's solo pool, changed so that SIGQUIT stops it at once without losing the running task.

    On SIGQUIT Celery's own pool raises NotImplementedError inside the task, and the message is then
    acknowledged. This pool abandons the task: its transaction is rolled back, its message put back.
    """

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Abandon the running task. `pid` and `signal` are ignored: there is one process."""
        raise WorkerTerminate(0)
