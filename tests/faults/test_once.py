"""Every command of the assignment queue is once; the list of tasks is the application's own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from assignment_workers.assignment.claims.idempotency import next_position
from assignment_workers.assignment.generations.purge import prune_history
from assignment_workers.assignment.lanes import ASSIGNMENT
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.pipeline import Statement, commit
from assignment_workers.sequencer.refusals import Refusals
from assignment_workers.sequencer.suspects import Suspects
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.tasks.task_handler import HandledTask
from tests.faults.once_cases import AGENTS, CASES, PAUSED, USERS, Case, Stage, at
from tests.support.celery_programs import dialer_program
from tests.support.world import HOUR, OUTSTANDING, UNSIGNED, User, opened


@pytest.fixture
def stage(database_url: str, redis_url: str) -> Iterator[Stage]:
    with opened(database_url) as world, dialer_program(redis_url) as app:
        world.add_agents(*AGENTS)
        world.add_users([User(user, phone=f"0161496{user:04}") for user in USERS])
        world.regenerate()
        app.engine = world.engine
        app.refusals = Refusals(app.engine, app.backend, largest=1_000_000)
        app.suspects = Suspects(app.engine, app.results)
        app.sequencer = cast(
            "Any",
            SimpleNamespace(
                runner=TransactionRunner(world.engine, dialer=loaded(), term=world.term),
                term=world.term,
                probe_came=lambda: None,
            ),
        )
        yield Stage(world, app)


def test_every_task_of_the_assignment_queue_has_its_case(stage: Stage) -> None:
    routed = {
        name
        for name, task in stage.app.tasks.items()
        if isinstance(task, HandledTask)
        and stage.app.amqp.router.route({}, name)["queue"].name == ASSIGNMENT
    }
    assert routed == CASES.keys()


for alias, name in {"user.bar": "user.suppress", "user.lift_bar": "user.lift_suppression"}.items():
    CASES[alias] = CASES[name]


@pytest.mark.parametrize("task", CASES)
def test_a_command_is_once(stage: Stage, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """With the reply to its COMMIT lost, delivered twice, and again after a later command.

    The first delivery has the effect and says so. Each later one has none, and says the same.
    """
    case = CASES[task]
    said = case.prepare(stage)
    with monkeypatch.context() as patched:
        replies = _lose_the_first_reply(patched)
        first = stage.deliver(task, "the message", **said)
    assert replies == ["lost", "heard"], "the turn was taken again"
    assert {path: at(first, path) for path in case.answer} == case.answer
    assert stage.world.value(case.effect) is True
    before = stage.state()
    assert _settled(stage.deliver(task, "the message", **said), case) == _settled(first, case)
    assert stage.state() == before
    case.later(stage, said)
    before = stage.state()
    assert _settled(stage.deliver(task, "the message", **said), case) == _settled(first, case)
    assert stage.state() == before


def _lose_the_first_reply(patched: pytest.MonkeyPatch) -> list[str]:
    """The first transaction of the line commits, and its client is told that the connection broke."""
    replies: list[str] = []

    def lose(connection: Connection, *asks: Statement) -> None:
        commit(connection, *asks)
        replies.append("heard" if replies else "lost")
        if len(replies) == 1:
            gone = psycopg.OperationalError("server closed the connection unexpectedly")
            raise OperationalError("COMMIT", {}, gone)

    patched.setattr("assignment_workers.sequencer.transaction_runner.commit", lose)
    return replies


def _settled(answer: Any, case: Case) -> Any:
    if isinstance(answer, list):
        return [_settled(each, case) for each in answer]
    return {name: each for name, each in answer.items() if name not in case.says_again}


PAUSE, RESUME = "queue.pause", "queue.resume"


def _positions(stage: Stage, count: int) -> list[int]:
    with stage.world.engine.begin() as connection:
        return [next_position(connection) for _ in range(count)]


def test_a_command_older_than_the_state_it_would_overwrite_is_superseded(stage: Stage) -> None:
    older, newer = _positions(stage, 2)
    assert stage.deliver(RESUME, "newer", position=newer, queue=UNSIGNED)["outcome"] == "done"
    before = stage.state()
    refused = stage.deliver(PAUSE, "older", position=older, queue=UNSIGNED)
    assert refused["code"] == "superseded"
    assert refused["reason"] == (
        "a later command has set the pause of unsigned_users since; this one changed nothing"
    )
    assert stage.state() == before
    (race,) = stage.world.events("ASSIGNMENT_RACE_CONDITION")
    assert (race["details"]["kind"], race["details"]["done"]) == ("superseded", "refused")
    assert stage.deliver(PAUSE, "older", position=older, queue=UNSIGNED) == refused, "for good"


def test_a_command_without_a_position_is_new_and_supersedes_those_seen_before(stage: Stage) -> None:
    (older,) = _positions(stage, 1)
    assert stage.deliver(RESUME, "a stranger's", queue=UNSIGNED)["outcome"] == "done"
    assert stage.deliver(PAUSE, "seen before", position=older, queue=UNSIGNED)["outcome"] == (
        "refused"
    )
    assert stage.deliver(PAUSE, "another stranger's", queue=UNSIGNED)["outcome"] == "done"


def test_commands_of_other_subjects_and_refused_ones_supersede_nothing(stage: Stage) -> None:
    older, *newer = _positions(stage, 4)
    stage.deliver(RESUME, "another queue's", position=newer[0], queue=OUTSTANDING)
    lift = {"kind": "do_not_contact", "by": "operator", "why": "why"}
    unmet = stage.deliver("user.lift_suppression", "1", position=newer[1], user_id=7, **lift)
    assert unmet["code"] == "not_suppressed"
    said = {"reason": "asked", "by": "operator"}
    stage.deliver("user.suppress", "2", position=newer[2], phone="0161 496 0008", **said)
    assert stage.deliver(PAUSE, "3", position=older, queue=UNSIGNED)["outcome"] == "done"
    again = stage.deliver("user.suppress", "4", position=older, user_id=7, **said)
    assert again["outcome"] == "done"
    number = stage.deliver("user.suppress", "5", position=older, phone="+44 161 4960008", **said)
    assert number["code"] == "superseded", "one number, however it is written"


def test_an_id_that_another_task_used_is_refused(stage: Stage) -> None:
    stage.deliver(PAUSE, "one", queue=UNSIGNED)
    refused = stage.deliver(RESUME, "one", queue=UNSIGNED)
    assert refused["code"] == "request_id_taken"
    assert "queue.pause" in refused["reason"]


@pytest.mark.parametrize("name", ["x" * 300, "with\0null", "half a character \ud800"])
def test_an_id_that_a_column_cannot_have_is_known_again(stage: Stage, name: str) -> None:
    stage.deliver(PAUSE, name, queue=UNSIGNED)
    stage.deliver(RESUME, "later", queue=UNSIGNED)
    assert stage.deliver(PAUSE, name, queue=UNSIGNED) == {
        "outcome": "done",
        "replayed": False,
        "counts": {},
    }
    assert stage.world.value(PAUSED.format("")) is True


def test_answers_of_commands_are_kept_as_long_as_their_message_may_come_again(stage: Stage) -> None:
    stage.deliver(PAUSE, "one", queue=UNSIGNED)
    stage.world.execute(
        "UPDATE assignment.sequencer SET since = clock_timestamp() - interval '1 hour',"
        " seen_at = clock_timestamp()"
    )

    def pruned() -> int:
        with stage.world.engine.begin() as connection:
            return prune_history(connection, settings=stage.world.settings)["commands"]

    assert pruned() == 0
    retention = stage.world.settings.request_retention
    aged = "UPDATE assignment.commands SET answered_at = answered_at - :age"
    stage.world.execute(aged, age=retention + HOUR)
    assert pruned() == 1
