"""The next run of each job, as beat stores it in Redis."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

PREFIX = "assignment-workers:beat:"
"""The prefix of beat's keys in Redis: `redbeat_key_prefix` of the shipped celeryconfig.py. With
another prefix no schedule is found.
"""
FRESH_SECONDS = 2.0
ENTRIES = 100


@dataclass
class Schedule:
    """Reads the schedule that beat stored in Redis. If it cannot be read, it counts as empty."""

    redis: Redis
    _read_at: float = float("-inf")
    _due: dict[str, datetime] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def due(self) -> dict[str, datetime]:
        """Return the time of each scheduled task's next run, by the task's name.

        Empty if beat never ran or Redis does not answer.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH_SECONDS:
                try:
                    self._due = self._read()
                except (RedisError, OSError, ValueError, KeyError):
                    self._due = {}
                self._read_at = time.monotonic()
            return self._due

    def _read(self) -> dict[str, datetime]:
        # Protocol 2 of Redis returns pairs of bytes and a number.
        entries = cast(
            list[tuple[bytes, float]],
            self.redis.zrange(f"{PREFIX}:schedule", 0, ENTRIES, withscores=True),
        )
        due: dict[str, datetime] = {}
        for key, score in entries:
            definition = self.redis.hget(key, "definition")
            if definition is not None:
                task = str(json.loads(definition)["task"])
                at = datetime.fromtimestamp(score, UTC)
                due[task] = min(at, due.get(task, at))
        return due
