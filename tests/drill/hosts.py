"""Hosts on one machine: a network namespace each, on one bridge, so that a host can be lost whole.

The drill itself is in a namespace of its own, as the offices of the agents. Everything is gone when
its processes have ended. Packets of a host that is cut off are dropped: no end of a connection is
told to the other side.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.77.0"
BRIDGE = "drill"
OFFICES = f"{NETWORK}.1"
"""The address at which the agents and their proxy are."""
ENTERED = "DRILL_NAMESPACE"
RESTART_SECONDS = 1.0
"""The pause before a process that has ended is started again, as in `ops/systemd`."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Unit:
    """A program of a host. `is_kept`: started again whenever it ends by itself."""

    name: str
    argv: Sequence[str]
    environment: dict[str, str]
    is_kept: bool = True


@dataclass
class _Running:
    unit: Unit
    popen: subprocess.Popen[bytes]
    ended_at: float | None = None


class Host:
    """One host. `logs` is the folder of what its programs write."""

    def __init__(self, number: int, logs: Path) -> None:
        self.name = "ABC"[number]
        self.address = f"{NETWORK}.{number + 2}"
        self.logs = logs
        self._port = f"host{self.name.lower()}"
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        _until_unshared(self._holder.pid)
        self._namespace = _namespace(self._holder.pid)
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self.is_up = True
        _ip(
            "link",
            "add",
            self._port,
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            str(self._holder.pid),
        )
        self.mend()
        _ip("link", "set", self._port, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            subprocess.run(self.inside("ip", *words), check=True)

    def know(self, address: str, hardware: str) -> None:
        """Send to this address without asking who has it: nothing tells that a host is away."""
        words = ("neighbour", "replace", address, "lladdr", hardware, "dev", "eth0")
        subprocess.run(self.inside("ip", *words, "nud", "permanent"), check=True)

    @property
    def hardware(self) -> str:
        """The address of the host's network card."""
        done = subprocess.run(
            self.inside("ip", "-json", "link", "show", "eth0"), check=True, capture_output=True
        )
        return str(json.loads(done.stdout)[0]["address"])

    def inside(self, *argv: str) -> list[str]:
        """Return the command that runs `argv` on this host."""
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--", *argv]

    def start(self, unit: Unit) -> None:
        """Start a program."""
        with (self.logs / f"{self.name}-{unit.name}.log").open("ab") as log:
            popen = subprocess.Popen(
                self.inside(*unit.argv),
                env=unit.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with self._lock:
            self._running[unit.name] = _Running(unit, popen)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask a program to end, and wait; it is not started again."""
        with self._lock:
            running = self._running.pop(name, None)
        if running is None or running.popen.poll() is not None:
            return
        running.popen.send_signal(number)
        try:
            running.popen.wait(20)
        except subprocess.TimeoutExpired:
            running.popen.kill()
            running.popen.wait()

    def kept(self) -> None:
        """Start again what has ended by itself."""
        now = time.monotonic()
        with self._lock:
            if not self.is_up:
                return
            ended = [each for each in self._running.values() if each.popen.poll() is not None]
        for each in ended:
            each.ended_at = each.ended_at or now
            if each.unit.is_kept and now - each.ended_at >= RESTART_SECONDS:
                self.start(each.unit)

    def kill(self) -> None:
        """End everything at once, without a chance to tidy up."""
        with self._lock:
            self.is_up = False
        while found := self.processes():
            _signal(found, signal.SIGKILL)
            time.sleep(0.01)
        for each in self._running.values():
            each.popen.wait()
        self._running.clear()

    def freeze(self) -> None:
        """Stop everything; the connections stay, and nothing is answered."""
        with self._lock:
            self.is_up = False
        stopped: set[int] = set()
        while found := self.processes() - stopped:
            _signal(found, signal.SIGSTOP)
            stopped |= found

    def thaw(self) -> None:
        """Let everything go on, as if nothing had happened."""
        _signal(self.processes(), signal.SIGCONT)
        self.is_up = True

    def cut_off(self) -> None:
        """Drop every packet to and from this host; it goes on by itself."""
        _ip("link", "set", self._port, "nomaster")

    def mend(self) -> None:
        """Connect the host, again."""
        _ip("link", "set", self._port, "master", BRIDGE)

    def processes(self) -> set[int]:
        """Return the ids of everything that runs on this host."""
        found = set()
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if _namespace(int(each.name)) == self._namespace:
                    found.add(int(each.name))
        return found - {self._holder.pid}

    def close(self) -> None:
        """End the host."""
        self.kill()
        self._holder.kill()
        self._holder.wait()


@dataclass
class Hosts:
    """The hosts, connected; what ends on them is started again."""

    logs: Path
    all: list[Host] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Hosts:
        _ip("link", "set", "lo", "up")
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{OFFICES}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        self.all = [Host(number, self.logs) for number in range(3)]
        for each in self.all:
            _ip(
                *("neighbour", "replace", each.address, "lladdr", each.hardware),
                *("dev", BRIDGE, "nud", "permanent"),
            )
            for other in self.all:
                if other is not each:
                    other.know(each.address, each.hardware)
        self._thread = threading.Thread(target=self._keep, name="hosts")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for each in self.all:
            each.close()

    def _keep(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for each in self.all:
                each.kept()


def enter(argv: Sequence[str]) -> None:
    """Become the program `argv` in a network of its own, unless this process is in it."""
    if os.environ.get(ENTERED):
        return
    if os.geteuid() != 0:
        raise SystemExit("The drill makes networks of its own: it needs root")
    os.environ[ENTERED] = "1"
    os.execvp("unshare", ["unshare", "--net", *argv])  # noqa: S606


def wait_until(condition: Callable[[], object], what: str, *, seconds: float) -> None:
    """Wait until the condition holds; `what` names it in the error of a wait in vain."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _namespace(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def _until_unshared(pid: int) -> None:
    wait_until(lambda: _namespace(pid) != _namespace(os.getpid()), "a namespace", seconds=5)


def _signal(pids: set[int], number: signal.Signals) -> None:
    for each in pids:
        with suppress(ProcessLookupError):
            os.kill(each, number)
