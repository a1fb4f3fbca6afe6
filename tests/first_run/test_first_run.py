"""`make run` in a fresh clone, as people start it: the real thing in each kind of place.

The first rows run with the other tests; `make test-first-run` runs all of them. Those that need
root's means (another user, a capability less, a mount) are skipped for others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.root import ROOT
from tests.support.servers import free_port

NOBODY = 65534
LAST = " replay-incident"
"""The end of the last line of a start."""
SECONDS = 280.0
OURS = (
    "ASSIGNMENT_WORKERS_",
    "DATABASE_URL",
    "REDIS_URL",
    "BROKER_URL",
    "CRM_DATABASE_URL",
    "MAKE",
    "MFLAGS",
    "ARGS",
)

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Row:
    """A way to start: what is as usual is not named."""

    name: str
    folder: str = "private"
    """Below a folder of mode 0700, where the clone is made."""
    fresh: bool = True
    """Whether a clone of its own is made and set up; else one that is set up already serves."""
    user: int | None = None
    """Whose the clone is, and who starts."""
    mounts: str = ""
    """Commands of a shell of root's with mounts of its own."""
    without: str = ""
    """Capabilities that are given up."""
    umask: int = 0o022
    network: bool = True
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Of which None are unset. `{here}` is a new folder of the row's user."""
    refused: Sequence[str] = ()
    """What the one line has, where a start is refused."""
    needs_root: bool = True


HOME = {"ASSIGNMENT_WORKERS_HOME": "{here}/home"}
FEW_PROGRAMS = {"PATH": "{here}/bin"}
NO_ACCOUNT = """
grep -v '^pgserver:' /etc/passwd >{here}/passwd
mount --bind {here}/passwd /etc/passwd
for useradd in /usr/sbin/useradd /sbin/useradd; do mount --bind /dev/null $useradd; done
"""
NO_IPV6 = """
ip link set lo up
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
"""
TMP = "mount -t tmpfs -o {options} tmpfs /tmp\n"
FULL = "head -c 1M /dev/zero >/tmp/full 2>/dev/null || true\n"
READ_ONLY = 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD"\n'

ANOTHER = "another Python, "

ROWS = [
    Row("root, below a folder of mode 0700"),
    Row("an ordinary user in a home of mode 0700", user=NOBODY, needs_root=False),
    Row("root, below a folder of mode 0700, home elsewhere", fresh=False, environment=HOME),
    Row("a path with spaces and other letters", folder="My Documents/Zoë's Übung 東京"),
    Row("a deep path", folder="/".join(f"{number:03}-of-a-very-deep-path" for number in range(9))),
    Row("umask 077", umask=0o077),
    Row("no useradd and no account", fresh=False, environment=HOME, mounts=NO_ACCOUNT),
    *(
        Row(f"no {name}", fresh=False, environment=HOME, without=f"-{name.lower()[4:]}")
        for name in ("CAP_SETPCAP", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_KILL")
    ),
    Row(
        "no capability",
        fresh=False,
        environment=HOME,
        without="-all",
        refused=[
            "PostgreSQL refuses to run as root",
            "start as an ordinary user, set DATABASE_URL",
        ],
    ),
    Row("no IPv6", fresh=False, environment=HOME, mounts=NO_IPV6, network=False),
    Row("a tmp of mode noexec", fresh=False, environment=HOME, mounts=TMP.format(options="noexec")),
    Row(
        "a tmp that is full",
        fresh=False,
        environment=HOME,
        mounts=TMP.format(options="size=64k") + FULL,
    ),
    Row("TMPDIR elsewhere", environment={"TMPDIR": "{here}/tmp"}),
    Row("a clone that is read-only", fresh=False, environment=HOME, mounts=READ_ONLY),
    Row(
        "a clone that is read-only and not set up",
        environment=HOME,
        mounts=READ_ONLY,
        refused=["name another place with: make VENV=/path"],
    ),
    Row(
        "a clone that is read-only, and its environment elsewhere",
        environment=HOME | {"VENV": "{here}/environment"},
        mounts=READ_ONLY,
    ),
    Row("few programs on the PATH", environment=FEW_PROGRAMS),
    *(Row(f"{ANOTHER}{version}", needs_root=False) for version in ("3.12", "3.13", "3.14")),
    Row("no HOME", environment={"HOME": None}),
    Row(
        "the gateway's port in use",
        fresh=False,
        environment=HOME | {"ASSIGNMENT_WORKERS_GATEWAY_PORT": "{taken}"},
        refused=["port {taken}, for the gateway, is in use by process {pid} (", "set --port or "],
    ),
    Row(
        "Flower's port in use",
        fresh=False,
        environment=HOME | {"ASSIGNMENT_WORKERS_FLOWER_PORT": "{taken}"},
        refused=[
            "port {taken}, for Flower, is in use by process {pid} (",
            "set ASSIGNMENT_WORKERS_FLOWER_PORT to another",
        ],
    ),
]
CHOSEN = ROWS if os.environ.get("EVERY_ROW") else ROWS[:2]


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A folder that only its owner may enter; not below pytest's own, which is private too."""
    with tempfile.TemporaryDirectory(prefix="first-run-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def installed(outside: Path) -> Path:
    """A clone that is set up, below a folder of mode 0700."""
    clone = cloned(outside / "installed" / "clone")
    made = subprocess.run(
        ["make", "--no-print-directory", ".venv/.ready-run"],
        cwd=clone,
        env=usual(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return clone


def cloned(clone: Path) -> Path:
    """What git has of this project, changed or not."""
    clone.parent.mkdir(parents=True)
    for each in clone.parents:
        if each.name.startswith("first-run-"):
            break
        each.chmod(0o700)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    return clone


def usual() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*OURS, "VIRTUAL_ENV", "PYTEST", "PYTHON"))
    }


def owned(folder: Path, user: int) -> None:
    for each in (folder, *folder.rglob("*")):
        os.chown(each, user, user, follow_symlinks=False)


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])


