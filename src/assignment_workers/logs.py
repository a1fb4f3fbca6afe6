"""Logs: one event name per thing, its facts as fields, ids only.

Nobody's name or number is logged.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

Form = Literal["logfmt", "json", "console"]


def set_up(form: Form = "logfmt", level: str = "info") -> None:
    """Every line of this process, ours and the libraries', in one form on standard error.

    From `level` on: debug, info, warning or error.
    """
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
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if form == "json" else [_escaped]),  # JSON escapes by itself
                _renderer(form),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
    logging.getLogger("assignment_workers").setLevel(level.upper())
    for noisy in (
        "alembic",
        "celery.app.trace",  # each task with its answer: Flower shows them
        "celery.worker.strategy",
        "celery.redirected",
        "kombu",
        "tornado.access",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Flower asks workers that start beside it, and asks again.
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)


def _renderer(form: Form) -> structlog.typing.Processor:
    match form:
        case "json":
            return structlog.processors.JSONRenderer()
        case "console":
            return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        case "logfmt":
            return structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], drop_missing=True
            )


def _escaped(_: object, __: str, facts: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write control characters as they are written in a program: none begins a line of its own.

    A traceback keeps its lines, each set in, so that none looks like a line of the log.
    """
    for name in list(facts):
        value = facts.pop(name)
        if not isinstance(value, bool | int | float | None):
            lines = str(value).split("\n") if name == TRACE else [str(value)]
            value = "\n    ".join(escaped(line) for line in lines)
        facts[escaped(name)] = value
    return facts


TRACE = "exception"


def escaped(said: str) -> str:
    """The text with its control characters, and those that turn a line around, escaped."""
    if said.isprintable():
        return said
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _CONTROL else each
        for each in said
    )


_CONTROL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories: controls, formats such as a change of direction, lone halves, line ends."""
