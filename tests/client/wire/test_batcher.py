"""Which calls go together, by the clock that the test holds."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from assignment_workers.assignment.lanes import Lanes
from assignment_workers.assignment.lifecycle.moves import release
from assignment_workers.client.commands import CommandCall, act, pause, regenerate, request
from assignment_workers.client.wire.batcher import TOGETHER, UNDER_WAY, Batch, Batcher, Call
from assignment_workers.client.wire.lane_router import REMEMBERED_AT_MOST, LaneRouter
from assignment_workers.client.wire.message import message
from assignment_workers.settings import Settings


def batcher(*, together: int = TOGETHER, under_way: int = UNDER_WAY) -> Batcher:
    names = itertools.count(1)
    return Batcher(lambda: f"m{next(names)}", together=together, under_way=under_way)


def call(number: int, *, ends: float = 100.0, many: str | None = "many") -> Call:
    command = CommandCall("one", {"request_id": f"r{number}"}, many=many)
    return Call(command, ends, Future())


def leave(left: Call) -> None:
    """The caller wants no answer any more."""
    assert isinstance(left.future, Future)
    left.future.cancel()


def ids(batch: Batch) -> list[str]:
    return batch.about


def answer(on: Batcher, batch: Batch) -> None:
    for each, value in on.answered(batch.id, [{}] * len(batch.calls)):
        if not each.future.done():
            each.future.set_result(value)


def test_a_lone_call_goes_at_once() -> None:
    on = batcher()
    on.add(call(1))
    assert [ids(batch) for batch in on.take(0.0)] == [["r1"]]


def test_calls_gather_while_as_many_messages_as_may_be_are_under_way() -> None:
    on = batcher(together=3, under_way=2)
    sent: list[Batch] = []
    for number in range(1, 11):
        on.add(call(number))
        sent += on.take(0.0)
    assert [ids(batch) for batch in sent] == [["r1"], ["r2"]]
    answer(on, sent[0])
    (third,) = on.take(0.0)
    assert ids(third) == ["r3", "r4", "r5"]
    answer(on, sent[1])
    answer(on, third)
    assert [ids(batch) for batch in on.take(0.0)] == [["r6", "r7", "r8"], ["r9", "r10"]]
    assert not list(on.take(0.0))


def test_calls_without_a_task_for_many_go_each_by_itself() -> None:
    on = batcher(under_way=1)
    for number in range(3):
        on.add(call(number, many=None))
    sent = list(on.take(0.0))
    assert [(batch.task, len(batch.calls)) for batch in sent] == [("one", 1)] * 3


def test_kinds_do_not_wait_for_each_other() -> None:
    on = batcher(under_way=1)
    on.add(call(1, many="requests"))
    on.add(call(2, many="finishes"))
    assert {batch.task for batch in on.take(0.0)} == {"requests", "finishes"}


def test_a_message_not_answered_in_time_is_sent_again_with_the_same_request_ids() -> None:
    on = batcher(under_way=1)
    for number in (1, 2):
        on.add(call(number))
    (first,) = on.take(0.0)
    assert not list(on.take(2.9))
    (again,) = on.take(3.0)
    assert ids(again) == ["r1", "r2"]
    assert again.id != first.id
    assert not list(on.take(8.9)), "the second is waited for longer"
    on.add(call(3))
    assert not list(on.take(8.9)), "it still has its place under way"
    answer(on, first)  # late, but it counts
    assert all(each.future.done() for each in again.calls)
    assert [ids(batch) for batch in on.take(8.9)] == [["r3"]]


def test_only_those_who_still_wait_are_asked_for_again() -> None:
    on = batcher()
    calls = [call(1), call(2, ends=2.0), call(3)]
    for each in calls:
        on.add(each)
    list(on.take(0.0))
    leave(calls[2])
    (again,) = on.take(3.0)
    assert ids(again) == ["r1"]


def test_a_caller_who_left_is_not_sent_and_keeps_no_place() -> None:
    on = batcher(under_way=1)
    first, second = call(1), call(2)
    on.add(first)
    list(on.take(0.0))
    on.add(second)
    leave(second)
    leave(first)
    on.add(call(3))
    assert [ids(batch) for batch in on.take(0.0)] == [["r3"]]


def test_one_answer_for_all_reaches_each() -> None:
    on = batcher()
    for number in (1, 2):
        on.add(call(number))
    (batch,) = on.take(0.0)
    assert [value for _, value in on.answered(batch.id, "down")] == ["down", "down"]
    assert on.answered("another's", "x") == []
    assert on.is_idle()


def test_a_message_is_forgotten_long_after_its_last_caller() -> None:
    on = batcher()
    on.add(call(1, ends=1.0))
    list(on.take(0.0))
    list(on.take(50.0))
    assert not on.is_idle()
    list(on.take(100.0))
    assert on.is_idle()


def test_calls_to_two_lanes_share_no_message_and_do_not_wait_for_each_other() -> None:
    on = batcher(under_way=1)
    other = call(2)
    other.command = replace(other.command, celery_queue="assignment.other")
    for each in (call(1), other, call(3)):
        on.add(each)
    assert [ids(batch) for batch in on.take(0.0)] == [["r1", "r3"], ["r2"]]
    assert [ids(batch) for batch in on.take(4.0)] == [["r1", "r3"], ["r2"]], "lost, both"


def test_a_command_goes_to_the_lane_that_it_concerns() -> None:
    routes = LaneRouter(Lanes({"outstanding_requests": "other"}))

    def way(command: CommandCall) -> str:
        return routes.way(command).celery_queue

    def ask(agent: int, queue: str | None) -> CommandCall:
        return request(agent, queue, "r", timeout=timedelta(seconds=1))

    assert way(ask(1, "outstanding_requests")) == "assignment.other"
    assert way(ask(1, "unsigned_users")) == "assignment"
    assert way(pause("outstanding_requests", None)) == "assignment.other"
    assert way(regenerate("outstanding_requests")) == "maintenance"
    assert way(ask(1, None)) == "assignment", "nothing is known of the agent yet"
    held = {"agent_id": 1, "queue": "outstanding_requests"}
    routes.heard({"outcome": "assigned", "assignment": held})
    assert way(act(release.call("a", 1))) == "assignment.other"
    assert way(ask(1, None)) == "assignment.other", "where they were last given somebody"
    assert way(act(release.call("a", 2))) == "assignment"
    for agent in range(2, REMEMBERED_AT_MOST + 2):
        held = {"agent_id": agent, "queue": "outstanding_requests"}
        routes.heard({"outcome": "assigned", "assignment": held})
    assert way(ask(1, None)) == "assignment", "the one heard of longest ago is forgotten"


def test_with_one_lane_a_command_goes_as_it_is() -> None:
    command = act(release.call("a", 1))
    assert LaneRouter().way(command) is command


def test_a_command_that_is_sent_again_keeps_the_id_by_which_it_is_once() -> None:
    on = batcher()
    on.add(Call(pause("unsigned_users", None), 100.0, Future()))
    (first,) = on.take(0.0)
    (second,) = on.take(3.0)
    (third,) = on.take(9.0)
    assert [first.id, second.id, third.id] == ["m1", "m2", "m3"]
    assert [each.repeats for each in (first, second, third)] == ["m1"] * 3


def test_calls_that_share_a_message_are_once_each() -> None:
    on = batcher()
    on.add(call(1))
    (batch,) = on.take(0.0)
    assert batch.repeats is None


def test_no_message_of_many_is_larger_than_a_worker_reads() -> None:
    on = batcher()
    said = {
        "move": "complete",
        "assignment_id": "i" * 36,
        "agent_id": 26,
        "notes": "\U0001f600" * 10_000,
    }
    calls = [
        Call(CommandCall("one", dict(said), many="many"), 100.0, Future()) for _ in range(TOGETHER)
    ]
    for each in calls:
        on.add(each)
    sent: list[Batch] = []
    while batches := list(on.take(0.0)):
        sent += batches
        for batch in batches:
            answer(on, batch)
    assert sum(len(batch.calls) for batch in sent) == TOGETHER
    for batch in sent:
        kwargs = batch.kwargs(lambda _: datetime(2026, 11, 28, tzinfo=UTC))
        made = message("many", [], kwargs, task_id="t", celery_queue="q", expires=None)
        assert len(json.dumps(made)) < Settings.from_environment({}).message_maximum
