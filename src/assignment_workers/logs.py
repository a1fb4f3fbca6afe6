"""Logs: one event name for each kind of event, its facts as fields, ids only.

No names and no phone numbers of people are logged.
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
    """Configure logging: lines of this package and of libraries go to standard error.

    `form` is the format of the lines. `level` is the lowest level that is logged: debug, info,
    warning or error. Library lines with a level below info are never logged.
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
                *([] if form == "json" else [_escaped]),  # JSON escapes control characters already
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
        "celery.app.trace",  # each task with its answer, which Flower shows
        "celery.worker.strategy",
        "celery.redirected",
        "kombu",
        "tornado.access",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Flower queries workers that are still starting, and repeats the query.
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
    """Escape control characters in the fields of an event, so that no value can forge a log line.

    A traceback keeps its line breaks. Its lines are indented, so that none looks like a line of the
    log.
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
    """Return the text `said` with control and direction-changing characters escaped."""
    if said.isprintable():
        return said
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _CONTROL else each
        for each in said
    )


_CONTROL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""The Unicode categories to escape: controls, formats such as direction marks, lone surrogates,
line ends.
"""
