"""The reference is made of the code, so it lacks nothing; documents name what is there."""

from __future__ import annotations

import ast
import inspect
import json
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from typer.main import get_group

from assignment_workers import client, versions
from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.cli.main import COMMANDS, app
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import PREFIX, Settings
from tests.support.pictures import IMAGES, SHOWS, TAKEN, older_than
from tests.support.root import ROOT
from tools import reference

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").glob("*/README.md"),
]
SENTENCE = re.compile(r"[A-Z`].*[.]", re.DOTALL)
VARIABLES = {str(field.alias) for field in Settings.model_fields.values()}
OF_SERVERS = {"DATABASE_URL", "REDIS_URL", "BROKER_URL", "CRM_DATABASE_URL"}
TYPED = re.compile(r"(?:^|[\s`/])(?:assignment-workers|aw) +([a-z][^`#|;&)\n]*)")
"""A command as a document shows it, in a block or in a line."""


@cache
def page(name: str) -> str:
    return reference.PAGES[name]()


@cache
def group() -> Any:
    return get_group(app)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Settings", None),
        ("EventKind", None),
        ("Code", reference.ANSWERS),
    ],
)
def test_each_has_a_sentence(kind: str, path: Path | None) -> None:
    said = reference.documented(kind, path)
    said.pop("model_config", None)
    assert len(said) > 3
    assert {name for name, each in said.items() if not SENTENCE.fullmatch(each)} == set()


def test_each_outcome_has_a_sentence_of_its_own() -> None:
    meanings = [each.meaning for each in loaded().outcomes_by_name.values()]
    assert [each for each in meanings if not SENTENCE.fullmatch(each)] == []
    assert len(set(meanings)) == len(loaded().outcomes_by_name)
    assert [
        each.means for each in loaded().actions.values() if not SENTENCE.fullmatch(each.means)
    ] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("settings", VARIABLES),
        ("outcomes", {*loaded().outcomes_by_name, *Code, *loaded().actions}),
        ("events", set(EventKind)),
        ("cli", COMMANDS.keys()),
    ],
)
def test_a_page_has_them_all(name: str, words: set[str]) -> None:
    assert {str(each) for each in words if f"`{each}`" not in page(name)} == set()


def test_the_least_and_most_of_a_setting_are_those_that_are_enforced() -> None:
    assert "Default: `300`. Accepted: seconds, 0.001 or more." in page("settings")
    assert "Accepted: a whole number, 1 or more, at most 65,535." in page("settings")
    assert "Accepted: an address, `redis://`, `rediss://`, `sentinel://`." in page("settings")


def test_every_metric_that_an_alert_or_the_board_reads_is_listed() -> None:
    used = (ROOT / "ops" / "alerts.yml").read_text() + (ROOT / "ops" / "grafana.json").read_text()
    names = set(re.findall(r"\bassignment_workers_\w+", used))
    listed = set(re.findall(r"^\| `(\w+)` \|", page("metrics"), re.MULTILINE))
    assert len(names) > 20
    series = {re.sub(r"_(bucket|sum|count)$", "", each) for each in names}
    assert series - listed == set()


def test_every_path_and_every_argument_of_a_command_is_described() -> None:
    document = json.loads((ROOT / "clients" / "js" / "openapi.json").read_text())
    paths = {
        f"### `{method.upper()} {path}`"
        for path, item in document["paths"].items()
        for method in item
    }
    assert paths <= set(page("http").splitlines())
    lacking = [
        line
        for line in page("cli").splitlines()
        if line.startswith("| `") and line.rstrip("| ").count("|") < 4
    ]
    assert lacking == []


def test_every_task_has_a_heading_and_a_text() -> None:
    headings = re.findall(r"^### `([\w.]+)`\n\nArguments: .*\n\n\w", page("tasks"), re.MULTILINE)
    assert len(headings) == page("tasks").count("\n### ")
    assert {"assignment.request", "queue.regenerate", "agent.heartbeats"} <= set(headings)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda each: str(each.relative_to(ROOT)))
def test_the_settings_that_a_document_names_are_settings(path: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", path.read_text()))
    assert named - VARIABLES == set()


def test_the_commands_that_documents_show_are_commands_with_these_options() -> None:
    shown = {
        (str(path.relative_to(ROOT)), " ".join(words.split()))
        for path in DOCUMENTS
        for words in TYPED.findall(path.read_text())
    }
    wrong = {each for each in shown if _is_wrong(each[1].split())}
    assert len(shown) > 80
    assert wrong == set()


def _is_wrong(words: list[str]) -> bool:
    """Whether the words after `assignment-workers` name a command or an option that there is not."""
    name, *rest = words
    if name not in COMMANDS:
        return True
    command = group().commands[name]
    inner = getattr(command, "commands", None)
    if inner is not None:
        if not rest or not re.fullmatch(r"[a-z-]+", rest[0]):
            return bool(rest) and rest[0].startswith("-")
        if rest[0] not in inner:
            return True
        command, rest = inner[rest[0]], rest[1:]
    options = {part for each in command.params for part in (*each.opts, *each.secondary_opts)}
    given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    return bool(given - options - {"--help"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda each: str(each.relative_to(ROOT)))
def test_the_python_that_a_document_shows_can_be_compiled_and_imported(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = import_module(str(node.module))
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []


@pytest.mark.parametrize("name", client.__all__)
def test_every_public_method_of_the_python_clients_has_a_docstring(name: str) -> None:
    public = getattr(client, name)
    methods = {
        method: function
        for method, function in inspect.getmembers(public, inspect.isfunction)
        if not method.startswith("_") and function.__module__.startswith("assignment_workers")
    }
    assert inspect.getdoc(public)
    assert [method for method, each in methods.items() if not inspect.getdoc(each)] == []


def test_an_alias_that_is_promised_stands_and_one_that_is_over_is_not_listed() -> None:
    text = (ROOT / "docs" / "stability.md").read_text()
    rows = re.findall(r"^\| (tasks? .*) \| (.*) \| (\d+\.\d+\.\d+) \|$", text, re.MULTILINE)
    promised = {name for old, new, _ in rows for name in re.findall(r"`([\w.]+)`", old + new)}
    assert promised
    assert {name for name in promised if f"### `{name}`" not in page("tasks")} == set()
    over = re.findall(r"\| (\d+\.\d+\.\d+) \|$", text, re.MULTILINE)
    assert [each for each in over if Version(each) <= Version(versions.own())] == []


def test_every_picture_is_shown_and_none_is_heavy() -> None:
    shown = "".join(path.read_text() for path in DOCUMENTS)
    pictures = sorted(each for each in IMAGES.iterdir() if each != TAKEN)
    assert [each.name for each in pictures] == sorted(SHOWS)
    assert [each.name for each in pictures if f"images/{each.name})" not in shown] == []
    assert [each.name for each in pictures if each.stat().st_size > 300_000] == []


@pytest.mark.parametrize("picture", SHOWS)
def test_no_picture_is_older_than_what_it_shows(picture: str) -> None:
    changed = older_than(picture)
    assert not changed, f"docs/images/{picture} is older than {changed}: make screenshots"


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_site_is_built_with_every_test() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^test: .*\bdocs\b", makefile, re.MULTILINE)
    assert re.search(r"^strict: true$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
