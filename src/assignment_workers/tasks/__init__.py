"""The Celery application: its tasks are doors to the operations, a few lines each."""

from __future__ import annotations

from assignment_workers.tasks.app import create_app

__all__ = ["create_app"]
