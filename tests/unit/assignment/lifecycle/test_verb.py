"""Each verb is declared once; task, route, command and client methods are made from that."""

from __future__ import annotations

import ast
import asyncio
import inspect
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import pytest
import typer
from pydantic import Field, ValidationError
from typer.testing import CliRunner

from assignment_workers.assignment.lifecycle.moves import (
    VERBS,
    AgentVerbs,
    Defer,
    Owner,
    complete,
)
from assignment_workers.assignment.lifecycle.verb import TIMEOUT, Limits, Verb, VerbCall, verb
from assignment_workers.cli import agent as cli
from assignment_workers.client import commands
from assignment_workers.client.core import AgentMethods
from assignment_workers.gateway.bodies import OwnerBody, body_of
from assignment_workers.settings import Settings
from assignment_workers.tasks import moves
from tests.support.root import ROOT

PACKAGE = ROOT / "src" / "assignment_workers"
ID = UUID("01932c07-1f00-7000-8000-000000000000")
SETTINGS = Settings.model_validate({})
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@verb("The shelf.")
def park(
    limits: Limits,
    assignment_id: UUID | str,
    agent_id: int,
    shelf: Annotated[int, Field(ge=1, le=9, strict=True, description="Number of the shelf.")],
    *,
    version: int | None = None,
    until: datetime | None = None,
    timeout: timedelta = TIMEOUT,
) -> Defer:
    """Park the user on a shelf.

    More is said here for programmers.
    """
    owner = Owner(UUID(str(assignment_id)), agent_id, version)
    return Defer(owner, limits.defer_maximum, until, None, f"shelf {shelf}")


class Recording(AgentVerbs):
    """A client that only records what is sent."""

    park = park

    def __init__(self) -> None:
        self.sent: list[VerbCall] = []

    def perform(self, call: VerbCall) -> str:
        self.sent.append(call)
        return "done"


class Awaited(AgentVerbs):
    park = park

    async def perform(self, call: VerbCall) -> str:
        return call.verb


def test_a_new_verb_is_a_method_of_a_client_that_waits_and_of_one_that_does_not() -> None:
    client = Recording()
    said: str = client.park(ID, 26, shelf=3, until=NOON, timeout=timedelta(seconds=1))
    assert said == "done"
    arguments = {
        "assignment_id": str(ID),
        "agent_id": 26,
        "shelf": 3,
        "version": None,
        "until": NOON.isoformat(),
    }
    assert client.sent == [VerbCall("park", arguments, timedelta(seconds=1))]
    assert asyncio.run(Awaited().park(ID, 26, 3)) == "park"


def test_a_new_verb_is_a_task_whose_arguments_are_validated() -> None:
    operation = moves.operation_of(park)
    parameters = list(inspect.signature(operation).parameters)
    assert parameters == ["run", "assignment_id", "agent_id", "shelf", "version", "until"]
    assert operation.__doc__ == "Park the user on a shelf."
    read = park.model.model_validate({"assignment_id": str(ID), "agent_id": 26, "shelf": 3})
    assert park.move(SETTINGS, dict(read)) == Defer(
        Owner(ID, 26), SETTINGS.defer_maximum, None, None, "shelf 3"
    )
    for wrong in ({"shelf": 10}, {"shelf": "3"}, {"agent_id": None}, {"other": 1}):
        with pytest.raises(ValidationError):
            park.model.model_validate(
                {"assignment_id": str(ID), "agent_id": 26, "shelf": 3} | wrong
            )


def test_a_new_verb_has_a_body_with_its_own_arguments() -> None:
    body = body_of(park)
    assert (body.__name__, body.__doc__) == ("ParkBody", "The shelf.")
    assert list(body.model_fields) == ["agent_id", "version", "shelf", "until"]
    assert body.model_fields["shelf"].description == "Number of the shelf."
    assert body_of(VERBS["skip"]) is OwnerBody


def test_a_new_verb_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Recording()
    monkeypatch.setattr(cli, "client", lambda: Entered(client))
    monkeypatch.setattr(cli, "tell", lambda answer, _: print(answer))
    app = typer.Typer()
    app.command()(cli.command_of(park))
    run = CliRunner().invoke
    done = run(app, [str(ID), "--agent=26", "--shelf=3", "--until=2026-11-23T12:00:00Z"])
    assert (done.exit_code, done.stdout) == (0, "done\n"), done.output
    assert client.sent[0].arguments["until"] == NOON.isoformat()
    shown = run(app, ["--help"]).stdout
    assert "Park the user on a shelf." in shown
    assert "Number of the shelf." in shown
    assert "for programmers" not in shown
    assert run(app, [str(ID), "--agent=26"]).exit_code == 2, "--shelf is required"


class Entered:
    def __init__(self, client: Recording) -> None:
        self.client = client

    def __enter__(self) -> Recording:
        return self.client

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_is_a_message_that_its_task_reads(name: str) -> None:
    made = VERBS[name]
    own = {each.name: _some(each.kind) for each in made.own}
    called = made.call(ID, 26, version=2, **own)
    command = commands.act(called)
    assert (command.task, command.many) == (f"assignment.{name}", "assignment.finish_many")
    assert command.arguments["move"] == name
    read = made.model.model_validate(called.arguments)
    assert {each: getattr(read, each) for each in made.names} == {
        "assignment_id": ID,
        "agent_id": 26,
        "version": 2,
        **own,
    }
    assert made.move(SETTINGS, dict(read)).owner == Owner(ID, 26, 2)
    assert set(called.own) == set(called.arguments) - {"assignment_id"}


def _some(kind: type[Any]) -> object:
    return {int: 60, str: "words", datetime: NOON}[kind]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((), {}),
        ((ID,), {}),
        ((ID, 26), {}),
        ((ID, 26, "no_answer", 2), {}),
        ((ID, 26, "no_answer"), {"outcome": "busy"}),
        ((ID, 26, "no_answer"), {"colour": "red"}),
        ((ID, 26), {"colour": "red"}),
    ],
)
def test_a_call_with_other_arguments_is_a_type_error(
    args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        complete.call(*args, **options)


def test_the_declarations_are_the_only_list_of_verbs() -> None:
    """A module that names most verbs is a second list, which a new verb would have to join."""
    lists = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        named = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        } | {
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        if len(found := named & VERBS.keys()) > len(VERBS) / 2:
            lists[str(path.relative_to(PACKAGE))] = found
    # `Hold` has the moves that end an assignment in its block, with its owner filled in.
    assert set(lists) == {"assignment/lifecycle/moves.py", "client/assignment_client.py"}


def test_every_client_has_every_verb() -> None:
    methods = {each.name for each in vars(AgentVerbs).values() if isinstance(each, Verb)}
    assert methods == VERBS.keys()
    assert issubclass(AgentMethods, AgentVerbs)
    for name in ("complete", "close_user"):
        method = getattr(AgentMethods, name)
        assert inspect.getdoc(method)
        assert list(inspect.signature(method).parameters)[:3] == [
            "self",
            "assignment_id",
            "agent_id",
        ]
