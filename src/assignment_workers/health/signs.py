"""Signs of life: each process stores one in Redis every second, with facts about itself.

The time of a sign is Redis's, so the clocks of hosts do not matter. A process that ends in an
orderly way marks its last sign. A process that is killed, frozen or cut off stores no more signs.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from redis import Redis
from redis.exceptions import RedisError

from assignment_workers import versions
from assignment_workers.health.model import HealthState
from assignment_workers.health.redis_client import connect
from assignment_workers.settings import ProcessName

log = structlog.get_logger()

EVERY_SECONDS = 1.0
SIGNS = "assignment-workers:signs"
"""The Redis hash that has the last sign of life of each process, as JSON."""
SEEN = "assignment-workers:signs:seen"
"""The Redis sorted set that has the time of each process's last sign of life."""
KEPT_SECONDS = 7 * 86_400
"""The age in seconds from which a process's last sign of life is deleted.

The deletion happens when any process stores its next sign.
"""

STORE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])) do
    redis.call('HDEL', KEYS[1], old)
    redis.call('ZREM', KEYS[2], old)
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.3f', now), ARGV[1])
"""


class AnswerCounts(BaseModel):
    """Counts of a gateway's answers: all (`asked`), and those with status 503 (`unavailable`).

    `asked` and `unavailable` count the answers of the last minute. `recent_asked` and
    `recent_unavailable` count those of the last 15 seconds.
    """

    model_config = ConfigDict(frozen=True)

    asked: int = 0
    unavailable: int = 0
    recent_asked: int = 0
    recent_unavailable: int = 0


class SeenState(BaseModel):
    """The state of a component as one process sees it, and the time at which the state began."""

    model_config = ConfigDict(frozen=True)

    state: HealthState
    since: AwareDatetime


class LifeSign(BaseModel):
    """A sign of life: the facts that a process stores about itself in Redis."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: str
    lane: str | None = None
    host: str
    pid: int
    version: str
    age_seconds: float = 0.0
    """Seconds since the start of the process."""
    memory_bytes: int | None = None
    leads: bool = False
    task: str | None = None
    task_since: AwareDatetime | None = None
    ended: bool = False
    """True in the last sign of a process that ended in an orderly way."""
    disk_free_bytes: int | None = None
    disk_bytes: int | None = None
    """The size, in bytes, of the file system of the folder ASSIGNMENT_WORKERS_HOME.

    If the folder does not exist, the file system of the process's working directory is measured.
    `disk_free_bytes` is about the same file system.
    """
    answers: AnswerCounts | None = None
    """The counts of a gateway's answers; None for another process."""
    sees: dict[str, SeenState] = {}
    """The components that are not `good`, as a gateway sees them.

    Each key is the name of a component. The value has the component's state, and the time at which
    this state began. The mapping is empty in the sign of a process that is no gateway.
    """

    @property
    def id(self) -> str:
        """The id of the process, made of its role, lane, host and pid.

        The sign is stored under this id in the Redis hash of the signs of life.
        """
        return f"{self.role}:{self.lane or ''}:{self.host}:{self.pid}"


class SeenSign(LifeSign):
    """A stored sign of life, with the start of the process and the time of the sign.

    Both are times of Redis's clock.
    """

    since: AwareDatetime
    seen_at: AwareDatetime
    silent_seconds: float


