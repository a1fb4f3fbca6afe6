"""Run the short suite on every Python and server of the compatibility page that this machine has.

    .venv/bin/python tools/matrix.py [--only WORD]

A row differs from the first one in one part: another Python, another PostgreSQL, another Redis or
Valkey, or RabbitMQ as broker. docs/compatibility.md gets a row for each, with the result and the
date; a part that is not here is listed as not tried, and stays so until it is. `--only` runs the
rows whose name has the word, and leaves the other rows of the page as they are.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from assignment_workers.devstack import postgres, valkey
from assignment_workers.devstack.unprivileged import account_for

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
SERVER_TESTS = (
    "tests/integration/assignment/callbacks/test_callbacks.py",
    "tests/integration/assignment/claims/test_claim.py",
    "tests/integration/assignment/pools/test_discover.py",
    "tests/integration/assignment/generations/test_entries.py",
    "tests/integration/assignment/lifecycle/test_finish.py",
    "tests/integration/assignment/test_jobs.py",
    "tests/integration/assignment/test_lanes.py",
    "tests/integration/schema/test_migrations.py",
    "tests/integration/assignment/test_phones.py",
    "tests/integration/schema/test_pipeline.py",
    "tests/integration/policy/test_policy.py",
    "tests/integration/assignment/generations/test_regenerate.py",
    "tests/integration/assignment/claims/test_requests.py",
    "tests/integration/assignment/test_suppressions.py",
    "tests/integration/sequencer/test_transport.py",
    "tests/gateway/routes/test_routes.py",
    "tests/faults/test_once.py",
)
"""The short suite: whatever speaks to PostgreSQL or Redis with statements of its own."""
PYTHON_TESTS = (
    "tests/unit",
    "tests/integration/assignment/claims/test_claim.py",
    "tests/gateway/routes/test_routes.py",
)
PAGE_TEST = "tests/unit/tools/test_release.py::test_the_compatibility_page_has_a_row_for_each_part"
RABBITMQ_TESTS = ("tests/faults/test_rabbitmq.py",)
LOOPBACK = "127.0.0.1"
STARTS_WITHIN = 30.0
RUN_SECONDS = 1800.0
SUMMARY = re.compile(r"^=* ?(\d+ [a-z]+(?:, \d+ [a-z]+)*) in \d", re.MULTILINE)
HEAD = """\
# Compatibility

`make matrix` runs a short suite on each part that a machine has, one part changed at a time, and
writes this page. The first row has the parts that `make test` runs on. A part that was *not tried*
was not on the machine of its last run.

| part | version | run on (UTC) | result |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Part:
    """A part that the suite is run on: its name on the page, and how the run gets it.

    `tests` are the files of the short suite. `run` enters what the tests need, and yields the
    part's version, the Python to run them with, and additional variables of their environment.
    """

    name: str
    tests: Sequence[str]
    run: Callable[[Path], AbstractContextManager[tuple[str, str, Mapping[str, str]]]]


class NotHere(Exception):
    """The part is not on this machine."""


def main() -> None:
    """Run the parts, write the page, and exit with 1 if a run failed."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", default="", metavar="WORD")
    only = options.parse_args().only.lower()
    rows = stored(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    failed = False
    for part in PARTS:
        if only in part.name.lower():
            print(f"{part.name} ...", flush=True)
            rows[part.name], passed = _row(part)
            failed |= not passed
            print(rows[part.name], flush=True)
            lines = [rows.get(each.name, f"| {each.name} | | | not run yet |") for each in PARTS]
            PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(failed)


def stored(page: str) -> dict[str, str]:
    """Return the rows of the page by the name of their part."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): line for line in lines[1:]}


