"""Deliberate faults: processes killed and frozen, connections ended, rebuilds in a burst."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import psutil
import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.client import Client
from assignment_workers.client.wire.redis_clients import redis_client
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder
from assignment_workers.runtime.stack import Stack

FIRST_AFTER = 5.0
RECOVERY = 12.0
"""The seconds at the end of a run without a new fault; at most half of the run."""
FREEZE = 4.0

LEADERS = "SELECT leader_pid FROM assignment.sequencer WHERE leader_pid IS NOT NULL ORDER BY lane"
CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'
"""


@dataclass
class Chaos:
    """Causes faults in the processes of one stack of `up`, which that stack can repair."""

    stack: Stack
    engine: Engine
    client: Client
    recorder: Recorder
    over: asyncio.Event
    plan: Plan
    chance: Random
    _frozen: list[int] = field(default_factory=list)

    async def reign(self) -> None:
        """Cause one fault after another, all kinds in turn, in an order set by the plan's seed."""
        await asyncio.sleep(min(FIRST_AFTER, self.plan.seconds / 4))
        faults: list[tuple[str, Callable[[], bool], float]] = []
        last = self.plan.seconds - min(RECOVERY, self.plan.seconds / 2)
        while self.recorder.now < last and not self.over.is_set():
            if not faults:
                faults = self._faults()
                self.chance.shuffle(faults)
            what, break_it, thaw_after = faults.pop()
            try:
                done = await asyncio.to_thread(break_it)
            except (SQLAlchemyError, redis.RedisError, OSError, psutil.Error):
                done = False  # it is down already
            if not done:
                continue
            self.recorder.fault(what)
            try:
                await asyncio.sleep(thaw_after)
            finally:
                self._thaw()
            await asyncio.sleep(self.chance.uniform(*self.plan.between))

    def _faults(self) -> list[tuple[str, Callable[[], bool], float]]:
        return [
            ("sequencer killed", lambda: self._hit(self._leader(), signal.SIGKILL), 0.0),
            ("sequencer frozen", lambda: self._hit(self._leader(), signal.SIGSTOP), FREEZE),
            ("maintenance killed", self._kill_while_building, 0.0),
            ("beat killed", lambda: self._hit(self._child("beat"), signal.SIGKILL), 0.0),
            ("Valkey killed", lambda: self._hit(self._valkey(), signal.SIGKILL), 0.0),
            ("Valkey frozen", lambda: self._hit(self._valkey(), signal.SIGSTOP), FREEZE),
            ("PostgreSQL killed", lambda: self._hit(self._postgres(), signal.SIGKILL), 0.0),
            ("database connections ended", self._cut, 0.0),
            ("rebuilds in a burst", self._burst, 0.0),
        ]

    def _thaw(self) -> None:
        for process in self._frozen:
            _signal(process, signal.SIGCONT)
        self._frozen.clear()

    def _hit(self, process: int | None, number: signal.Signals) -> bool:
        if process is None or not self._is_ours(process):
            return False
        if number == signal.SIGSTOP:
            self._frozen.append(process)
        return _signal(process, number)

    def _leader(self) -> int | None:
        with self.engine.connect() as connection:
            leaders = connection.execute(text(LEADERS)).scalars().all()
        return self.chance.choice(leaders) if leaders else None

    def _valkey(self) -> int | None:
        with redis_client(self.stack.redis_url, socket_timeout=2) as connection:
            return int(connection.info("server")["process_id"])

    def _postgres(self) -> int | None:
        return next(
            (
                process.pid
                for process in self._family()
                if process.name() == "postgres" and "-D" in process.cmdline()
            ),
            None,
        )

    def _child(self, name: str) -> int | None:
        return next(
            (each.pid for each in self._family() if each.cmdline()[-2:] == ["process", name]), None
        )

    def _kill_while_building(self) -> bool:
        self._burst()
        return self._hit(self._child("maintenance"), signal.SIGKILL)

    def _burst(self) -> bool:
        return all(isinstance(self.client.regenerate(), str) for _ in range(3))

    def _cut(self) -> bool:
        with self.engine.connect() as connection:
            return bool(connection.execute(text(CUT)).scalar_one())

    def _family(self) -> list[psutil.Process]:
        return psutil.Process(self.stack.pid).children(recursive=True)

    def _is_ours(self, process: int) -> bool:
        return process in {each.pid for each in self._family()}


def _signal(process: int, number: signal.Signals) -> bool:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True
