"""Causes deliberate faults, such as a killed or frozen server, in one running stack.

Each fault is a context manager: the fault lasts for its block, and the end of the block undoes the
fault. The context manager yields False if the fault cannot be caused now, for example because the
process is down.

Everything runs on one machine, and this limits the faults:

- There is no second database server. Therefore no request can be served while PostgreSQL is frozen,
  and the recovery is measured from the end of the freeze.
- No fault drops packets of a network. Database sessions are frozen instead, which has a similar
  effect: a frozen session keeps its locks. A session whose packets are dropped also keeps its
  locks, until the server notices the loss.
- RabbitMQ is no process of the stack. If a fault kills RabbitMQ, the end of the fault starts it
  again.
- The machine has only one clock. Therefore the database's clock is moved only for SQL.
  `install_clock` creates SQL functions with the same names as PostgreSQL's clock functions, such as
  `now()`. PostgreSQL finds the new functions first, because their schema comes first in the search
  path. A new function returns the real time plus an interval that the fault sets.
- The disk can be full only in a stack that the run has started, because only there PostgreSQL has a
  file system to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import uuid4

import psutil
import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.assignment.claims.idempotency import next_position
from assignment_workers.assignment.lanes import Lanes
from assignment_workers.client import Client, commands
from assignment_workers.client.commands import CommandCall
from assignment_workers.client.wire.brokers import sender
from assignment_workers.client.wire.message import message
from assignment_workers.client.wire.redis_clients import redis_client
from assignment_workers.devstack.temporary import Broker, Disk
from assignment_workers.lab.call_centre.processes import role
from assignment_workers.lab.call_centre.recorder import Recorder
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.runtime.stack import Stack

FREEZE_SECONDS = 4.0
"""The seconds for which Valkey, or a process of this project, is frozen."""
SILENCE_SECONDS = 9.0
"""The seconds for which PostgreSQL or RabbitMQ is frozen, or commits wait for a missing standby.

The number is chosen for PostgreSQL: a sequencer waits at most 7 seconds for an answer of
PostgreSQL, so its wait ends with an error during the fault.
"""
FULL_SECONDS = 5.0
AWAY_SECONDS = 3.0
"""The seconds until a killed RabbitMQ is started again."""
READER_SECONDS = 15.0
STEP_SECONDS = 20.0
"""The seconds by which the database's clock is put forward while the fault lasts.

At the end of the fault, the clock is put back by the same number of seconds. The step is longer
than the shortest lease (`SHORTEST_LEASE`, 15 seconds), so that the step forward ends each lease of
that length.
"""
STEPPED_SECONDS = 6.0
LOSING_SECONDS = 3.0
"""The seconds for which the replies to COMMIT are lost."""
STALE_SECONDS = 15.0
"""The time-out, in seconds, of two faults that end as soon as the stack has reacted to them.

The fault of stale commands ends with the answers to the commands. The fault that restarts Valkey
with older data ends with the restart.
"""
LOOK_SECONDS = 0.05
LAB = "assignment-workers demo"
IS_STACK_SESSION = "application_name !~ '^assignment-workers (demo|soak)'"
"""SQL condition: a database session belongs to the stack's own processes, not to the simulation."""

LEADERS = "SELECT leader_pid FROM assignment.sequencer WHERE leader_pid IS NOT NULL ORDER BY lane"
CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'
"""
SESSIONS = f"""
SELECT pid FROM pg_stat_activity WHERE datname = current_database()
AND backend_type = 'client backend' AND {IS_STACK_SESSION}
"""  # noqa: S608
LOSE = f"""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()
AND wait_event = 'SyncRep' AND {IS_STACK_SESSION}
"""  # noqa: S608
CLOCK = "lab_clock"
STEPPABLE = {"clock_timestamp": "VOLATILE", "statement_timestamp": "STABLE", "now": "STABLE"}
"""The SQL functions that read the clock, with the volatility of each function.

