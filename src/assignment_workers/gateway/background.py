"""Work that a gateway repeats in the background until it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()


async def repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Wait `seconds`, call `work`, and so on until this task is cancelled.

    An exception of `work` is logged with its traceback, and ends nothing: `work` is called again.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.exception("background_work_failed", work=work.__qualname__)
