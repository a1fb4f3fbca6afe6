"""Logs: one event name per thing, its facts as fields, ids only.

Nobody's name or number is logged.
"""

from __future__ import annotations

import logging
import sys

import structlog


def set_up() -> None:
    """Every line of this process, ours and the libraries', in one form on standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.LogfmtRenderer(
                    key_order=["timestamp", "level", "event"], drop_missing=True
                ),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for noisy in (
        "alembic",
        "celery.app.trace",  # each task with its answer: Flower shows them
        "celery.worker.strategy",
        "celery.redirected",
        "kombu",
        "tornado.access",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
