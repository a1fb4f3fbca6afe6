"""The servers of the whole test run, and for each test a database and a Redis of its own."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import settings

from assignment_workers.devstack import ports, postgres, server, valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.ports import LOOPBACK
from assignment_workers.dialer.loading import VARIABLE, load
from assignment_workers.runtime.errors import HomeUnusable
from assignment_workers.runtime.home import Home, hold, holder
from assignment_workers.settings import Settings
from tests.support.order import ordered
from tests.support.servers import EMBEDDED, MARIADB, PROCESSES, Maria

load(
    Settings.from_environment(
        {name: os.environ[name] for name in (VARIABLE,) if name in os.environ}
    )
)  # before the test modules, some of which read its outcomes when imported

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")  # a busy machine is no finding

ports.CHOICE = EMBEDDED

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background; what the tests start would inherit it, and never end by Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite(
    "tests.adoption.moving",
    "tests.e2e.dashboard.looking",
    "tests.faults.walks",
    "tests.gateway.browsing",
    "tests.integration.assignment.callbacks.promises",
    "tests.integration.assignment.crm.seeing",
    "tests.integration.assignment.history.forgeries",
    "tests.integration.gateway.dashboard.counted",
    "tests.model.agent_steps",
    "tests.model.machine",
    "tests.support.commands",
    "tests.support.processes",
    "tests.support.world",
)

HOMES = "assignment-workers-tests-"
ROOM = 4 << 30
"""Bytes in memory that the servers of a run may take: those of three processes take some 1.5 GB."""
BEGUN_SECONDS = 60.0
"""The age of a home from which its lock is held, if it is in use."""
REDIS_DATABASES = 16
DATABASES = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, give each its own folders."""
    if PROCESSES > 1:
        items[:] = ordered(items, PROCESSES)


def pytest_collection_finish() -> None:
    """No garbage collection looks at what was imported and collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """What a file's tests leave open is found at its end, and told there, not in another file."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def test_home() -> Iterator[Home]:
    """A home for the servers of this run, gone with it: in memory, where that has room.

    On ext4 a database is created in 0.4 s and not in 0.02 s while another one was dropped within
    five seconds: the inodes of files that were just deleted are looked at, one by one, and left.
    """
    memory = Path("/dev/shm")  # noqa: S108 - the folder in it is made by mkdtemp
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    for left in memory.glob(f"{HOMES}*/home") if has_room else ():
        with suppress(HomeUnusable, FileNotFoundError):  # another user's, or gone meanwhile
            is_begun = time.time() - left.stat().st_ctime > BEGUN_SECONDS
            if is_begun and holder(left) is None:
                shutil.rmtree(left.parent, ignore_errors=True)  # of a run that was killed
    with (
        tempfile.TemporaryDirectory(prefix=HOMES, dir=memory if has_room else None) as folder,
        hold(Path(folder) / "home") as held,
    ):
        yield held


@pytest.fixture(scope="session")
def guardian(test_home: Home) -> Iterator[Guardian]:
    """Ends the servers if this run is killed."""
    with Guardian(keeps=[test_home.descriptor]) as watching:
        yield watching


@pytest.fixture(scope="session")
def postgres_server(test_home: Home, guardian: Guardian) -> Iterator[str]:
    """A PostgreSQL for this run, without fsync: the address of its first, empty database.

    `TEST_DATABASE_URL` names another server that runs already, in which the role of the address may
    create databases and roles.
    """
    if other := os.environ.get("TEST_DATABASE_URL"):
        yield other
        return
    made = postgres.prepare(test_home.path / "postgres", fsync=False)
    access = test_home.path / "postgres/data/pg_hba.conf"
    # First, for the superuser and roles that a test makes; ours have their passwords.
    others = f'host all,replication "/^(?!assignment_)" {LOOPBACK}/32 trust\n'
    access.write_text(others + access.read_text(encoding="ascii"), encoding="ascii")
    child = server.start(made, Log(sys.stderr, colour=False), guardian)
    yield made.url
    child.stop()


@pytest.fixture(scope="session")
def valkey_server(test_home: Home, guardian: Guardian) -> Iterator[str]:
    """A Valkey for this run: the address of its database 0, which no test uses.

    `TEST_REDIS_URL` names another server that runs already, whose databases are emptied.
    """
    if other := os.environ.get("TEST_REDIS_URL"):
        yield other
        return
    made = valkey.prepare(test_home.path / "valkey", fsync=False)
    child = server.start(made, Log(sys.stderr, colour=False), guardian)
    yield made.url
    child.stop()


@pytest.fixture(scope="session")
def maria(test_home: Home, guardian: Guardian) -> Iterator[Maria]:
    """A MariaDB for the run."""
    if not MARIADB.exists():
        pytest.skip("MariaDB is not installed (Debian: apt install mariadb-server)")
    made = Maria(test_home.path / "mariadb", guardian)
    yield made
    made.kill()


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """The name of a database with our schema, migrated once, for `CREATE DATABASE ... TEMPLATE`."""
    from assignment_workers.schema.migrate import upgrade

    name = f"migrated_template_{os.getpid()}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    upgrade(_database(postgres_server, name))
    return name


@pytest.fixture
def empty_database_url(postgres_server: str) -> Iterator[str]:
    """A new database without anything in it, dropped after the test."""
    yield from _new_database(postgres_server, template="template0")


@pytest.fixture
def database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """A new database with our schema, dropped after the test, whoever is still connected."""
    yield from _new_database(postgres_server, template=migrated_template)


@pytest.fixture(scope="module")
def module_database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """As `database_url`, for all the tests of a module: each leaves it as it was."""
    yield from _new_database(postgres_server, template=migrated_template)


@pytest.fixture
def redis_url(valkey_server: str) -> str:
    """A Redis database, empty; tests take turns with 2 to 15.

    0 and 1 are those of the stacks that last for a whole run.
    """
    number = 2 + next(DATABASES) % (REDIS_DATABASES - 2)
    url = _database(valkey_server, str(number))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def _new_database(server_url: str, *, template: str) -> Iterator[str]:
    # Another run may have the same server.
    name = f"test_{os.getpid()}_{next(DATABASES)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        # Through the log, which is the default, a copy takes ten times the processor's time.
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield _database(server_url, name)
    with psycopg.connect(server_url, autocommit=True) as admin:
        for patience in range(100, -1, -1):
            try:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            except psycopg.errors.InsufficientPrivilege:
                # A superuser's session, which only ends by itself, has been closed and is ending.
                if not patience:
                    raise
                time.sleep(0.05)
            else:
                break


def _database(server_url: str, name: str) -> str:
    return f"{server_url.rpartition('/')[0]}/{name}"
