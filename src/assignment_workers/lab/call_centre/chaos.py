"""Deliberate faults during a simulated day, one after the other, in an order set by a seed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random

import psutil
import redis
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.errors import BrokerUnavailable
from assignment_workers.lab.call_centre.faults import FaultKind, Faults
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder

FIRST_AFTER = 5.0
RECOVERY = 12.0
"""The seconds at the end of a run in which no fault is caused.

In a run shorter than twice this time, no fault is caused in the second half of the run.
"""
AGAIN_AFTER = 0.1
UNABLE = (SQLAlchemyError, redis.RedisError, BrokerUnavailable, OSError, psutil.Error)
"""The errors after which an attempt to cause a fault is given up.

They mean that the process or server to disturb is already down.
"""


@dataclass
class Chaos:
    """Causes faults in one stack, one at a time."""

    faults: Faults
    recorder: Recorder
    over: asyncio.Event
    plan: Plan
    chance: Random

    async def reign(self) -> None:
        """Cause one fault after another until shortly before the end of the run.

        Each kind of fault has its turn before any kind is repeated.
        """
        await asyncio.to_thread(self.faults.remember)
        await self._sleep(min(FIRST_AFTER, self.plan.seconds / 4))
        self.recorder.untried += await asyncio.to_thread(self.faults.untried)
        kinds: list[FaultKind] = []
        while not self.over.is_set():
            fitting = self._fitting(kinds)
            if not fitting:
                kinds = await asyncio.to_thread(self.faults.kinds)
                self.chance.shuffle(kinds)
                fitting = self._fitting(kinds)
            if not fitting:
                return
            kinds.remove(fitting[0])
            done = await self._cause(fitting[0])
            await self._sleep(self.chance.uniform(*self.plan.between) if done else AGAIN_AFTER)

    def _fitting(self, kinds: Sequence[FaultKind]) -> list[FaultKind]:
        """Return the kinds of faults that would end early enough for the stack to recover.

        A fault must end before the last 12 seconds of the run (`RECOVERY`). In a run shorter than
        24 seconds, it must end in the first half of the run.
        """
        last = self.plan.seconds - min(RECOVERY, self.plan.seconds / 2)
        return [each for each in kinds if self.recorder.now + each.seconds < last]

    async def _cause(self, kind: FaultKind) -> bool:
        """Cause one fault and wait until it has ended; return False if it cannot be caused."""
        began = self.recorder.now
        with ExitStack() as lasting:
            try:
                done = await asyncio.to_thread(lasting.enter_context, kind.cause())
                if done:
                    await self._sleep(kind.seconds)
            except UNABLE:
                done = False
            # In a thread, because the end of a fault may wait for a server.
            await asyncio.to_thread(lasting.close)
        if done:
            served_from = began if kind.leaves_a_server else self.recorder.now
            self.recorder.fault(kind.what, at=began, served_from=served_from)
        return done

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            return
