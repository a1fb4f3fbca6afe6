"""Valkey with a replica and three Sentinels, of which a test freezes, kills and cuts off the primary."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import redis

from assignment_workers.devstack import valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.ports import LOOPBACK, Address
from assignment_workers.devstack.process import ProcessSpec
from assignment_workers.devstack.server import Server
from tests.support.processes import wait_until
from tests.support.servers import OwnServer, Wire, free_port, wire

NAME, PASSWORD = "dialer", "of-the-data"
SENTINELS_PASSWORD = "of-the-sentinels"
DOWN_AFTER = 1500
"""Milliseconds after which a Sentinel takes a silent primary for dead."""


class Sentinels:
    """`url` names the Sentinels; `primary` and `replica` are what they were at first."""

    def __init__(self, directory: Path, guardian: Guardian, keep: ExitStack, count: int) -> None:
        directory.mkdir(mode=0o700)
        self._directory = directory
        self.primary = OwnServer(partial(_data, None), directory / "first", guardian)
        keep.callback(self.primary.stop)
        self.line: Wire = keep.enter_context(wire(self.primary.url))
        upstream = urlsplit(self.line.url).port
        self.replica = OwnServer(partial(_data, upstream), directory / "second", guardian)
        keep.callback(self.replica.stop)
        with self.client(self.replica) as client:
            wait_until(
                lambda: client.info("replication")["master_link_status"] == "up",
                "the replica to follow",
            )
        port = urlsplit(self.primary.url).port or 0
        self._ports = [free_port() for _ in range(count)]
        for own in self._ports:
            made = OwnServer(partial(_sentinel, own, port), directory / str(own), guardian)
            keep.callback(made.kill)
        wait_until(self._know_each_other, "the Sentinels to know all there is")

    @property
    def url(self) -> str:
        """As Celery and kombu write it."""
        at = [f"sentinel://:{PASSWORD}@{LOOPBACK}:{port}/0" for port in self._ports]
        return f"{';'.join(at)}?master_name={NAME}&sentinel_password={SENTINELS_PASSWORD}"

    @staticmethod
    def client(of: OwnServer) -> redis.Redis:
        return redis.Redis.from_url(of.url, socket_timeout=5)

    def freeze(self) -> None:
        """Stop the first primary, so that it answers nothing and its host still does."""
        os.kill(self._pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid(), signal.SIGCONT)

    def promote(self) -> None:
        """Make the replica the primary, and the other way round, without Sentinels."""
        with self.client(self.replica) as new, self.client(self.primary) as old:
            new.replicaof("NO", "ONE")
            old.replicaof(LOOPBACK, urlsplit(self.replica.url).port)

    def is_replica(self, of: OwnServer) -> bool:
        """Whether this server follows another, and its Sentinels have made it do so."""
        with self.client(of) as client:
            try:
                return bool(client.info("replication")["role"] == "slave")
            except redis.ConnectionError:  # they end its connections meanwhile
                return False

    def _pid(self) -> int:
        assert self.primary._child is not None
        return self.primary._child.pid

    def _know_each_other(self) -> bool:
        for port in self._ports:
            with redis.Redis(host=LOOPBACK, port=port, password=SENTINELS_PASSWORD) as client:
                found = client.sentinel_masters()[NAME]
                others = len(self._ports) - 1
                if (found["num-slaves"], found["num-other-sentinels"]) != (1, others):
                    return False
        return True


@contextmanager
def sentinels(directory: Path, guardian: Guardian, *, count: int = 3) -> Iterator[Sentinels]:
    """A primary, its replica and their Sentinels."""
    with ExitStack() as keep:
        made = Sentinels(directory, guardian, keep, count)
        try:
            yield made
        finally:
            made.thaw()


def _data(upstream: int | None, directory: Path) -> Server:
    """A Valkey that follows the one at the port `upstream`, if any, when it starts."""
    directory.mkdir(mode=0o700, exist_ok=True)
    file = directory / "address.json"
    if not file.exists():
        file.write_text(Address(port=free_port(), password=PASSWORD).model_dump_json())
    prepared = valkey.prepare(directory, fsync=False)
    with (directory / "valkey.conf").open("a") as configuration:
        configuration.write(f"masterauth {PASSWORD}\nrepl-diskless-sync-delay 0\n")
        if upstream is not None:
            configuration.write(f"replicaof {LOOPBACK} {upstream}\n")
    return prepared


def _sentinel(port: int, primary: int, directory: Path) -> Server:
    directory.mkdir(mode=0o700, exist_ok=True)
    configuration = directory / "sentinel.conf"
    configuration.write_text(
        f"""
bind {LOOPBACK}
port {port}
dir {directory}
requirepass {SENTINELS_PASSWORD}
sentinel sentinel-pass {SENTINELS_PASSWORD}
sentinel monitor {NAME} {LOOPBACK} {primary} 2
sentinel auth-pass {NAME} {PASSWORD}
sentinel down-after-milliseconds {NAME} {DOWN_AFTER}
sentinel failover-timeout {NAME} 6000
"""
    )
    spec = ProcessSpec(
        "sentinel",
        [str(valkey.find_program()), str(configuration), "--sentinel"],
        log=directory / "log",
        ready=lambda _: _answers(port),
    )
    return Server(spec, f"redis://:{SENTINELS_PASSWORD}@{LOOPBACK}:{port}/0")


def _answers(port: int) -> bool:
    with redis.Redis(host=LOOPBACK, port=port, password=SENTINELS_PASSWORD) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