class LifeSigns:
    """A thread that stores a sign of life of this process every second, until it is stopped.

    The constructor's argument `more` is a function that returns further fields of the `LifeSign`
    and their values. For example, a sequencer's function returns the field `leads`, which is True
    if the process leads its lane. While Redis accepts no sign, the thread tries again every second
    and logs only the first failure.
    """

    def __init__(
        self,
        redis_url: str,
        role: ProcessName,
        *,
        lane: str | None = None,
        folder: Path = Path(),
        more: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._redis: Redis = connect(redis_url)
        self._store = self._redis.register_script(STORE)
        self._process = psutil.Process()
        self._folder = folder
        self._more = more
        self._own = {
            "role": role,
            "lane": lane,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": versions.own(),
        }
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._repeat, name="life", daemon=True)

    def start(self) -> None:
        """Start the thread that stores the signs of life."""
        self._thread.start()

    def stop(self, *, in_order: bool) -> None:
        """Stop storing signs of life.

        If `in_order` is True, store a last sign, which marks the end of the process as orderly.
        """
        self._stopped.set()
        self._thread.join(EVERY_SECONDS)
        if in_order:
            self._sign(ended=True)
        self._redis.close()

    def _repeat(self) -> None:
        while True:
            try:
                self._sign()
            except Exception:
                # Without this thread a process that works would count as silent for ever.
                log.exception("sign_of_life_failed")
            if self._stopped.wait(EVERY_SECONDS):
                return

    def _sign(self, *, ended: bool = False) -> None:
        sign = LifeSign.model_validate({**self._own, **self._measured(), **self._more()})
        told = sign.model_copy(update={"ended": ended}).model_dump_json(exclude_defaults=True)
        try:
            self._store(keys=[SIGNS, SEEN], args=[sign.id, told, KEPT_SECONDS])
        except (RedisError, OSError) as error:
            if not self._failed:
                log.warning("sign_of_life_not_stored", reason=type(error).__name__)
            self._failed = True
        else:
            self._failed = False

    def _measured(self) -> dict[str, float]:
        disk = shutil.disk_usage(self._folder if self._folder.exists() else Path())
        return {
            "age_seconds": time.monotonic() - self._began,
            "memory_bytes": self._process.memory_info().rss,
            "disk_free_bytes": disk.free,
            "disk_bytes": disk.total,
        }


class ProcessEnd:
    """The object that `alive` yields, by which its `with` block reports that the process failed.

    For a failure that raises no error, the block sets `in_order` to False.
    """

    in_order = True


@contextmanager
def alive(
    redis_url: str | None,
    role: ProcessName,
    *,
    lane: str | None = None,
    folder: Path = Path(),
    more: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[ProcessEnd]:
    """Store a sign of this process's life every second while the block runs.

    If `redis_url` is None, no sign is stored. `folder`: the sign has the free space of the file
    system of this folder. `more`: a function that returns further fields of the sign.

    After an orderly end of the block, a last sign with `ended` True is stored. The end is orderly
    after `SystemExit` with code 0 or None. It is also orderly if the block raises no error and does
    not set `in_order` of the yielded object to False.
    """
    end = ProcessEnd()
    if redis_url is None:
        yield end
        return
    signs = LifeSigns(redis_url, role, lane=lane, folder=folder, more=more)
    signs.start()
    in_order = False
    try:
        yield end
        in_order = end.in_order
    except SystemExit as ending:
        in_order = ending.code in {None, 0}
        raise
    finally:
        signs.stop(in_order=in_order)


def parsed(signs: Mapping[bytes, bytes], seen: Mapping[bytes, float], now: float) -> list[SeenSign]:
    """Parse the signs of life in the Redis hash `signs`, with their times in the sorted set `seen`.

    `now` is the time of Redis's clock at the reading. The field `silent_seconds` of each result is
    the time from the sign to `now`. A sign that this release cannot read is left out, and so is a
    sign without a time in `seen`.
    """
    found: list[SeenSign] = []
    for name, text in signs.items():
        if name not in seen:
            continue
        at = seen[name]
        try:
            sign = LifeSign.model_validate_json(text)
        except ValidationError:
            continue
        found.append(
            SeenSign(
                **dict(sign),
                since=datetime.fromtimestamp(at - sign.age_seconds, UTC),
                seen_at=datetime.fromtimestamp(at, UTC),
                silent_seconds=max(0.0, now - at),
            )
        )
    return found