def _row(part: Part) -> tuple[str, bool]:
    """Run the short suite on this part; return its row, and whether nothing failed."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        Path(folder).chmod(0o711)  # a server's own account passes
        try:
            with part.run(Path(folder)) as (found, python, environment):
                result, passed = _suite(part, python, environment)
        except NotHere:
            return f"| {part.name} | | {today} | not tried |", True
    return f"| {part.name} | {found} | {today} | {result} |", passed


def _suite(part: Part, python: str, environment: Mapping[str, str]) -> tuple[str, bool]:
    # The test of the page fails while a row on it has failed: that would fail each later row.
    left_out = f"--deselect={PAGE_TEST}"
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", left_out, *part.tests]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,  # handed on
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"failed: not over after {RUN_SECONDS} s", False
    if done.returncode != 0:
        print(done.stdout[-5000:], done.stderr[-1000:], sep="\n", flush=True)
    summary = SUMMARY.findall(done.stdout)
    return (summary[-1] if summary else "failed: no summary"), done.returncode == 0


@contextmanager
def _as_installed(_: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    wheels = f"PostgreSQL {_printed(postgres.find_programs() / 'postgres')}"
    wheels += f", Valkey {_printed(valkey.find_program())}"
    yield f"Python {platform.python_version()}, {wheels}", sys.executable, {}


def _python(minor: str) -> Part:
    @contextmanager
    def run(folder: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        python = shutil.which(f"python{minor}")
        if python is None or not (found := _printed(Path(python))).startswith(f"{minor}."):
            raise NotHere
        made = folder / "venv"
        subprocess.run([python, "-m", "venv", "--without-pip", made], check=True)
        program = str(made / "bin" / "python")
        subprocess.run(
            [program, "tools/environment.py", "requirements-dev.lock"], cwd=ROOT, check=True
        )
        yield found, program, {}

    return Part(f"Python {minor}", PYTHON_TESTS, run)


def _postgres(major: str) -> Part:
    @contextmanager
    def run(folder: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        programs = Path(f"/usr/lib/postgresql/{major}/bin")
        if not (programs / "postgres").exists():
            raise NotHere
        account = account_for(programs / "postgres", folder / "data")
        owned = folder / "server"
        owned.mkdir()
        if account is not None:
            shutil.chown(owned, account.uid, account.gid)
        data, port = owned / "data", _free_port()

        def command(*argv: object) -> list[str]:
            words = [str(word) for word in argv]
            return account.command(words) if account is not None else words

        initdb = (programs / "initdb", "-D", data, "--username=postgres", "--auth=trust")
        subprocess.run(
            command(*initdb, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
            check=True,
            capture_output=True,
        )
        settings = postgres.SETTINGS | {"port": str(port), "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        address = f"postgresql://{{}}@{LOOPBACK}:{port}/{{}}"
        with _served(command(programs / "postgres", "-D", data, *options), port):
            with psycopg.connect(address.format("postgres", "postgres"), autocommit=True) as admin:
                for line in (
                    postgres.SET_UP.format(password=secrets.token_hex(8)).strip().splitlines()
                ):
                    admin.execute(line)
            ours = address.format(postgres.ROLE, postgres.ROLE)
            yield _printed(programs / "postgres"), sys.executable, {"TEST_DATABASE_URL": ours}

    return Part(f"PostgreSQL {major}", SERVER_TESTS, run)


def _redis(name: str, program: str) -> Part:
    @contextmanager
    def run(folder: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        found = shutil.which(program)
        major = name.rsplit(" ", 1)[-1]
        if found is None or not (version := _printed(Path(found))).startswith(f"{major}."):
            raise NotHere
        port, password = _free_port(), secrets.token_urlsafe(8)
        options = {"bind": LOOPBACK, "port": port, "requirepass": password, "dir": folder}
        argv = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        argv += ["--save", "", "--maxmemory-policy", "noeviction"]
        with _served([found, *argv], port):
            url = f"redis://:{password}@{LOOPBACK}:{port}/0"
            yield version, sys.executable, {"TEST_REDIS_URL": url}

    return Part(name, SERVER_TESTS, run)


@contextmanager
def _rabbitmq(_: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    if not Path("/usr/lib/rabbitmq").exists():
        raise NotHere
    shown = subprocess.run(
        ["/usr/bin/dpkg-query", "--show", "--showformat=${Version}", "rabbitmq-server"],
        check=True,
        capture_output=True,
        text=True,
    )
    yield shown.stdout, sys.executable, {}


PARTS = (
    Part("as installed from the lock files", SERVER_TESTS, _as_installed),
    *(_python(minor) for minor in ("3.11", "3.12", "3.13", "3.14")),
    *(_postgres(major) for major in ("15", "16", "17")),
    _redis("Redis 7", "redis-server"),
    _redis("Valkey 8", "valkey-server"),
    Part("RabbitMQ of Debian", RABBITMQ_TESTS, _rabbitmq),
)


@contextmanager
def _served(argv: Sequence[str], port: int) -> Iterator[None]:
    """Run a server of our own while the body runs, from the moment that it accepts connections."""
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        try:
            ends = time.monotonic() + STARTS_WITHIN
            while not _accepts(port):
                if running.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    raise RuntimeError(f"{argv[0]}: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            running.send_signal(signal.SIGINT)
            try:
                running.wait(STARTS_WITHIN)
            except subprocess.TimeoutExpired:
                running.kill()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _printed(program: Path) -> str:
    """Return the version that a program prints. Raises `NotHere` if it cannot be run."""
    done = subprocess.run(
        [program, "--version"], check=False, capture_output=True, text=True, timeout=30
    )
    if done.returncode:  # a shim of a version manager, without its program
        raise NotHere
    said = done.stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found[0] if found else said.strip()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
