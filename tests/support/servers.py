"""Servers of a test's own, which it may kill, stop and rob of their data; and a line to cut."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pymysql
from kombu import Connection, Queue

from assignment_workers.devstack import ports, rabbitmq, server
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.process import Child, ProcessSpec
from assignment_workers.devstack.rabbitmq import NodePorts
from assignment_workers.devstack.server import Server

LOOPBACK = "127.0.0.1"
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""The number of processes that share the tests."""
PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
EMBEDDED, OTHERS = (ports.CHOICE[2 * PROCESS + each :: 2 * PROCESSES] for each in (0, 1))
"""This process's own ports: none takes what another chose, or what a server will start on again.

The product chooses an embedded server's among the first, `free_port` among the second.
"""
_OTHERS = itertools.cycle(random.Random().sample(OTHERS, len(OTHERS)))


class OwnServer:
    """A server that runs until the test ends it, and again when it says so."""

    def __init__(
        self, prepare: Callable[[Path], Server], directory: Path, guardian: Guardian
    ) -> None:
        self._prepare = prepare
        self._directory = directory
        self._guardian = guardian
        self._log = Log(sys.stderr, colour=False)
        self._child: Child | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it at the address it had, and wait until it serves."""
        prepared = self._prepare(self._directory)
        self._child = server.start(prepared, self._log, self._guardian)
        self.url = prepared.url

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def kill(self) -> None:
        """End it with all its processes, without a chance to tidy up."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(10)

    def freeze(self) -> None:
        """Stop it with all its processes, which keep their connections and answer nothing."""
        for each in self._processes():  # one of them may just have ended
            with suppress(psutil.NoSuchProcess):
                each.suspend()

    def thaw(self) -> None:
        """Let it go on."""
        for each in self._processes():
            with suppress(psutil.NoSuchProcess):
                each.resume()

    def _processes(self) -> Iterator[psutil.Process]:
        """The first one alone, before its children are looked for: it may begin another."""
        assert self._child is not None
        first = psutil.Process(self._child.pid)
        yield first
        yield from first.children(recursive=True)

    def stop(self) -> None:
        """End it in good order."""
        if self._child is not None and not self._child.is_over:
            self._child.stop()

    def lose_data(self) -> None:
        """Its data are gone; it is not running."""
        shutil.rmtree(self._directory / "data")


class Rabbit(OwnServer):
    """A RabbitMQ node, with the port mapper that Erlang needs, on loopback ports of its own."""

    def __init__(self, directory: Path, guardian: Guardian) -> None:
        ports = NodePorts.free()
        mapping = rabbitmq.port_mapper(directory, ports)
        self._mapper = Child(mapping, Log(sys.stderr, colour=False), guardian)
        super().__init__(partial(rabbitmq.prepare, ports=ports), directory, guardian)

    @contextmanager
    def queues(self) -> Iterator[None]:
        """Within: the queues of a stack, which are gone afterwards with what is in them."""
        yield
        with Connection(self.url) as connection:
            for queue in ("assignment", "maintenance"):
                Queue(queue, channel=connection.channel()).delete()

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Within: the node has more in its memory than it may, and takes no messages."""
        self._control("set_vm_memory_high_watermark", "absolute", "1MiB")
        try:
            yield
        finally:
            self._control("set_vm_memory_high_watermark", "0.6")

    def suspend_leader(self, queue: str, *, seconds: float) -> None:
        """From now on the leader of this quorum queue confirms nothing, for these seconds."""
        leader = f"Leader = erlang:whereis('%2F_{queue}')"
        resume = f"timer:apply_after({seconds * 1000:.0f}, sys, resume, [Leader])"
        self._control("eval", f"{leader}, {resume}, sys:suspend(Leader).")

    @contextmanager
    def without_leader(self, queue: str) -> Iterator[None]:
        """Within: the leader of this quorum queue confirms nothing."""
        leader = f"erlang:whereis('%2F_{queue}')"
        self._control("eval", f"sys:suspend({leader}).")
        try:
            yield
        finally:
            self._control("eval", f"sys:resume({leader}).")

    def _control(self, *words: str) -> None:
        environment = {**os.environ, **self._prepare(self._directory).spec.env}
        program = rabbitmq.PROGRAM.with_name("rabbitmqctl")
        subprocess.run([str(program), *words], env=environment, check=True, capture_output=True)

    def close(self) -> None:
        """End the node and the port mapper."""
        self.stop()
        self._mapper.kill()


MARIADB = Path("/usr/sbin/mariadbd")
"""Where Debian's package has it, started as whoever we are."""


