"""Real processes of a stack, started and ended by a test; nothing is left when it is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.client import Assigned, Client, Finished
from assignment_workers.devstack import demo
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings
from tests.support.commands import Forked


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float = 30.0) -> Any:
    """What the condition gives once it is true; fails, saying `what` was waited for, if it never is."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


COMMAND = ("-m", "assignment_workers")


@dataclass
class Process:
    """One process of the stack, with what it wrote."""

    name: str
    popen: Forked | subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ask_to_end(self) -> bool:
        """Send the signal for it; False where it has ended."""
        if self.popen.poll() is not None:
            return False
        try:
            self.signal(signal.SIGCONT)
            self.popen.terminate()
        except ProcessLookupError:  # it ended since, and whoever forked it has seen that
            return False
        return True

    def stop(self) -> int:
        """Ask it to end, and wait: its exit code."""
        if self.ask_to_end():
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        return self.popen.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def _begun(
    arguments: Sequence[str],
    environment: dict[str, str],
    log: Path,
    python: str | None = None,
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [python or sys.executable, *arguments],
            env=environment,
            cwd=log.parent if python else None,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Stack:
    """A database, a Redis and the processes that a test starts on them."""

    def __init__(self, database_url: str, redis_url: str, folder: Path, keep: ExitStack) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.broker_url: str | None = None
        """Where it is not Redis: of processes and clients that are made from now on."""
        self.folder = folder
        self._keep = keep
        self.started: list[Process] = []
        self.engine: Engine = connect(
            database_url, name="test", statement_timeout=timedelta(seconds=60), pool_size=4
        )
        keep.callback(self.engine.dispose)

    def start(
        self,
        name: str,
        *arguments: str,
        program: Sequence[str] | None = None,
        before: str | None = None,
        python: str | None = None,
        **settings: str,
    ) -> Process:
        """Start a process; it is ended, however it stands, with the test.

        `program`: what Python is to run in place of the command. `before`: `module:function`,
        which the process calls first. `python`: of another release, which has its own settings of
        Celery.
        """
        log = self.folder / f"{len(self.started) + 1}-{name}.log"
        given = {key: value for key, value in os.environ.items() if "ASSIGNMENT" not in key}
        environment = (
            given
            | {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
            | {"BROKER_URL": self.broker_url or ""}
            | {f"ASSIGNMENT_WORKERS_{key.upper()}": value for key, value in settings.items()}
        )
        words = ["process", name, *arguments]
        popen = (
            Forked(words, environment, log, before)
            if program is None and python is None
            else _begun([*(program or COMMAND), *words], environment, log, python)
        )
        process = Process(name, popen, log)
        self.started.append(process)
        self._keep.callback(process.stop)
        return process

    def client(self, lanes: Lanes = ONE_LANE) -> Client:
        return self._keep.enter_context(
            Client.connect(self.redis_url, broker_url=self.broker_url, lanes=lanes)
        )

    def seed(self, *, users: int) -> None:
        with self.engine.begin() as connection:
            demo.seed(connection, users=users, seed=7, now=datetime.now(UTC))

    def value(self, sql: str, **parameters: Any) -> Any:
        """The one value that a query gives."""
        with self.engine.connect() as connection:
            return connection.execute(text(sql), parameters).scalar_one()

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql), parameters).all())

    def built(self, *, users: int = 1000) -> Client:
        """A seeded stack with a maintenance worker and both dialer queues published."""
        self.seed(users=users)
        self.start("maintenance")
        client = self.client()
        self.wait_for_leader()
        self.regenerate(client)
        return client

    def assert_healthy(self, **settings: str) -> None:
        """Nothing that `doctor` or the history checker would name; `settings` as the run had them."""
        with self.connection() as connection:
            assert [each for each in examine(connection, loaded()) if not each.ok] == []
        with self.connection() as connection:
            given = {f"ASSIGNMENT_WORKERS_{key.upper()}": each for key, each in settings.items()}
            had = Settings.from_environment(given)
            breaches = check(connection, dialer=loaded(), settings=had, bound=timedelta(seconds=60))
        assert breaches == []

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            yield connection

    def term(self) -> int:
        return int(self.value("SELECT term FROM assignment.sequencer"))

    def wait_for_leader(self, *, after: int = 0, seconds: float = 30.0) -> int:
        """Wait until a term beyond `after` has begun and had its first turn: that term."""
        sql = (
            "SELECT term FROM assignment.sequencer NATURAL JOIN assignment.sequencer_signs"
            " WHERE term > :after AND last_probe_at > since"
        )
        found = wait_until(
            lambda: self.rows(sql, after=after), f"a term after {after}", seconds=seconds
        )
        return int(found[0][0])

    def regenerate(self, client: Client) -> None:
        """Build both dialer queues and wait until they are published."""
        task = wait_until(
            lambda: each if isinstance(each := client.regenerate(), str) else None,
            "a worker to have made the maintenance queue",
        )
        built = client.built(task, timeout=timedelta(seconds=60))
        assert isinstance(built, dict), built
        wait_until(
            lambda: (
                self.value("SELECT count(*) FROM assignment.generations WHERE state = 'published'")
                == 2
            ),
            "both dialer queues to be published",
        )