`install_clock` puts functions of the same names before them in the search path.
"""


@dataclass(frozen=True)
class FaultKind:
    """A kind of deliberate fault: its name, its cause, and the seconds for which it lasts.

    `cause`: a function that returns the fault as a context manager. `leaves_a_server`: True if
    requests can be served during the fault. If not, the time to recover is measured from the end of
    the fault.
    """

    what: str
    cause: Callable[[], AbstractContextManager[bool]]
    seconds: float = 0.0
    leaves_a_server: bool = True


@dataclass
class Faults:
    """Causes faults in the processes and servers of one stack, and undoes them."""

    stack: Stack
    engine: Engine
    client: Client
    recorder: Recorder
    chance: Random
    lanes: Lanes
    disk: Disk | None
    """The file system that only the stack's PostgreSQL uses; None if there is none."""
    broker: Broker | None
    """The stack's RabbitMQ, if the run may kill it; None if Valkey is the broker, or RabbitMQ is
    remote.
    """
    has_clock: bool
    """True if the database's clock can be moved, because `install_clock` was called."""
    _older: Path | None = field(default=None, init=False)

    def kinds(self) -> list[FaultKind]:
        """Return every kind of fault that can be caused in this stack."""
        found = [
            FaultKind("sequencer killed", lambda: self._kill(self._leader)),
            FaultKind("sequencer frozen", lambda: self._freeze(self._leader), FREEZE_SECONDS),
            FaultKind("maintenance killed", self._kill_while_building),
            FaultKind("beat killed", lambda: self._kill(lambda: self._child("beat"))),
            FaultKind("Valkey killed", lambda: self._kill(self._valkey)),
            FaultKind(
                "Valkey frozen",
                lambda: self._freeze(self._valkey),
                FREEZE_SECONDS,
                leaves_a_server=False,
            ),
            FaultKind("Valkey full", self._full_valkey, FULL_SECONDS, leaves_a_server=False),
            FaultKind("PostgreSQL killed", lambda: self._kill(self._postgres)),
            FaultKind(
                "PostgreSQL frozen", self._frozen_postgres, SILENCE_SECONDS, leaves_a_server=False
            ),
            FaultKind(
                "database sessions frozen",
                self._frozen_sessions,
                SILENCE_SECONDS,
                leaves_a_server=False,
            ),
            FaultKind("database connections ended", self._cut),
            FaultKind("rebuilds in a burst", self._burst),
            FaultKind("long reader", self._long_reader, READER_SECONDS),
            FaultKind("duplicate and stale commands", self._stale_commands),
        ]
        if self._data() is not None:
            found += [
                FaultKind("standby away", self._no_standby, SILENCE_SECONDS, leaves_a_server=False),
                FaultKind("replies to COMMIT lost", self._lost_replies, 0.0, leaves_a_server=False),
            ]
        if self._valkey_data() is not None:
            found.append(FaultKind("Valkey set back", self._older_valkey))
        if self.broker is not None:
            node = self.broker
            found += [
                FaultKind(
                    "RabbitMQ killed",
                    lambda: self._away(node),
                    AWAY_SECONDS,
                    leaves_a_server=False,
                ),
                FaultKind(
                    "RabbitMQ frozen",
                    lambda: _frozen(node.processes),
                    SILENCE_SECONDS,
                    leaves_a_server=False,
                ),
            ]
        if self.disk is not None:
            found.append(
                FaultKind(
                    "disk of PostgreSQL full", self._full_disk, FULL_SECONDS, leaves_a_server=False
                )
            )
        if self.has_clock:
            found.append(FaultKind("database's clock stepped", self._stepped, STEPPED_SECONDS))
        return found

    def untried(self) -> list[str]:
        """Return a line, with the reason, for each kind of fault that cannot be caused here."""
        own = "needs a stack of the run's own"
        return [
            f"{what}: {why}"
            for what, why, is_untried in (
                ("database's clock stepped", own, not self.has_clock),
                ("disk of PostgreSQL full", f"{own}, root and 8 GB of memory", self.disk is None),
                ("standby away, replies to COMMIT lost", own, self._data() is None),
                ("Valkey set back", own, self._valkey_data() is None),
                (
                    "RabbitMQ killed or frozen",
                    "needs a RabbitMQ of the run's own, by --rabbitmq",
                    self.broker is None,
                ),
            )
            if is_untried
        ]

    def remember(self) -> None:
        """Copy Valkey's data files; a later fault restarts Valkey with this old copy."""
        data = self._valkey_data()
        if data is None:
            return
        if self._older is not None:
            shutil.rmtree(self._older, ignore_errors=True)
        self._older = data.with_name("data-older")
        shutil.copytree(data, self._older)

    @contextmanager
    def _kill(self, which: Callable[[], int | None]) -> Iterator[bool]:
        yield self._signal(which(), signal.SIGKILL)

    @contextmanager
    def _freeze(self, which: Callable[[], int | None]) -> Iterator[bool]:
        process = which()
        frozen = self._signal(process, signal.SIGSTOP)
        try:
            yield frozen
        finally:
            if process is not None:
                _send(process, signal.SIGCONT)

    @contextmanager
    def _frozen_postgres(self) -> Iterator[bool]:
        server = self._postgres()
        # The server itself first, so that it starts no process that is missed.
        family = [server, *self._children_of(server)] if server is not None else []
        with _frozen(family) as stopped:
            yield stopped

    @contextmanager
    def _frozen_sessions(self) -> Iterator[bool]:
        with self.engine.connect() as connection:
            sessions = list(connection.execute(text(SESSIONS)).scalars())
        server = self._postgres()
        ours = set() if server is None else set(self._children_of(server))
        with _frozen([each for each in sessions if each in ours]) as stopped:
            yield stopped

    @contextmanager
    def _away(self, broker: Broker) -> Iterator[bool]:
        broker.kill()
        try:
            yield True
        finally:
            broker.restart()

    @contextmanager
    def _kill_while_building(self) -> Iterator[bool]:
        with self._burst():
            yield self._signal(self._child("maintenance"), signal.SIGKILL)

    @contextmanager
    def _burst(self) -> Iterator[bool]:
        yield all(isinstance(self.client.regenerate(), str) for _ in range(3))

    @contextmanager
    def _cut(self) -> Iterator[bool]:
        with self.engine.connect() as connection:
            ended = bool(connection.execute(text(CUT)).scalar_one())
        yield ended

    @contextmanager
    def _long_reader(self) -> Iterator[bool]:
        """Keep a transaction open that has read the queue entries, as pg_dump does.

        The transaction holds a snapshot, and a lock on the table of entries.
        """
        with self.engine.connect() as opened, contextlib.suppress(SQLAlchemyError):
            connection = opened.execution_options(isolation_level="REPEATABLE READ")
            connection.execute(text("SELECT count(*) FROM assignment.entries"))
            yield True
            connection.rollback()

    @contextmanager
    def _full_valkey(self) -> Iterator[bool]:
        with self._redis() as connection:
            limit = connection.config_get("maxmemory")["maxmemory"]
            connection.config_set("maxmemory", 1)
        try:
            yield True
        finally:
            with self._redis() as connection:
                connection.config_set("maxmemory", limit)

    @contextmanager
    def _older_valkey(self) -> Iterator[bool]:
        """Restart Valkey with an older copy of its data, as after the restore of a backup.

        The method `remember` has made the copy.
        """
        data, process = self._valkey_data(), self._valkey()
        if data is None or process is None or self._older is None:
            yield False
            return
        gone = data.with_name("data-gone")
        shutil.rmtree(gone, ignore_errors=True)
        # Before the end of the process, which is started again at once.
        data.rename(gone)
        self._older.rename(data)
        self._older = None
        yield self._signal(process, signal.SIGKILL)
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError, OSError):
                if self._valkey() != process:
                    break
            time.sleep(LOOK_SECONDS)
        self.remember()

    @contextmanager
    def _no_standby(self) -> Iterator[bool]:
        """Make each COMMIT wait for a synchronous standby that does not exist."""
        with self._configured("synchronous_standby_names = 'away'"):
            yield True

    @contextmanager
    def _lost_replies(self) -> Iterator[bool]:
        """Terminate database sessions after their COMMIT is on disk, but before the reply is sent.

        The client cannot tell whether the transaction was committed.
        """
        lost = 0
        with self._configured("synchronous_standby_names = 'away'"):
            deadline = time.monotonic() + LOSING_SECONDS
            while time.monotonic() < deadline:
                with self.engine.connect() as connection:
                    lost += connection.execute(text(LOSE)).scalar_one()
                time.sleep(LOOK_SECONDS)
        self.recorder.counts["replies to COMMIT lost"] += lost
        yield lost > 0

    @contextmanager
    def _full_disk(self) -> Iterator[bool]:
        if self.disk is None:
            yield False
            return
        self.disk.fill()
        try:
            yield True
        finally:
            self.disk.empty()

    @contextmanager
    def _stepped(self) -> Iterator[bool]:
        self.recorder.stepped(STEP_SECONDS)
        try:
            with self._configured(f"{CLOCK}.ahead = '{STEP_SECONDS:g} s'"):
                yield True
        finally:
            self.recorder.stepped(-STEP_SECONDS)

    @contextmanager
    def _stale_commands(self) -> Iterator[bool]:
        """Pause and resume a dialer queue, then send the old pause command twice more.

        Each command of an operator has a number, by which an older command is recognised. The first
        repetition is the same message as the pause; the second is a new message with the number of
        the pause. Neither may pause the queue again.
        """
        queue = self.chance.choice(sorted(loaded().policies))
        with self.engine.begin() as connection:
            first, second = next_position(connection), next_position(connection)
        pause, resume = commands.pause(queue, LAB, "chaos"), commands.resume(queue, LAB, "chaos")
        names = [f"chaos-{uuid4()}" for _ in range(3)]
        asyncio.run(
            self._send(
                queue,
                [
                    (names[0], pause.at(first)),
                    (names[1], resume.at(second)),
                    (names[0], pause.at(first)),
                    (names[2], pause.at(first)),
                ],
            )
        )
        yield True
        answered = "SELECT count(*) FROM assignment.commands WHERE id = ANY(:names)"
        paused = "SELECT paused_at IS NOT NULL FROM assignment.queues WHERE name = :queue"
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(SQLAlchemyError), self.engine.connect() as connection:
                if connection.execute(text(answered), {"names": names}).scalar_one() == len(names):
                    if connection.execute(text(paused), {"queue": queue}).scalar_one():
                        self.recorder.surprises.append(
                            f"{queue} is paused: a pause that had been resumed came back"
                        )
                    return
            time.sleep(LOOK_SECONDS)
        self.recorder.surprises.append(f"commands unanswered for {STALE_SECONDS:g} s: {names}")

    async def _send(self, queue: str, said: list[tuple[str, CommandCall]]) -> None:
        to, broker = self.lanes.way_to(queue), sender(self.stack.broker_url)
        for name, command in said:
            await broker.send(
                to,
                message(
                    command.task,
                    (),
                    command.arguments,
                    task_id=name,
                    celery_queue=to,
                    expires=None,
                    position=command.position,
                    key=self.stack.gateway_token,
                ),
            )
        await broker.close()

    @contextmanager
    def _configured(self, line: str) -> Iterator[None]:
        """Add a line to PostgreSQL's configuration file while this context lasts.

        PostgreSQL is told to reload the file, so the setting also applies to open sessions.
        """
        data, server = self._data(), self._postgres()
        if data is None or server is None:
            raise psutil.NoSuchProcess(0, msg="PostgreSQL is not a process of this stack")
        file = data / "postgresql.auto.conf"
        usual = file.read_text(encoding="utf-8")
        file.write_text(f"{usual}{line}\n", encoding="utf-8")
        _send(server, signal.SIGHUP)
        try:
            yield
        finally:
            file.write_text(usual, encoding="utf-8")
            now = self._postgres()  # the server may have been started again
            _send(server if now is None else now, signal.SIGHUP)

    def _redis(self) -> redis.Redis:
        return redis_client(self.stack.redis_url, socket_timeout=2, decode_responses=True)

    def _leader(self) -> int | None:
        with self.engine.connect() as connection:
            leaders = connection.execute(text(LEADERS)).scalars().all()
        return self.chance.choice(leaders) if leaders else None

    def _valkey(self) -> int | None:
        with self._redis() as connection:
            return int(connection.info("server")["process_id"])

    def _valkey_data(self) -> Path | None:
        """Return the folder of Valkey's data; None if Valkey is no process of the stack."""
        try:
            process = self._valkey()
            if process is None or not self._is_ours(process):
                return None
            with self._redis() as connection:
                return Path(connection.config_get("dir")["dir"])
        except redis.RedisError:
            return None

    def _postgres(self) -> int | None:
        return next(
            (
                process.pid
                for process in self._family()
                if process.name() == "postgres" and "-D" in process.cmdline()
            ),
            None,
        )

    def _data(self) -> Path | None:
        """Return the folder of PostgreSQL's data; None if PostgreSQL is no process of the stack.

        The stack may have a file system that only the stack's processes see (`disk`). If so, the
        returned path leads through `/proc`, so that the process of the simulation can use it.
        """
        server = self._postgres()
        if server is None:
            return None
        argv = psutil.Process(server).cmdline()
        data = Path(argv[argv.index("-D") + 1])
        return data if self.disk is None else self.disk.seen(data)

    def _child(self, name: str) -> int | None:
        return next((each.pid for each in self._family() if role(each) == name), None)

    def _children_of(self, process: int) -> list[int]:
        return [each.pid for each in psutil.Process(process).children(recursive=True)]

    def _family(self) -> list[psutil.Process]:
        return psutil.Process(self.stack.pid).children(recursive=True)

    def _is_ours(self, process: int) -> bool:
        return process in {each.pid for each in self._family()}

    def _signal(self, process: int | None, number: signal.Signals) -> bool:
        return process is not None and self._is_ours(process) and _send(process, number)


