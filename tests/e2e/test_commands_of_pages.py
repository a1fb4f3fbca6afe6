"""Every command that a page shows is carried out, on a stack of its own, as it is typed there.

Those of pages that have a test of their own, and those that a page shows for servers that are not
here, are named with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from assignment_workers.client import Assigned
from tests.support.commands import type_in
from tests.support.processes import Stack, running
from tests.support.world import UNSIGNED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = r"(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:assignment-workers|aw) (?![=|])"
TYPED = re.compile(rf"^ *({PROGRAM}[^#\n]*)", re.MULTILINE)
INLINE = re.compile(rf"`({PROGRAM}[^`]*)`")
ELSEWHERE = {
    "up": "tests/devstack/test_up.py, and every first run",
    "env": "tests/devstack/test_up.py: it tells of the stack that `up` started",
    "process": "each process is started by tests of its own, at the least by those of `up`",
    "demo": "tests/e2e/test_demo.py",
    "soak": "tests/e2e/test_demo.py; an hour of it is in docs/benchmarks",
    "replay-incident": "tests/races/test_incident.py",
    "schema": "tests/adoption/test_adopting.py; a schema that is whole is migrated no further",
    "audit lost": "tests/integration/assignment/test_audit.py: it needs the primary of before a failover",
    "--install-completion": "writes into the home of who types it",
}
"""Commands by their first words, and where else the suite carries them out."""
NAMED = {"closed lift", "settings set"}
"""Commands that a page names without what they are to be given."""


def commands() -> Iterator[tuple[str, str]]:
    """Each command with its page, in the order of the page."""
    for page in PAGES:
        told = page.read_text(encoding="utf-8")
        seen = set()
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", told, re.MULTILINE | re.DOTALL):
            for typed in TYPED.findall(block):
                seen.add(typed.strip())
                yield page.name, typed.strip()
        for named in INLINE.findall(told):
            if named not in seen:
                seen.add(named)
                yield page.name, named


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        made.start("sequencer")
        made.built(users=1500)
        yield made


def test_every_command_that_a_page_shows_does_what_it_is_shown_for(
    stack: Stack, tmp_path: Path
) -> None:
    held = stack.client().request_next(27)
    assert isinstance(held, Assigned)
    called = {"ASSIGNMENT": str(held.assignment.id), "5172": "2064", "$agent": "30"}
    called |= {"USER": "2064", "QUEUE": UNSIGNED, "Q": UNSIGNED, "FILE": "numbers"}
    called |= {"…": "seen"}
    environment = {name: each for name, each in os.environ.items() if "ASSIGNMENT" not in name}
    environment |= {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}
    failed, carried_out = [], set()
    for page, typed in commands():
        words = shlex.split(typed)
        given = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            given[name] = value
        rest = [called.get(word, word) for word in words[1:]]
        told = " ".join(rest)
        if told in NAMED or any(f"{told} ".startswith(f"{first} ") for first in ELSEWHERE):
            continue
        if told in carried_out and page != "dialer.md":
            continue
        if told.startswith("token revoke"):
            rest[-1] = stack.value("SELECT min(id) FROM assignment.api_tokens")
        folder = tmp_path / page  # a dialer's file that a page makes is in force from there
        folder.mkdir(exist_ok=True)
        (folder / "numbers").write_text("+442079460123\n")
        done = type_in(rest, environment | given, folder)
        carried_out.add(told)
        if done.returncode != 0:
            failed.append(f"{page}: {typed}: {done.returncode}: {done.stdout}{done.stderr}")
    assert not failed, "\n".join(failed)
    assert len(carried_out) > 30