class Agents:
    """Agents who ask and finish without pause, each in a thread, until they are told to stop.

    By turns for one of `queues`; None: for any.
    """

    def __init__(
        self,
        stack: Stack,
        count: int,
        *,
        lanes: Lanes = ONE_LANE,
        queues: Sequence[str | None] = (None,),
    ) -> None:
        self._client = stack.client(lanes)
        self._queues = queues
        self._stop = threading.Event()
        self.answered: list[tuple[float, int, int]] = []
        self.told: dict[UUID, int] = {}
        """The agent of each assignment that an agent was told of."""
        self.released: set[UUID] = set()
        """The assignments whose release was confirmed."""
        self.unanswered: list[object] = []
        self._threads = [
            threading.Thread(target=self._work, args=(agent,)) for agent in range(1, count + 1)
        ]

    def __enter__(self) -> Agents:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, agent: int) -> None:
        patience = timedelta(seconds=40)
        while not self._stop.is_set():
            queue = self._queues[agent % len(self._queues)]
            answer = self._client.request_next(agent, queue=queue, timeout=patience)
            if not isinstance(answer, Assigned):
                self.unanswered.append(answer)
                self._stop.wait(0.1)
                continue
            held = answer.assignment
            self.told[held.id] = agent
            self.answered.append((time.monotonic(), agent, held.user_number))
            done = self._client.release(held.id, agent, version=held.version, timeout=patience)
            if isinstance(done, Finished):
                self.released.add(held.id)
            else:
                self.unanswered.append(done)


class Keeper:
    """Starts a process again whenever it has ended, as the supervisor of a stack does."""

    def __init__(
        self, stack: Stack, *names: str, before: str | None = None, **settings: str
    ) -> None:
        self._stack = stack
        self._options: dict[str, Any] = {"before": before, **settings}
        self._stop = threading.Event()
        self._kept = [stack.start(name, **self._options) for name in names]
        self._thread = threading.Thread(target=self._keep)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def kill_one(self) -> None:
        """End one of them without a chance to tidy up; it is started again."""
        self._kept[0].popen.kill()

    def _keep(self) -> None:
        while not self._stop.wait(0.1):
            for place, process in enumerate(self._kept):
                if process.popen.poll() is not None:
                    self._kept[place] = self._stack.start(process.name, **self._options)


@contextmanager
def running(database_url: str, redis_url: str, folder: Path) -> Iterator[Stack]:
    """A stack without processes yet; all of them are asked to end before the first is waited for."""
    with ExitStack() as keep:
        stack = Stack(database_url, redis_url, folder, keep)
        yield stack
        for process in stack.started:
            process.ask_to_end()