def install_clock(engine: Engine) -> None:
    """Create SQL functions that read the clock in a way that lets a fault move the clock.

    The new functions have the names of PostgreSQL's own, such as `now()`. They come before
    PostgreSQL's own in the search path. Each returns the real time plus the interval in the
    PostgreSQL setting `lab_clock.ahead`; if that is not set, it returns the real time. All open
    sessions are ended, because an open session does not use the new functions.
    """
    ahead = f"coalesce(nullif(current_setting('{CLOCK}.ahead', true), ''), '0')::interval"
    with engine.begin() as connection:
        run = connection.exec_driver_sql
        run(f"CREATE SCHEMA {CLOCK}")
        for name, volatility in STEPPABLE.items():
            run(
                f"CREATE FUNCTION {CLOCK}.{name}() RETURNS timestamptz {volatility} LANGUAGE sql"
                f" AS $$ SELECT pg_catalog.{name}() + {ahead} $$"
            )
        database = run("SELECT quote_ident(current_database())").scalar_one()
        run(f"ALTER DATABASE {database} SET search_path = {CLOCK}, pg_catalog, public")
    with engine.connect() as connection:
        connection.execute(text(CUT))
    engine.dispose()


@contextmanager
def _frozen(processes: list[int]) -> Iterator[bool]:
    stopped = [each for each in processes if _send(each, signal.SIGSTOP)]
    try:
        yield bool(stopped)
    finally:
        for each in reversed(stopped):
            _send(each, signal.SIGCONT)


def _send(process: int, number: signal.Signals) -> bool:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True
