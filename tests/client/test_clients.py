"""Both clients, for threads and for asyncio, against a worker that the test plays."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from functools import partial
from typing import Any

import redis

from assignment_workers.assignment.answers import Answer
from assignment_workers.client import (
    Assigned,
    AsyncClient,
    Client,
    Finished,
    Hold,
    Refused,
    Unavailable,
)
from assignment_workers.client.wire.dispatcher import FAILED
from assignment_workers.client.wire.message import message
from tests.client.worker import HELD, Worker, assigned
from tests.support.celery_programs import celery_program
from tests.support.processes import wait_until
from tests.support.sessions import cut


class Asker(threading.Thread):
    """A caller in a thread of its own."""

    def __init__(
        self, client: Client, agent: int, *, seconds: float = 20.0, **options: str
    ) -> None:
        super().__init__(daemon=True)
        self.answer: Answer | None = None
        timeout = timedelta(seconds=seconds)
        self._ask = partial(client.request_next, agent, timeout=timeout, **options)
        self.start()

    def run(self) -> None:
        self.answer = self._ask()

    def got(self) -> Answer:
        self.join(30)
        assert self.answer is not None, "no answer came"
        return self.answer


def agent_of(answer: Answer) -> int:
    """Whom this answer assigns a user to."""
    assert isinstance(answer, Assigned)
    return answer.assignment.agent_id


def test_threads_that_wait_share_messages_in_order_of_arrival(worker: Worker) -> None:
    with Client(worker.url, together=4, under_way=2) as client:
        askers = [Asker(client, 1)]
        first = worker.take()
        askers.append(Asker(client, 2))
        second = worker.take()
        batcher = client._dispatcher._batcher

        def arrived(count: int) -> bool:
            return len(batcher.calls()) == count

        for agent in range(3, 10):
            askers.append(Asker(client, agent))
            wait_until(partial(arrived, agent), "the call to arrive")
        assert worker.is_empty()
        assert [first.agents, second.agents] == [[1], [2]]
        worker.assign(first)
        third = worker.take()
        assert (third.task, third.agents) == ("assignment.request_many", [3, 4, 5, 6])
        worker.assign(second)
        fourth = worker.take()
        assert fourth.agents == [7, 8, 9]
        worker.assign(third)
        worker.assign(fourth)
        answers = [asker.got() for asker in askers]
    assert [agent_of(answer) for answer in answers] == list(range(1, 10))


def test_coroutines_that_wait_share_messages_in_order_of_arrival(worker: Worker) -> None:
    async def all_of_them() -> list[Answer]:
        async with AsyncClient(worker.url, together=64, under_way=1) as client:
            first = asyncio.create_task(client.request_next(1))
            taken = await asyncio.to_thread(worker.take)
            others = [asyncio.create_task(client.request_next(agent)) for agent in range(2, 101)]
            await asyncio.sleep(0)
            worker.assign(taken)
            for expected in (range(2, 66), range(66, 101)):
                taken = await asyncio.to_thread(worker.take)
                assert taken.agents == list(expected)
                worker.assign(taken)
            return await asyncio.gather(first, *others)

    answers = asyncio.run(all_of_them())
    assert [agent_of(answer) for answer in answers] == list(range(1, 101))


def test_each_caller_gets_their_own_answer(worker: Worker) -> None:
    refused = {"outcome": "refused", "code": "unknown_agent", "reason": "no agent 2"}

    async def three() -> list[Answer]:
        async with AsyncClient(worker.url) as client:
            asked = [asyncio.create_task(client.request_next(agent)) for agent in (1, 2, 3)]
            taken = await asyncio.to_thread(worker.take)
            worker.finish(taken, [assigned(1), refused, {"outcome": "odd"}])
            return await asyncio.gather(*asked)

    first, second, third = asyncio.run(three())
    assert agent_of(first) == 1
    assert isinstance(second, Refused)
    assert isinstance(third, Unavailable)


def test_a_task_that_failed_is_unavailable_to_each_of_its_callers(worker: Worker) -> None:
    with Client.connect(worker.url) as client:
        asker = Asker(client, 1)
        worker.fail(worker.take())
        assert asker.got() == Unavailable(retry_after=1.0, reason=FAILED)


def test_a_lost_message_is_asked_again_with_the_same_request_id(worker: Worker) -> None:
    with Client.connect(worker.url) as client:
        asker = Asker(client, 1, request_id="once")
        lost = worker.take()
        again = worker.take()
        assert lost.request_ids == again.request_ids == ["once"]
        worker.assign(again)
        assert agent_of(asker.got()) == 1


def test_a_result_that_came_while_nobody_listened_is_read(worker: Worker) -> None:
    with Client.connect(worker.url) as client:
        asker = Asker(client, 1)
        taken = worker.take()
        cut(worker.redis, which=lambda each: int(each["psub"]) > 0)
        worker.assign(taken)
        assert agent_of(asker.got()) == 1


def test_no_answer_in_time_is_unavailable_and_the_result_leaves_nothing(worker: Worker) -> None:
    with Client.connect(worker.url) as client:
        answer = client.request_next(1, timeout=timedelta(milliseconds=100))
        assert isinstance(answer, Unavailable)
        asker = Asker(client, 2)
        worker.take()
        worker.assign(worker.take())
        asker.got()
        wait_until(lambda: not worker.redis.keys("celery-task-meta-*"), "results to be taken away")


def test_where_redis_cannot_be_reached_the_answer_says_so() -> None:
    with Client.connect("redis://127.0.0.1:1/0") as client:
        answer = client.request_next(1)
        assert isinstance(answer, Unavailable)
        assert answer.reason.startswith("Redis cannot be reached")
        assert isinstance(client.regenerate(), Unavailable)


def test_closing_answers_whoever_waits(worker: Worker) -> None:
    client = Client.connect(worker.url)
    asker = Asker(client, 1)
    worker.take()
    client.close()
    assert asker.got() == Unavailable(retry_after=1.0, reason="the client was closed")


def test_a_cancelled_coroutine_takes_its_gathered_request_back(worker: Worker) -> None:
    told: list[Any] = []

    async def leave() -> None:
        async with AsyncClient(
            worker.url, under_way=1, orphaned=lambda _, answer: told.append(answer)
        ) as client:
            first = asyncio.create_task(client.request_next(1))
            taken = await asyncio.to_thread(worker.take)
            second = asyncio.create_task(client.request_next(2))
            third = asyncio.create_task(client.request_next(3))
            await asyncio.sleep(0)
            second.cancel()
            first.cancel()
            await asyncio.wait([first, second])
            worker.assign(taken)
            last = await asyncio.to_thread(worker.take)
            assert last.agents == [3]
            worker.assign(last)
            await third

    asyncio.run(leave())
    assert [each["assignment"]["agent_id"] for each in told] == [1]


def test_many_finishes_share_a_message_and_say_their_move(worker: Worker) -> None:
    done = {"outcome": "completed", "assignment": HELD | {"state": "completed"}, "replayed": False}

    async def finish() -> list[object]:
        async with AsyncClient(worker.url) as client:
            asked = [
                asyncio.create_task(client.complete(HELD["id"], 1, "no_answer", version=1)),
                asyncio.create_task(client.skip(HELD["id"], 2)),
            ]
            taken = await asyncio.to_thread(worker.take)
            assert taken.task == "assignment.finish_many"
            assert [each["move"] for each in taken.kwargs["requests"]] == ["complete", "skip"]
            worker.finish(taken, [done, done])
            return await asyncio.gather(*asked)

    assert all(isinstance(each, Finished) for each in asyncio.run(finish()))


def test_holding_renews_and_releases_on_an_error(worker: Worker) -> None:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    short = HELD | {
        "claimed_at": now.isoformat(),
        "lease_expires_at": (now + timedelta(seconds=1)).isoformat(),
    }
    seen: list[str] = []
    renewed = threading.Event()

    def play() -> None:
        while "release" not in seen:
            taken = worker.take()
            (said,) = taken.kwargs["requests"]
            move = said.get("move", "request")
            seen.append(move)
            if move == "request":
                worker.finish(taken, [{"outcome": "assigned", "assignment": short}])
                continue
            if seen.count("renew") > 1:
                renewed.set()
            outcome = "renewed" if move == "renew" else "released"
            worker.finish(taken, [{"outcome": outcome, "assignment": short}])

    player = threading.Thread(target=play, daemon=True)
    player.start()
    with Client.connect(worker.url) as client:
        try:
            with client.holding(1) as hold:
                assert isinstance(hold, Hold)
                assert renewed.wait(10)
                raise LookupError("the line broke")
        except LookupError:
            pass
    player.join(10)
    assert seen[0] == "request"
    assert seen[-1] == "release"
    assert seen.count("renew") >= 2


def test_hazard_c14_our_message_is_the_one_that_celery_would_send(
    worker: Worker, redis_url: str
) -> None:
    import json

    with celery_program(redis_url, redis_url) as app, redis.Redis.from_url(redis_url) as client:
        app.conf.update(broker_transport_options={"priority_steps": [0]})
        app.send_task("some.task", kwargs={"a": 1}, queue="assignment", task_id="theirs")
        theirs = json.loads(client.rpop("assignment"))
    ours = message("some.task", [], {"a": 1}, task_id="x", celery_queue="assignment", expires=None)
    assert set(theirs) == set(ours)
    assert set(theirs["properties"]) <= set(ours["properties"])
    assert set(theirs["headers"]) <= set(ours["headers"])
    assert theirs["properties"]["delivery_info"] == ours["properties"]["delivery_info"]
    for name in ("task", "lang", "retries", "timelimit", "eta", "expires"):
        assert theirs["headers"][name] == ours["headers"][name]
