"""Work that is repeated in the background goes on, whatever one round of it raised."""

from __future__ import annotations

import asyncio

import pytest

from assignment_workers.gateway.background import repeat


@pytest.mark.parametrize(
    "wrong", [RuntimeError("closed"), KeyError("0"), OSError(), AssertionError(), RecursionError()]
)
def test_an_error_of_one_round_does_not_end_the_rounds(wrong: Exception) -> None:
    async def run() -> None:
        rounds, went_on = 0, asyncio.Event()

        async def work() -> None:
            nonlocal rounds
            rounds += 1
            if rounds <= 2:
                raise wrong
            went_on.set()

        task = asyncio.create_task(repeat(0.0, work))
        async with asyncio.timeout(10):
            await went_on.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
