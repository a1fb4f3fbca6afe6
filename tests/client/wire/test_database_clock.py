"""The database's clock as a client knows it, on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from assignment_workers.client.wire.database_clock import KNOWN_SECONDS, DatabaseClock
from assignment_workers.clock import DATABASE_AHEAD_KEY
from assignment_workers.sequencer.timekeeping import tell_time
from tests.support.steady_clock import SteadyClock

AHEAD = timedelta(seconds=7.5)


def played(
    redis_url: str, play: Callable[[DatabaseClock, SteadyClock], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        steady = SteadyClock()
        async with AsyncRedis.from_url(redis_url) as redis:
            await play(DatabaseClock(redis, steady), steady)

    asyncio.run(run())


def time_of(redis: Redis) -> datetime:
    seconds, microseconds = redis.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def test_it_is_what_the_sequencer_told_and_goes_on_with_the_steady_clock(redis_url: str) -> None:
    async def play(clock: DatabaseClock, steady: SteadyClock) -> None:
        with Redis.from_url(redis_url) as redis:
            redis.set(DATABASE_AHEAD_KEY, AHEAD.total_seconds())
            before = time_of(redis)
            await clock.read()
            after = time_of(redis)
            assert before + AHEAD <= clock.at(1000.0) <= after + AHEAD
            assert clock.at(1010.0) - clock.at(1000.0) == timedelta(seconds=10)
            redis.set(DATABASE_AHEAD_KEY, 0)
            steady.now += KNOWN_SECONDS - 1
            await clock.read()
            assert clock.at(1000.0) >= before + AHEAD, "it is known still"
            steady.now += 2
            await clock.read()
            assert clock.at(steady.now) <= time_of(redis), "it was asked anew"

    played(redis_url, play)


def test_it_is_asked_anew_when_redis_may_be_another(redis_url: str) -> None:
    async def play(clock: DatabaseClock, _: SteadyClock) -> None:
        with Redis.from_url(redis_url) as redis:
            await clock.read()
            redis.set(DATABASE_AHEAD_KEY, AHEAD.total_seconds())
            before = time_of(redis)
            clock.forget()
            await clock.read()
            assert clock.at(1000.0) >= before + AHEAD

    played(redis_url, play)


def test_before_any_sequencer_has_led_it_is_the_clock_of_redis(redis_url: str) -> None:
    async def play(clock: DatabaseClock, _: SteadyClock) -> None:
        with Redis.from_url(redis_url) as redis:
            before = time_of(redis)
            await clock.read()
            assert before <= clock.at(1000.0) <= time_of(redis)

    played(redis_url, play)


def test_what_is_no_number_is_an_error_of_redis(redis_url: str) -> None:
    async def play(clock: DatabaseClock, _: SteadyClock) -> None:
        with Redis.from_url(redis_url) as redis:
            redis.set(DATABASE_AHEAD_KEY, "soon")
        with pytest.raises(RedisError, match="'soon', not a number"):
            await clock.read()

    played(redis_url, play)


def test_the_sequencer_tells_how_far_the_database_is_ahead_and_never_too_much(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = SteadyClock()
    monkeypatch.setattr("assignment_workers.sequencer.timekeeping.monotonic", steady)
    with Redis.from_url(redis_url) as redis:
        at = time_of(redis)
        tell_time(redis, at + AHEAD, steady.now)
        told = float(redis.get(DATABASE_AHEAD_KEY) or "nan")
        assert AHEAD.total_seconds() - 5 < told <= AHEAD.total_seconds()
        steady.now += 1  # that long ago the database was asked: too long to tell anything
        tell_time(redis, at, steady.now - 1)
        assert float(redis.get(DATABASE_AHEAD_KEY) or "nan") == told


def test_what_cannot_be_told_fails_no_probe() -> None:
    with Redis.from_url("redis://127.0.0.1:1/0") as nowhere:
        tell_time(nowhere, datetime.now(UTC), 0.0)


def test_what_the_database_says_corrects_a_reading_behind_it_at_once(redis_url: str) -> None:
    async def play(clock: DatabaseClock, steady: SteadyClock) -> None:
        clock.reached(datetime.now(UTC))  # before the first reading there is nothing to correct
        await clock.read()
        behind = clock.at(steady.now)
        clock.reached(behind - AHEAD)
        assert clock.at(steady.now) == behind, "what is past already says nothing"
        clock.reached(behind + AHEAD)
        steady.now += 1
        assert clock.at(steady.now) == behind + AHEAD + timedelta(seconds=1)

    played(redis_url, play)
