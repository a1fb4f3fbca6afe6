"""Work that a gateway repeats in the background until it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

Work = Callable[[], Awaitable[None]]


async def repeat(seconds: float, work: Work) -> None:
    """Wait `seconds`, call `work`, and so on until this task is cancelled.

    An exception of `work` is logged with its traceback, and ends nothing: `work` is called again.
    """
    while True:
        await asyncio.sleep(seconds)
        await attempt(work)


async def attempt(work: Work) -> None:
    """Call `work` once. An exception is logged with its traceback, and not raised."""
    try:
        await work()
    except Exception:
        log.exception("background_work_failed")