class Maria(OwnServer):
    """A MariaDB server without fsync, on a loopback port and a socket of its own.

    Its databases are made and read by the user `crm`.
    """

    def __init__(self, directory: Path, guardian: Guardian) -> None:
        self._port = free_port()
        super().__init__(self._prepared, directory, guardian)

    def run(self, sql: str) -> None:
        """One statement, on no database."""
        with pymysql.connect(
            host=LOOPBACK, port=self._port, user="crm", password="crm", autocommit=True
        ) as connection:
            connection.cursor().execute(sql)

    def _prepared(self, directory: Path) -> Server:
        directory.mkdir(parents=True, exist_ok=True)
        data, users = directory / "data", directory / "users.sql"
        quick = ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync"]
        quick += ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M"]
        common = ["--no-defaults", f"--datadir={data}", *quick]
        common += ["--user=root"] if os.geteuid() == 0 else []
        if not data.exists():
            made = ["--auth-root-authentication-method=normal", "--skip-test-db"]
            subprocess.run(["mariadb-install-db", *common, *made], check=True, capture_output=True)
        # A line of this file is a statement.
        users.write_text(
            "CREATE USER IF NOT EXISTS crm@'127.0.0.1' IDENTIFIED BY 'crm';\n"
            "GRANT ALL ON *.* TO crm@'127.0.0.1';\n"
        )
        own = [f"--port={self._port}", f"--bind-address={LOOPBACK}", f"--init-file={users}"]
        own += [f"--socket={directory / 's'}", f"--pid-file={directory / 'pid'}"]
        own += ["--skip-name-resolve", "--performance-schema=OFF", "--default-time-zone=+05:00"]
        spec = ProcessSpec(
            "mariadb",
            [str(MARIADB), *common, *own],
            log=directory / "mariadb.log",
            ready=lambda _: self._serves(),
        )
        return Server(spec, f"mysql://crm:crm@{LOOPBACK}:{self._port}/")

    def _serves(self) -> bool:
        try:
            self.run("SELECT 1")
        except pymysql.err.OperationalError:
            return False
        return True


PGBOUNCER = Path("/usr/sbin/pgbouncer")
"""Where Debian's package has it."""


def pooler(database_url: str, directory: Path) -> Server:
    """PgBouncer before a database, which gives each transaction whichever session is free."""
    directory.mkdir(exist_ok=True)
    to, port = urlsplit(database_url), free_port()
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        f"""
[databases]
* = host={to.hostname} port={to.port} user={to.username} password={to.password or ""}
[pgbouncer]
listen_addr = {LOOPBACK}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""
    )
    spec = ProcessSpec(
        "pgbouncer",
        [str(PGBOUNCER), *(("-u", "nobody") if os.geteuid() == 0 else ()), str(settings)],
        log=directory / "pgbouncer.log",
        ready=lambda _: _listens(port),
    )
    return Server(spec, database_url.replace(f":{to.port}/", f":{port}/"))


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=0.5):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on, for now, and that no outgoing connection gets."""
    return next(port for port in _OTHERS if ports.is_free(port))


class Wire:
    """A loopback port that passes everything on to a server, until it is cut.

    Cut, it takes connections and bytes as before and passes nothing on: what a host sees whose
    packets are dropped on the way.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: what clients see of a server that has no TLS itself."""
        self._to = urlsplit(url)
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._cut = threading.Event()
        self.cut_at: float | None = None
        """When the wire was last cut, by this process's monotonic clock."""
        self._swallowed = 0
        self._made = 0
        self._left: int | None = None
        self.sent = 0
        """How many times a client has sent."""
        self._lock = threading.Lock()
        self._closed = False
        self._open: list[socket.socket] = [self._listening]
        self._far: list[socket.socket] = []
        self._near: list[socket.socket] = []
        self.url = url.replace(f":{self._to.port}", f":{self._listening.getsockname()[1]}", 1)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing passes from now on, in either direction."""
        self.cut_at = time.monotonic()
        self._cut.set()

    def mend(self) -> None:
        """Whole again, after a cut: the connections that there were end, new ones are served."""
        self._swallowed = self._made
        for each in (*self._near, *self._far):
            _end(each)
        self._cut.clear()

    def freeze(self) -> None:
        """Nothing passes over the connections that there are; those made from now on are served.

        The server's side of the former ends: as where another server has taken the place of one
        that hangs, which knows nothing of them.
        """
        self._swallowed = self._made
        for far in self._far:
            _end(far)

    def lead_to(self, url: str) -> None:
        """Connections made from now on lead to another server: as where a name moves."""
        self._to = urlsplit(url)

    def hang_up(self) -> None:
        """The connections that there are end; those made from now on are served."""
        for far in self._far:
            _end(far)

    def cut_after(self, sendings: int) -> None:
        """Be cut once the client has sent so many times."""
        self._left = sendings

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes any more."""
        return self._cut.is_set()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for each in self._open:
            _end(each)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._tls is not None:
                    near = self._tls.wrap_socket(near, server_side=True)
                far = socket.create_connection((self._to.hostname or "", self._to.port or 0))
            except OSError:
                near.close()  # the server is down
                continue
            with self._lock:
                if self._closed:
                    near.close()
                    far.close()
                    return
                self._open += [near, far]
            self._far.append(far)
            self._near.append(near)
            self._made += 1
            for source, target in ((near, far), (far, near)):
                said = (source, target, self._made, source is near)
                threading.Thread(target=self._pass, args=said, daemon=True).start()

    def _pass(
        self, source: socket.socket, target: socket.socket, number: int, by_client: bool
    ) -> None:
        try:
            while data := source.recv(65536):
                self.sent += by_client
                if by_client and self._left is not None:
                    self._left -= 1
                    if self._left < 0 and not self._cut.is_set():
                        self.cut()
                if self._is_cut(number):
                    return
                target.sendall(data)
        except OSError:
            pass
        if not self._is_cut(number):
            _end(target)  # to close it would tell the other side nothing while it is read from
            target.close()

    def _is_cut(self, number: int) -> bool:
        return self._cut.is_set() or number <= self._swallowed


def _end(line: socket.socket) -> None:
    """End a connection that another thread may be reading from."""
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire(url: str, tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """A wire to the server at this address."""
    made = Wire(url, tls)
    try:
        yield made
    finally:
        made.close()