def environment_of(row: Row, here: Path, taken: int) -> dict[str, str]:
    found = usual() | {
        "ASSIGNMENT_WORKERS_GATEWAY_PORT": str(free_port()),
        "ASSIGNMENT_WORKERS_FLOWER_PORT": str(free_port()),
    }
    if row.user is not None:  # a Python of root's is not for everybody
        found |= {"HOME": str(here), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    for name, value in row.environment.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value.format(here=here, taken=taken)
    return found


def command_of(row: Row, here: Path, environment: Mapping[str, str]) -> list[str]:
    make = [shutil.which("make") or "make", "--no-print-directory", "run"]
    make += [f"PYTHON={python_of(row)}"] if row.name.startswith(ANOTHER) else []
    make += [f"VENV={environment['VENV']}"] if "VENV" in environment else []
    if row.user is not None and os.geteuid() == 0:
        make = ["setpriv", f"--reuid={row.user}", f"--regid={row.user}", "--clear-groups", *make]
    if row.without:
        make = ["setpriv", f"--bounding-set={row.without}", "--inh-caps=-all", *make]
    if row.mounts:
        script = f'set -e\n{row.mounts.replace("{here}", str(here))}\nexec "$@"'
        net = [] if row.network else ["--net"]
        make = ["unshare", "--mount", *net, "sh", "-c", script, "sh", *make]
    return [shutil.which(make[0]) or make[0], *make[1:]]


def python_of(row: Row) -> str:
    """Of the version that the row names: on the PATH, or where pyenv has it."""
    version = row.name.removeprefix(ANOTHER)
    pythons = Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")
    found = [shutil.which(f"python{version}"), *map(str, pythons)]
    for python in filter(None, found):
        said = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if said.stdout.startswith(f"Python {version}."):
            return python
    pytest.skip(f"Python {version} is not here")


def modes(folder: Path) -> list[int]:
    return [stat.S_IMODE(each.stat().st_mode) for each in (folder, *folder.parents)]


@contextlib.contextmanager
def started(
    row: Row, clone: Path, here: Path, taken: int
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process group of its own, and the file that it writes to."""
    environment = environment_of(row, here, taken)
    log = here / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command_of(row, here, environment),
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=row.umask,
        )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.parametrize("row", CHOSEN, ids=lambda row: row.name)
def test_a_first_run(row: Row, outside: Path, request: pytest.FixtureRequest) -> None:
    if row.needs_root and os.geteuid() != 0:
        pytest.skip("only root can make such a place")
    with tempfile.TemporaryDirectory(prefix="row-", dir=outside) as folder:
        here = Path(folder) / "here"
        here.mkdir()
        if row.fresh:
            clone = cloned(Path(folder) / row.folder / "clone")
        else:
            clone = request.getfixturevalue("installed")
        (here / "bin").mkdir()
        (here / "tmp").mkdir()
        (here / "bin" / "make").symlink_to(shutil.which("make") or "none")
        (here / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
        if row.user is not None and os.geteuid() == 0:
            outside.chmod(0o711)
            owned(Path(folder), row.user)
        before = modes(clone.parent)
        with taken_port() as taken, started(row, clone, here, taken) as (process, log):
            said = wait_for_end(process, log)
            if row.refused:
                check_refused(row, said, process, taken)
                return
            check_served(row, said)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(90) in {0, 130, -signal.SIGINT, 2}
            assert "everything has ended" in log.read_text(errors="replace")
        assert modes(clone.parent) == before
        home = here / "home" if "ASSIGNMENT_WORKERS_HOME" in row.environment else None
        home = home or clone / ".assignment-workers"
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


def wait_for_end(process: subprocess.Popen[bytes], log: Path) -> str:
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        said = log.read_text(errors="replace")
        if f"{LAST}\n" in said or process.poll() is not None:
            return log.read_text(errors="replace")
        time.sleep(0.1)
    raise AssertionError(f"neither began nor ended:\n{log.read_text(errors='replace')}")


def check_served(row: Row, said: str) -> None:
    assigned = [
        line for line in said.splitlines() if line.startswith("assigned: agent 26 has user")
    ]
    assert len(assigned) == 1, said
    assert said.rstrip().endswith(LAST), said
    assert len(said.splitlines()) <= 16, said
    assert "WARNING" not in said
    assert "Traceback" not in said


def check_refused(row: Row, said: str, process: subprocess.Popen[bytes], taken: int) -> None:
    assert process.wait(60) != 0
    words = [each.format(taken=taken, pid=os.getpid()) for each in row.refused]
    lines = [line for line in said.splitlines() if all(each in line for each in words)]
    assert len(lines) == 1, said
    assert "Traceback" not in said
