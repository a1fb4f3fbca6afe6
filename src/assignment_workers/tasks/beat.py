"""A RedBeat scheduler that survives an unavailable or full Redis, and the loss of its lock."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import structlog
from redbeat.schedulers import (
    LUA_EXTEND_TO_SCRIPT,
    REDBEAT_REDIS_KEY,
    RedBeatScheduler,
    RedBeatSchedulerEntry,
    get_redis,
)
from redis.exceptions import LockError, RedisError

from assignment_workers.client.wire.redis_clients import redis_client

log = structlog.get_logger()

AGAIN_SECONDS = 1.0


def connect_beat(app: Any) -> None:
    """Give RedBeat a Redis client that follows a failover. The client does not connect yet.

    `redbeat_redis_options` of the configuration are passed to redis-py.
    """
    url = app.conf.redbeat_redis_url
    if url is None:
        return
    options = dict(app.conf.redbeat_redis_options or {})
    setattr(app, REDBEAT_REDIS_KEY, redis_client(url, decode_responses=True, **options))


class BeatEntry(RedBeatSchedulerEntry):  # type: ignore[misc] # it has no types
    """An entry of RedBeat's schedule with a corrected time of the next run.

    The schedule gives the time that remains from now until the next run. This entry adds it to the
    present time. RedBeat's own entry adds it to the time of the last run, which is in the past. So
    its result is too early, by as much time as has passed since that run. A task would then seem to
    be overdue whenever a beat process starts.
    """

    @property
    def due_at(self) -> datetime | None:
        """The next time at which the task is due: now if it is overdue, None if never again."""
        remains: timedelta | None = timedelta()
        if self.last_run_at is not None:
            remains = self.schedule.remaining_estimate(self.last_run_at)
        now: datetime = self._default_now()
        return None if remains is None else now + max(remains, timedelta())


class Scheduler(RedBeatScheduler):  # type: ignore[misc] # it has no types
    """RedBeat's scheduler, changed to wait while Redis is unavailable instead of ending.

    It sends tasks only while it holds RedBeat's lock.
    """

    Entry = BeatEntry
    lock: Any

    def setup_schedule(self) -> None:
        """Store the schedule in Redis; retry until Redis accepts it."""
        while True:
            try:
                super().setup_schedule()
            except RedisError as error:
                log.warning("beat_waits", reason=_line(error))
                time.sleep(AGAIN_SECONDS)
            else:
                return

    def tick(self, *args: Any, **options: Any) -> float:
        """Send the due tasks, unless another beat process holds the lock.

        Returns the seconds until the next call.
        """
        try:
            if self.lock_key and self.lock is None and not self._acquire():
                return AGAIN_SECONDS
            return float(super().tick(*args, **options))
        except LockError as error:
            self.lock = None  # Redis was down for longer than the lock lasts, or lost it
            log.warning("beat_waits", reason=f"its lock is gone: {_line(error)}")
        except RedisError as error:
            log.warning("beat_waits", reason=_line(error))
        return AGAIN_SECONDS

    def close(self) -> None:
        """Release the lock, if Redis is available."""
        try:
            super().close()
        except RedisError as error:
            log.warning("lock_not_released", reason=_line(error))

    def _acquire(self) -> bool:
        """Try to acquire RedBeat's lock, without waiting; return True on success."""
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
