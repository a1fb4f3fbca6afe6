"""The database's clock as a client knows it, on a Redis within the process and a clock that moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import fakeredis
import pytest
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import ResponseError

from assignment_workers.client.wire.database_clock import (
    KNOWN_SECONDS,
    QUICK_SECONDS,
    DatabaseClock,
)
from assignment_workers.clock import DATABASE_AHEAD_KEY
from tests.support.steady_clock import SteadyClock


class Stage:
    """A clock, and the Redis that it asks."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer(version=(7,))
        self.redis = fakeredis.FakeRedis(server=self.server, protocol=2)
        self.steady = SteadyClock()
        client = fakeredis.FakeAsyncRedis(server=self.server, protocol=2)
        self.clock = DatabaseClock(client, self.steady)

    def ahead(self, seconds: object) -> None:
        self.redis.set(DATABASE_AHEAD_KEY, str(seconds))

    def off(self) -> float:
        """By how much the clock is ahead of this host's: Redis's is this host's."""
        return (self.clock.at(self.steady.now) - datetime.now(UTC)).total_seconds()


def played(play: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(play(Stage()))


def test_it_is_redis_s_clock_until_a_sequencer_has_led_and_then_the_database_s() -> None:
    async def play(stage: Stage) -> None:
        await stage.clock.read()
        assert stage.off() == pytest.approx(0, abs=2)
        stage.ahead(3600)
        stage.clock.forget()
        await stage.clock.read()
        assert stage.off() == pytest.approx(3600, abs=2)

    played(play)


def test_a_reading_is_used_for_seconds_and_goes_on_with_the_steady_clock() -> None:
    async def play(stage: Stage) -> None:
        await stage.clock.read()
        first = stage.clock.at(stage.steady.now)
        stage.ahead(3600)
        stage.steady.now += KNOWN_SECONDS - 0.01
        await stage.clock.read()
        passed = stage.clock.at(stage.steady.now) - first
        assert passed.total_seconds() == pytest.approx(KNOWN_SECONDS - 0.01)
        stage.steady.now += 0.02
        await stage.clock.read()
        assert stage.off() > 3000

    played(play)


def test_a_reading_that_took_long_is_used_once() -> None:
    async def play(stage: Stage) -> None:
        stage.steady.slow = QUICK_SECONDS
        await stage.clock.read()
        stage.ahead(3600)
        await stage.clock.read()
        assert stage.off() > 3000

    played(play)


@pytest.mark.parametrize(("later", "moves"), [(60, True), (-60, False)])
def test_an_instant_that_was_reached_moves_it_on_and_never_back(later: int, moves: bool) -> None:
    async def play(stage: Stage) -> None:
        await stage.clock.read()
        before = stage.clock.at(stage.steady.now)
        stage.clock.reached(before + timedelta(seconds=later))
        moved = (stage.clock.at(stage.steady.now) - before).total_seconds()
        assert moved == (later if moves else 0)

    played(play)


def test_what_is_no_number_is_an_error_and_not_a_time() -> None:
    async def play(stage: Stage) -> None:
        stage.ahead("soon")
        with pytest.raises(ResponseError, match="not a number"):
            await stage.clock.read()
        with pytest.raises(RuntimeError, match="was not read"):
            stage.clock.at(0.0)
        stage.clock.reached(datetime.now(UTC))

    played(play)


def test_a_redis_that_is_away_is_an_error() -> None:
    async def play(stage: Stage) -> None:
        stage.server.connected = False
        with pytest.raises(Lost):
            await stage.clock.read()

    played(play)
