"""Temporary servers, ended with a `with` block: a PostgreSQL, a RabbitMQ, or a whole stack."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from assignment_workers.devstack import postgres, rabbitmq, server
from assignment_workers.devstack.guardian import Guardian, Ward
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.ports import free_ports
from assignment_workers.devstack.process import Child
from assignment_workers.devstack.server import Server
from assignment_workers.runtime.errors import StackFailed
from assignment_workers.runtime.home import hold
from assignment_workers.runtime.stack import Stack, running_stack
from assignment_workers.settings import Settings

READY_SECONDS = 300.0
"""The most seconds that the start of a stack may take, even on a busy machine. A start that fails
is reported at once.
"""
STOP_SECONDS = 60.0
DISK = "assignment-workers-disk"
"""The name of a tmpfs (a file system in memory) with the data of a stack's PostgreSQL.

The tmpfs is mounted under this name, and `disk_of` finds it by this name in the list of mounts. The
function `stack` mounts it only if asked to, with `own_disk`.
"""
DISK_SIZE = "6g"
RESIZES = 50
MEMORY_BYTES = 8_000_000_000
"""The free memory, in bytes, that a stack with a file system in memory needs."""
FIRST = re.compile(rb"\b(assigned|no user)\b")
"""A pattern for the line that `up --demo` prints once the demo's dialer queues are built: the first
assignment, or the message that there is no user to assign.
"""


@contextmanager
def database() -> Iterator[str]:
    """Run an empty PostgreSQL while this context lasts; yield its address.

    Writes are synced to the disk. Raises `StackFailed` if the server does not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="assignment-workers-") as folder,
        hold(Path(folder) / "home") as home,
        Guardian(keeps=[home.descriptor]) as guardian,
    ):
        made = postgres.prepare(home.path / "postgres")
        child = server.start(made, Log(sys.stderr, colour=False), guardian)
        try:
            yield made.url
        finally:
            child.stop()


@dataclass
class Broker:
    """A RabbitMQ node that one stack uses as its message broker.

    This process starts and ends the node. The stack does neither, so the node can be killed and
    restarted while the stack runs.
    """

    url: str
    _server: Server
    _child: Child
    _log: Log
    _guardian: Guardian

    @property
    def processes(self) -> list[int]:
        """The ids of all processes of the node. The first id is the node's own."""
        node = psutil.Process(self._child.pid)
        return [node.pid, *(each.pid for each in node.children(recursive=True))]

    def kill(self) -> None:
        """Kill the node with all its processes."""
        self._child.kill()
        self._child.wait(STOP_SECONDS)

    def restart(self) -> None:
        """Start the killed node again, with the same data and address.

        Raises `StackFailed` if the node does not become ready.
        """
        self._child = server.start(self._server, self._log, self._guardian)

    def stop(self) -> None:
        """Stop the node."""
        if not self._child.is_over:
            self._child.stop()


@contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """Run a RabbitMQ node with its data in `folder` while this context lasts.

    Raises `StackFailed` if RabbitMQ is not installed or does not start.
    """
    if not rabbitmq.PROGRAM.exists():
        raise StackFailed(
            f"RabbitMQ is not installed at {rabbitmq.PROGRAM} (Debian: apt install rabbitmq-server)"
        )
    directory, log = folder / "rabbitmq", Log(sys.stderr, colour=False)
    ports = rabbitmq.NodePorts.free()
    with Guardian() as guardian:
        mapper = Child(rabbitmq.port_mapper(directory, ports), log, guardian)
        prepared = rabbitmq.prepare(directory, ports)
        try:
            child = server.start(prepared, log, guardian)
            made = Broker(prepared.url, prepared, child, log, guardian)
            try:
                yield made
            finally:
                made.stop()
        finally:
            mapper.kill()


