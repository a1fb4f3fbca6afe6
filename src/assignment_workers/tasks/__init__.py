"""The Celery application. Each task calls one operation, in a few lines."""

from __future__ import annotations

from assignment_workers.tasks.app import create_app

__all__ = ["create_app"]
