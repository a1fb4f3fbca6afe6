"""RedBeat's scheduler, for which a Redis that is away, is full or forgot the lock is no end."""

from __future__ import annotations

import time
from typing import Any

import structlog
from redbeat.schedulers import LUA_EXTEND_TO_SCRIPT, RedBeatScheduler, get_redis
from redis.exceptions import LockError, RedisError

log = structlog.get_logger()

AGAIN_SECONDS = 1.0


class Scheduler(RedBeatScheduler):  # type: ignore[misc] # it has no types
    """Waits where RedBeat's own ends with a traceback; fires only while it holds the lock."""

    lock: Any

    def setup_schedule(self) -> None:
        """Store the schedule, once Redis takes it."""
        while True:
            try:
                super().setup_schedule()
            except RedisError as error:
                log.warning("beat_waits", reason=_line(error))
                time.sleep(AGAIN_SECONDS)
            else:
                return

    def tick(self, *args: Any, **options: Any) -> float:
        """Fire what is due, unless another beat fires; seconds until the next look."""
        try:
            if self.lock_key and self.lock is None and not self._acquire():
                return AGAIN_SECONDS
            return float(super().tick(*args, **options))
        except LockError as error:
            self.lock = None  # Redis was away for longer than it lasts, or came back without it
            log.warning("beat_waits", reason=f"its lock is gone: {_line(error)}")
        except RedisError as error:
            log.warning("beat_waits", reason=_line(error))
        return AGAIN_SECONDS

    def close(self) -> None:
        """Give the lock back, if Redis is there for it."""
        try:
            super().close()
        except RedisError as error:
            log.warning("lock_not_released", reason=_line(error))

    def _acquire(self) -> bool:
        """Take the lock, as RedBeat does at its start."""
        client = get_redis(self.app)
        lock = client.lock(self.lock_key, timeout=self.lock_timeout, sleep=self.max_interval)
        lock.lua_extend = client.register_script(LUA_EXTEND_TO_SCRIPT)
        if not lock.acquire(blocking=False):
            return False
        self.lock = lock
        log.info("beat_lock_acquired")
        return True


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
