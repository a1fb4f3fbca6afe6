"""PostgreSQL with a standby of its own, which a test freezes, kills, cuts off and promotes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg

from assignment_workers.devstack import postgres, server
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.ports import LOOPBACK
from assignment_workers.devstack.process import Child
from assignment_workers.devstack.server import Server
from assignment_workers.devstack.unprivileged import account_for
from tests.support.processes import wait_until
from tests.support.servers import Wire, wire

STANDBY = "standby"
ACCESS = f"host all,replication postgres {LOOPBACK}/32 trust\n"


class Replica:
    """One of the two servers."""

    def __init__(self, prepared: Server, guardian: Guardian) -> None:
        self.prepared = prepared
        self.port = int(urlsplit(prepared.url).port or 0)
        self._guardian = guardian
        self._child: Child | None = None
        self._frozen: list[psutil.Process] = []
        self.start()

    def start(self) -> None:
        self._child = server.start(self.prepared, Log(sys.stderr, colour=False), self._guardian)

    def kill(self) -> None:
        """End it with all its sessions, without a chance to tidy up."""
        for each in self._processes():
            with suppress(psutil.NoSuchProcess):
                each.kill()
        assert self._child is not None
        self._child.wait(10)

    def stop(self) -> None:
        self.thaw()
        if self._child is not None and not self._child.is_over:
            self._child.stop()

    def freeze(self) -> None:
        """Stop it with all its sessions, so that it answers nothing and its host still does."""
        while found := [each for each in self._processes() if each not in self._frozen]:
            for each in found:
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGSTOP)
            self._frozen += found

    def thaw(self) -> None:
        """Let it go on, as if nothing had happened."""
        for each in self._frozen:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGCONT)
        self._frozen = []

    def run(self, sql: str) -> list[Any]:
        """A statement by the superuser; the rows of its answer."""
        where = {"host": LOOPBACK, "port": self.port, "user": "postgres", "dbname": postgres.ROLE}
        with psycopg.connect(**where, autocommit=True, connect_timeout=5) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def _processes(self) -> list[psutil.Process]:
        assert self._child is not None
        try:
            parent = psutil.Process(self._child.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class Replicas:
    """A primary and its standby. `url` names both, the first primary first."""

    def __init__(self, directory: Path, guardian: Guardian) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._guardian = guardian
        prepared = postgres.prepare(directory / "first", fsync=False)
        access = directory / "first" / "data" / "pg_hba.conf"
        access.write_text(ACCESS + access.read_text("ascii"), "ascii")
        self.primary = Replica(prepared, guardian)
        self.line: Wire
        self.standby: Replica
        """The server that follows, or the one that was promoted."""

    @property
    def url(self) -> str:
        """The address of both."""
        at = f"{LOOPBACK}:{self.primary.port}"
        return self.primary.prepared.url.replace(at, f"{at},{LOOPBACK}:{self.standby.port}")

    def copy(self) -> None:
        """Make the standby as a copy of the primary, which follows over a wire."""
        directory = self._directory / "second"
        made = postgres.plan(directory, fsync=False)
        data = directory / "data"
        programs = postgres.find_programs()
        account = account_for(programs / "postgres", data)
        upstream = (
            f"host={LOOPBACK} port={urlsplit(self.line.url).port} user=postgres"
            f" application_name={STANDBY}"
        )
        postgres._run(
            "pg_basebackup",
            [
                *(str(programs / "pg_basebackup"), "--pgdata", str(data), "--dbname", upstream),
                *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
            ],
            account,
        )
        ours, theirs = urlsplit(self.primary.prepared.url), urlsplit(made.url)
        url = made.url.replace(str(theirs.password), str(ours.password))
        spec = replace(made.spec, ready=partial(_follows, data))
        self.standby = Replica(Server(spec, url), self._guardian)
        self.wait_until_streaming()

    def wait_until_streaming(self) -> None:
        wait_until(
            lambda: self.primary.run("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"),
            "the standby to follow",
        )

    def commit_synchronously(self) -> None:
        """From now on a commit waits until the standby has it."""
        self.primary.run(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        self.primary.run("SELECT pg_reload_conf()")
        wait_until(
            lambda: self.primary.run("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"),
            "commits to wait for the standby",
        )

    def cut(self) -> None:
        """The standby gets no more of what the primary commits."""
        self.line.cut()

    def promote(self) -> float:
        """Make the standby the primary; the time at which it took writes."""
        self.standby.run("SELECT pg_promote(true)")
        return time.monotonic()


@contextmanager
def replicas(directory: Path, guardian: Guardian) -> Iterator[Replicas]:
    """A primary with a standby that follows it."""
    made = Replicas(directory, guardian)
    try:
        with wire(made.primary.prepared.url) as made.line:
            made.copy()
            try:
                yield made
            finally:
                made.standby.stop()
    finally:
        made.primary.stop()


def _follows(data: Path, pid: int) -> bool:
    """True once this server takes connections, be it as a standby."""
    try:
        lines = (data / "postmaster.pid").read_text("utf-8").splitlines()
    except OSError:
        return False
    states = {"ready", "standby"}
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() in states
