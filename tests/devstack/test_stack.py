"""Where a program finds the servers: what is set, then the stack that runs, else a clear line."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assignment_workers import links
from assignment_workers.devstack import secret
from assignment_workers.runtime import stack as stacks
from assignment_workers.runtime.errors import NoStack
from assignment_workers.runtime.home import hold
from assignment_workers.runtime.stack import Stack, resolve, running_stack, shell_assignments
from assignment_workers.settings import Settings

STACK = Stack(
    database_url="postgresql://of:stack@127.0.0.1:1/x",
    redis_url="redis://:stack@127.0.0.1:2/0",
    broker_url="redis://:stack@127.0.0.1:2/0",
    flower_url="http://127.0.0.1:5555",
    flower_auth="flower:it's a password",
    pid=os.getpid(),
    started_at=datetime.now(UTC),
)
DATABASE = "postgresql://set@127.0.0.1/y"
REDIS = "redis://127.0.0.1:3/0"
BROKER = "redis://127.0.0.1:6390/1"


def settings(home: Path, **variables: str) -> Settings:
    return Settings.from_environment({"ASSIGNMENT_WORKERS_HOME": str(home), **variables})


@contextlib.contextmanager
def running(home: Path) -> Iterator[None]:
    with hold(home):
        stacks.write(home, STACK)
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_addresses_that_are_not_set_are_those_of_the_running_stack(home: Path) -> None:
    with running(home):
        found = resolve(settings(home))
    assert (found.database_url, found.redis_url, found.broker_url) == (
        STACK.database_url,
        STACK.redis_url,
        STACK.broker_url,
    )


def test_an_address_that_is_set_wins_over_the_running_stack(home: Path) -> None:
    with running(home):
        found = resolve(settings(home, DATABASE_URL=DATABASE))
        assert (found.database_url, found.redis_url) == (DATABASE, STACK.redis_url)
        found = resolve(settings(home, REDIS_URL=REDIS))
        assert (found.database_url, found.broker_url) == (STACK.database_url, REDIS)
        found = resolve(settings(home, BROKER_URL=BROKER))
        assert (found.redis_url, found.broker_url) == (STACK.redis_url, BROKER)


def test_with_both_set_no_stack_is_needed(home: Path) -> None:
    found = resolve(settings(home, DATABASE_URL=DATABASE, REDIS_URL=REDIS))
    assert (found.database_url, found.redis_url, found.broker_url) == (DATABASE, REDIS, REDIS)
    assert not home.exists()


@pytest.mark.parametrize("given", [{}, {"DATABASE_URL": DATABASE}, {"REDIS_URL": REDIS}])
def test_without_a_stack_the_line_says_how_to_get_one(home: Path, given: dict[str, str]) -> None:
    with pytest.raises(NoStack) as refused:
        resolve(settings(home, **given))
    told = str(refused.value)
    assert str(home) in told
    assert "assignment-workers up" in told
    assert "DATABASE_URL" in told
    assert "\n" not in told


def test_the_file_of_a_stack_that_was_killed_says_nothing(home: Path) -> None:
    with running(home):
        assert running_stack(settings(home)) == STACK
    assert (home / stacks.FILE).exists()
    assert running_stack(settings(home)) is None
    with hold(home):
        stacks.write(home, STACK.model_copy(update={"pid": 1}))
        assert running_stack(settings(home)) is None


def test_assignments_are_exported_and_quoted_for_a_shell() -> None:
    odd = STACK.model_copy(update={"database_url": "postgresql://a:it's&$x@h/d"})
    lines = shell_assignments(odd).splitlines()
    assert [line.split("=")[0] for line in lines] == [
        "export DATABASE_URL",
        "export REDIS_URL",
        "export BROKER_URL",
        "export FLOWER_URL",
        "export FLOWER_AUTH",
    ]
    assert shlex.split(lines[0])[1] == f"DATABASE_URL={odd.database_url}"


def test_each_address_of_the_dashboard_is_a_new_one_and_good_for_the_dashboard_alone() -> None:
    gateway = {"gateway_url": "http://127.0.0.1:8000", "gateway_token": "aw_stack_secret"}
    stack = STACK.model_copy(update=gateway)
    now = datetime.now(UTC)
    first, second = (stack.variables(now=now)["DASHBOARD_URL"] for _ in range(2))
    assert first != second
    address, _, code = first.partition("?code=")
    assert address == "http://127.0.0.1:8000/sign-in"
    assert links.read("aw_stack_secret", links.DASHBOARD, code, now=now)
    assert links.read("aw_stack_secret", links.FLOWER, code, now=now) is None


def test_a_home_keeps_its_secrets_for_its_owner_alone(home: Path) -> None:
    home.mkdir()
    made = secret.remembered(home)
    file = home / secret.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret.remembered(home) == made
    file.unlink()
    assert secret.remembered(home) != made
    given = {"ASSIGNMENT_WORKERS_STACK_TOKEN": made.gateway_token}
    assert Settings.from_environment(given).stack_token == made.gateway_token
