"""The home: the directory of the embedded servers' data and logs, held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from assignment_workers.runtime.errors import HomeHeld, HomeUnusable

LOCK = "lock"
GRACE_SECONDS = 0.5
"""The seconds for which `hold` tries again to lock a home that another process has locked.

The other process may be one that only asks if the home is locked (`holder`); it then has the lock
for a moment.
"""
ENDING_SECONDS = 60.0
"""The seconds for which `hold` tries again to lock a home whose holder was killed.

The guardian, a process that ends the killed process's children, keeps the lock until all have
ended.
"""


class Holder(BaseModel):
    """The process that holds a home (a stack's directory), as written in the home's lock file."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str
    since: AwareDatetime

    def is_gone(self) -> bool:
        """Return True if the process ran on this host and has ended."""
        return self.host == socket.gethostname() and not is_running(self.pid)


@dataclass(frozen=True)
class Home:
    """A home (the directory of a stack) that this process has locked."""

    path: Path
    descriptor: int
    """The file descriptor of the lock file. A process that inherits it also holds the home."""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[Home]:
    """Create the home of a stack if needed (mode 0700), and lock it while this context lasts.

    The lock is the kernel's (flock) and ends with the process, so there is no stale lock. Raises
    `HomeHeld`, with the process id, host and start time of the holder, if another process has
    locked the directory. Raises `HomeUnusable` if the directory cannot be created or written, or
    has files of other programs.
    """
    path = path.absolute()
    try:
        _make(path)
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        (path / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise HomeUnusable(path, error.strerror or str(error)) from error
    try:
        _lock(path, descriptor)
        me = Holder(pid=os.getpid(), host=socket.gethostname(), since=datetime.now(UTC))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, me.model_dump_json().encode(), 0)
        try:
            yield Home(path, descriptor)
        finally:
            os.ftruncate(descriptor, 0)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Return the process that has locked the home (a stack's directory) now.

    None if no process has locked it, or if the lock file does not name that process yet. Raises
    `HomeUnusable` if the home belongs to another operating system user.
    """
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HomeUnusable(path.absolute(), error.strerror or str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(path)
    finally:
        os.close(descriptor)
    return None


def write_private(path: Path, text: str) -> None:
    """Write `text` to a file that only its owner can read. Readers see all of the text or none."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def is_running(pid: int) -> bool:
    """Return True if a process with this id runs on this host. A zombie does not count."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _make(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (path / LOCK).exists() and any(path.iterdir()):
        raise HomeUnusable(path, "it holds files that are not ours")
    path.chmod(0o700)


def _lock(path: Path, descriptor: int) -> None:
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            named = _named(path)
        except OSError as error:
            raise HomeUnusable(path, f"no lock: {error.strerror}") from error
        patience = ENDING_SECONDS if named and named.is_gone() else GRACE_SECONDS
        if time.monotonic() - begun > patience:
            raise HomeHeld(_refusal(path, named))
        time.sleep(0.02)


def _named(path: Path) -> Holder | None:
    try:
        return Holder.model_validate_json((path / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _refusal(path: Path, named: Holder | None) -> str:
    if named is None:
        return f"the home {path} is held by another process"
    since = named.since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"the home {path} is held by process {named.pid} on {named.host} since {since}"