@dataclass(frozen=True)
class Disk:
    """A file system in memory that only the processes of one stack can see.

    It is removed when the last of these processes ends.
    """

    process: int
    """The id of a process of the stack.

    A process outside the stack reaches the file system through `/proc/ID/root`, where ID is this
    id.
    """
    path: Path

    def seen(self, path: Path) -> Path:
        """Return the path under `/proc` by which a process outside the stack reaches `path`.

        `path` is the path by which the stack's own processes reach the same file. A process outside
        the stack cannot use `path` itself, because the file system in memory is mounted only for
        the stack's own processes.
        """
        return Path(f"/proc/{self.process}/root{path}")

    def fill(self) -> None:
        """Make the file system full, by reducing its size to the space that its files use.

        Raises `OSError` if that fails.
        """
        for _ in range(RESIZES):  # a file may grow in between
            if self._resize(str(_used(self.seen(self.path)))):
                return
        raise OSError(f"{self.path} cannot be made smaller")

    def empty(self) -> None:
        """Undo `fill`: restore the original size, so that the file system has free space again.

        Raises `OSError` if that fails.
        """
        if not self._resize(DISK_SIZE):
            raise OSError(f"{self.path} cannot be made larger")

    def _resize(self, size: str) -> bool:
        inside = ["nsenter", f"--mount=/proc/{self.process}/ns/mnt"]
        mount = ["mount", "-o", f"remount,size={size}", str(self.path)]
        done = subprocess.run([*inside, *mount], capture_output=True, check=False)
        return done.returncode == 0


def disk_of(process: int) -> Disk | None:
    """Return the file system in memory of a stack's PostgreSQL; None if the stack has none.

    `process`: the id of the stack's first process.
    """
    mounts = Path(f"/proc/{process}/mountinfo")
    for line in mounts.read_text(encoding="utf-8").splitlines() if mounts.exists() else ():
        fields = line.split()
        if DISK in fields[fields.index("-") :]:
            return Disk(process, Path(fields[4]))
    return None


def _used(path: Path) -> int:
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextmanager
def stack(folder: Path, variables: Mapping[str, str], *, own_disk: bool = False) -> Iterator[Stack]:
    """Run a whole stack in `folder`, with a demo CRM and a standby sequencer.

    A separate process runs `up` with the settings in `variables`, a home in `folder` and free ports
    for the gateway and Flower. Settings in the environment of this process are ignored. The output
    goes to `stack.log` in `folder`. Raises `StackFailed` if the stack does not start.

    `own_disk` True: PostgreSQL gets a file system in memory, if this account may mount one and
    enough memory is free (`MEMORY_BYTES`). `disk_of` returns this file system. Otherwise PostgreSQL
    uses the file system of `folder`, without an error, and `disk_of` returns None.
    """
    home, log = folder / "home", folder / "stack.log"
    ours = ("ASSIGNMENT_WORKERS_", "DATABASE_URL", "REDIS_URL", "BROKER_URL", "CRM_DATABASE_URL")
    environment = {name: each for name, each in os.environ.items() if not name.startswith(ours)}
    gateway, flower = free_ports(2)
    environment |= {
        **variables,
        "ASSIGNMENT_WORKERS_HOME": str(home),
        "ASSIGNMENT_WORKERS_GATEWAY_PORT": str(gateway),
        "ASSIGNMENT_WORKERS_FLOWER_PORT": str(flower),
    }
    command = [sys.executable, "-m", "assignment_workers", "up", "--demo", "--sequencers", "2"]
    if own_disk and _can_mount():
        place = home / "postgres"
        with hold(home):  # which makes the home one of ours, as `up` wants it
            place.mkdir(mode=0o700)
        command = [*_mounted(place), *command]
    with log.open("wb") as output, Guardian() as guardian:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        guardian.watch(Ward(process.pid, signal.SIGTERM, STOP_SECONDS, server=True))
        try:
            yield _ready(process, home, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            guardian.forget(process.pid)


def _can_mount() -> bool:
    if psutil.virtual_memory().available < MEMORY_BYTES:
        return False
    with tempfile.TemporaryDirectory() as place:
        tried = subprocess.run([*_mounted(Path(place)), "true"], capture_output=True, check=False)
    return tried.returncode == 0


def _mounted(place: Path) -> list[str]:
    """Return a prefix for a command line: it mounts a file system in memory, then runs the command.

    The file system is mounted at `place`. Only the command and the processes that it starts see it.
    """
    mount = f'mount -t tmpfs -o size={DISK_SIZE},mode=0700 {DISK} "$0" && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(place)]


def _ready(process: subprocess.Popen[bytes], home: Path, log: Path) -> Stack:
    """Wait until the stack works; return its addresses.

    The stack works once its output `log` has the demo's first assignment, or the message that there
    is no user to assign. Raises `StackFailed` if the stack ends before that, or takes too long.
    """
    settings = Settings.model_validate({"home": home})
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if (found := running_stack(settings)) and FIRST.search(log.read_bytes()):
            return found
        if process.poll() is not None:
            break
        time.sleep(0.1)
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    why = [line for line in words if "stopping: " in line] or words or ["it said nothing"]
    raise StackFailed(f"the stack did not start: {why[-1]}")
