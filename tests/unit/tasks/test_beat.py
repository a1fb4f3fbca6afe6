"""The times at which tasks are due, as beat stores them when it starts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab
from fakeredis import FakeRedis
from redbeat.schedulers import REDBEAT_REDIS_KEY, RedBeatJSONEncoder, get_redis

from assignment_workers.tasks.beat import Scheduler

EVERY = timedelta(seconds=300)
SLACK = timedelta(seconds=5)


@pytest.fixture
def app() -> Celery:
    made = Celery("beat", broker="memory://")
    made.conf.update(
        redbeat_redis_url="redis://redis.example",
        redbeat_lock_key=None,
        beat_schedule={
            "often": {"task": "queue.discover", "schedule": EVERY.total_seconds()},
            "daily": {"task": "queue.clean_daily", "schedule": crontab(hour="2", minute="0")},
        },
    )
    setattr(made, REDBEAT_REDIS_KEY, FakeRedis(decode_responses=True))
    return made


def stored(app: Celery) -> dict[str, datetime]:
    """By entry: the time at which it is due."""
    found: list[tuple[str, float]] = get_redis(app).zrange(
        "redbeat::schedule", 0, -1, withscores=True
    )
    return {key.rpartition(":")[2]: datetime.fromtimestamp(at, UTC) for key, at in found}


def sent_at(app: Celery, name: str, at: datetime) -> None:
    meta: dict[str, Any] = {"last_run_at": at, "total_run_count": 1}
    get_redis(app).hset(f"redbeat:{name}", "meta", json.dumps(meta, cls=RedBeatJSONEncoder))


@pytest.mark.parametrize("ago", [0, 40, 150, 299, 301, 90_000])
def test_a_beat_that_starts_again_keeps_the_times_at_which_tasks_are_due(
    app: Celery, ago: int
) -> None:
    Scheduler(app).setup_schedule()
    now = datetime.now(UTC)
    for name in ("often", "daily"):
        sent_at(app, name, now - timedelta(seconds=ago))
    Scheduler(app).setup_schedule()
    due = stored(app)
    right = max(now, now - timedelta(seconds=ago) + EVERY)
    assert abs(due["often"] - right) < SLACK
    at_two = due["daily"].replace(hour=2, minute=0, second=0, microsecond=0)
    is_overdue = ago > timedelta(days=1).total_seconds()
    assert abs(due["daily"] - (now if is_overdue else at_two)) < SLACK
    assert due["daily"] > now - SLACK
