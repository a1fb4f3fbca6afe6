"""A client's dispatcher: results heard, results read after a loss, and a Redis that is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import fakeredis
import pytest
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError

from assignment_workers.assignment.answers import Refused, Unavailable, from_json
from assignment_workers.client import AsyncClient
from assignment_workers.client.commands import request
from assignment_workers.client.wire import dispatcher as couriers
from assignment_workers.client.wire.batcher import Call
from assignment_workers.client.wire.brokers import RedisSender, sender
from assignment_workers.client.wire.dispatcher import FAILED, Dispatcher
from assignment_workers.client.wire.message import RESULT_PREFIX
from assignment_workers.client.wire.outages import unreachable
from assignment_workers.errors import BrokerUnavailable

QUEUE = "assignment"
Play = Callable[["Stage"], Coroutine[Any, Any, None]]


async def seen(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it gives something."""
    while not (found := condition()):  # noqa: ASYNC110 - the server tells of nothing
        await asyncio.sleep(0.005)
    return found


class Stage:
    """A courier, and the worker that a test plays."""

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self.server = server
        self.redis = fakeredis.FakeRedis(server=server, protocol=2)
        self.orphans: list[object] = []
        self.dispatcher = Dispatcher(
            "redis://fake", orphaned=lambda _call, answer: self.orphans.append(answer)
        )

    def ask(self, *, seconds: float = 30.0) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        command = request(26, None, str(uuid4()), timeout=timedelta(seconds=seconds))
        self.dispatcher.post(Call(command, self.dispatcher.now + seconds, future))
        return future

    async def taken(self) -> dict[str, Any]:
        """The next message on the assignment queue."""
        found: dict[str, Any] = json.loads(await seen(lambda: self.redis.rpop(QUEUE)))
        return found

    def answer(self, message: dict[str, Any], **said: Any) -> None:
        """As Celery's backend does: stored, then published."""
        name = f"{RESULT_PREFIX}{message['headers']['id']}"
        data = json.dumps({"status": "SUCCESS", "result": None} | said)
        self.redis.set(name, data)
        self.redis.publish(name, data)


def played(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fakeredis.FakeServer(version=(7,))
    made: list[Any] = []

    def connect(_url: str) -> Any:
        made.append(fakeredis.FakeAsyncRedis(server=server, protocol=2))
        return made[-1]

    monkeypatch.setattr(couriers, "connect_redis", connect)
    monkeypatch.setattr(couriers, "sender", lambda url: RedisSender(connect(url)))
    monkeypatch.setattr(couriers, "RECONNECT_SECONDS", 0.01)

    async def run() -> None:
        stage = Stage(server)
        try:
            async with asyncio.timeout(20):
                await play(stage)
        finally:
            server.connected = True
            await stage.dispatcher.close()

    asyncio.run(run())


STEPS: dict[str, Callable[[Dispatcher], tuple[object, str]]] = {
    "connecting": lambda made: (made._results.connection_pool, "get_connection"),
    "subscribing": lambda made: (made, "_subscribe"),
    "listening": lambda made: (made, "_listen"),
    "reading the clock": lambda made: (made._database, "read"),
    "writing the message": lambda _made: (couriers, "message"),
    "sending": lambda made: (made._broker, "send"),
    "reading a result": lambda _made: (couriers, "result"),
    "erasing results": lambda made: (made, "_unlink"),
}


@pytest.mark.parametrize("wrong", [RuntimeError("the handler is closed"), KeyError("0"), OSError()])
@pytest.mark.parametrize("step", STEPS)
def test_no_error_of_one_step_is_the_end_of_a_client(
    monkeypatch: pytest.MonkeyPatch, step: str, wrong: Exception
) -> None:
    """Seen with uvloop: a write to a socket that was closed meanwhile raises RuntimeError."""

    async def play(stage: Stage) -> None:
        stage.dispatcher._start()
        of, name = STEPS[step](stage.dispatcher)
        works, failed = getattr(of, name), asyncio.Event()

        def fails_once(*given: Any, **named: Any) -> Any:
            if not failed.is_set():
                failed.set()
                raise wrong
            return works(*given, **named)

        monkeypatch.setattr(of, name, fails_once)
        answering = asyncio.create_task(answer_all(stage))
        try:
            async with asyncio.timeout(10):
                while True:
                    is_after = failed.is_set()
                    if await stage.ask(seconds=1.0) == "a" and is_after:
                        break
                    await asyncio.sleep(couriers.TICK_SECONDS)  # for results to be erased
        finally:
            answering.cancel()

    async def answer_all(stage: Stage) -> None:
        while True:
            stage.answer(await stage.taken(), result="a")

    played(play, monkeypatch)


def test_calls_that_wait_together_share_a_message_and_each_gets_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play(stage: Stage) -> None:
        futures = [stage.ask() for _ in range(3)]
        message = await stage.taken()
        assert message["headers"]["task"] == "assignment.request_many"
        stage.answer(message, result=["a", "b", "c"])
        assert [await each for each in futures] == ["a", "b", "c"]

    played(play, monkeypatch)


@pytest.mark.parametrize(
    "wrong", [{"notes": "half of \ud83d"}, {"notes": {1, 2}}, {"notes": float("nan")}]
)
def test_a_call_that_cannot_be_written_is_refused_and_those_beside_it_are_sent(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    async def play(stage: Stage) -> None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        bad = replace(request(27, None, "bad", timeout=timedelta(seconds=30)), arguments=wrong)
        beside = [stage.ask()]
        stage.dispatcher.post(Call(bad, stage.dispatcher.now + 30, future))
        beside.append(stage.ask())
        refused = from_json(await future)
        assert isinstance(refused, Refused)
        assert refused.code == "malformed"
        assert "notes: a value of type" in refused.reason
        message = await stage.taken()
        stage.answer(message, result=["a", "b"])
        assert [await each for each in beside] == ["a", "b"]

    played(play, monkeypatch)


def test_a_caller_who_got_no_answer_hears_how_many_messages_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = fakeredis.FakeServer(version=(7,))
    fakeredis.FakeRedis(server=server, protocol=2).lpush(QUEUE, *["earlier"] * 50_000)

    def connect(_url: str) -> Any:
        return fakeredis.FakeAsyncRedis(server=server, protocol=2)

    monkeypatch.setattr(couriers, "connect_redis", connect)
    monkeypatch.setattr(couriers, "sender", lambda url: RedisSender(connect(url)))

    async def run() -> object:
        async with AsyncClient("redis://fake") as client:
            return await client.request_next(26, timeout=timedelta(seconds=0.3))

    answer = asyncio.run(run())
    assert isinstance(answer, Unavailable)
    assert answer.reason == "no answer within 0.3 s; 50,001 messages waited in the queue"


def test_results_that_were_read_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> None:
        future = stage.ask()
        message = await stage.taken()
        stage.answer(message, result=["a"])
        assert await future == "a"
        await seen(lambda: not stage.redis.keys(f"{RESULT_PREFIX}*"))

    played(play, monkeypatch)


@pytest.mark.parametrize(
    "said",
    [
        {
            "status": "FAILURE",
            "result": {"exc_type": "ValueError", "exc_message": ["+447700900001"]},
        },
        {"status": "FAILURE", "result": "broken"},
        {"status": "REVOKED"},
    ],
)
def test_a_task_that_failed_is_unavailable_and_says_nothing_of_its_words(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    async def play(stage: Stage) -> None:
        future = stage.ask()
        stage.answer(await stage.taken(), **said)
        assert await future == Unavailable(retry_after=1.0, reason=FAILED)

    played(play, monkeypatch)


@pytest.mark.parametrize("data", ["{", "[]", '{"status": "STARTED", "result": null}', "null"])
def test_what_is_no_result_is_not_an_answer(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    async def play(stage: Stage) -> None:
        future = stage.ask()
        message = await stage.taken()
        stage.redis.publish(f"{RESULT_PREFIX}{message['headers']['id']}", data)
        stage.answer(message, result=["a"])
        assert await future == "a"

    played(play, monkeypatch)


def test_a_result_that_came_while_nobody_listened_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    listened = []
    subscribe = Dispatcher._subscribe

    async def counted(self: Dispatcher, connection: Any) -> None:
        await subscribe(self, connection)
        listened.append(connection)
        if len(listened) == 1:
            lost = connection.read_response

            async def read(**options: Any) -> Any:
                await lost(**options)
                connection.read_response = lost
                raise BusyLoadingError("lost what it had read")

            connection.read_response = read

    async def play(stage: Stage) -> None:
        monkeypatch.setattr(Dispatcher, "_subscribe", counted)
        future = stage.ask()
        stage.answer(await stage.taken(), result=["a"])
        assert await future == "a"
        assert len(listened) == 2

    played(play, monkeypatch)


def test_a_redis_that_is_away_is_unavailable_and_is_asked_again_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play(stage: Stage) -> None:
        stage.server.connected = False
        answer = await stage.ask()
        assert isinstance(answer, Unavailable)
        assert answer.reason.startswith("Redis cannot be reached")
        stage.server.connected = True
        while True:
            future = stage.ask()
            taken = asyncio.ensure_future(stage.taken())
            await asyncio.wait([future, taken], return_when=asyncio.FIRST_COMPLETED)
            if taken.done():
                stage.answer(taken.result(), result=["a"])
                assert await future == "a"
                return
            taken.cancel()

    played(play, monkeypatch)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutOfMemoryError("OOM"), "Redis is full"),
        (ResponseError("MISCONF errors saving"), "Redis cannot save to its disk"),
        (ResponseError("NOREPLICAS Not enough good replicas"), "Redis has too few replicas"),
        (ReadOnlyError("READONLY replica"), "Redis cannot be reached"),
    ],
)
def test_a_push_that_is_refused_is_told_by_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    async def refuse(*_: object) -> None:
        raise error

    async def play(stage: Stage) -> None:
        monkeypatch.setattr(fakeredis.FakeAsyncRedis, "lpush", refuse)
        answer = await stage.ask()
        assert isinstance(answer, Unavailable)
        assert answer.reason.startswith(reason)
        with pytest.raises(BrokerUnavailable, match=reason):
            await stage.dispatcher.send("queue.regenerate", [], {}, "maintenance")

    played(play, monkeypatch)


def test_an_answer_whose_caller_has_gone_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> None:
        future = stage.ask()
        message = await stage.taken()
        future.cancel()
        stage.answer(message, result=["a"])
        await seen(lambda: stage.orphans)
        assert stage.orphans == ["a"]

    played(play, monkeypatch)


def test_a_client_that_is_closed_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> None:
        future = stage.ask()
        await stage.taken()
        await stage.dispatcher.close()
        assert await future == Unavailable(retry_after=1.0, reason="the client was closed")

    played(play, monkeypatch)


def test_a_job_s_result_is_had_later_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> None:
        name = await stage.dispatcher.send("queue.regenerate", [], {}, "maintenance")
        assert await stage.dispatcher.stored_result(name) is None
        stage.answer({"headers": {"id": name}}, result={"built": 1})
        found = await stage.dispatcher.stored_result(name)
        assert found is not None
        assert found.value == {"built": 1}
        stage.server.connected = False
        with pytest.raises(BrokerUnavailable):
            await stage.dispatcher.stored_result(name)

    played(play, monkeypatch)


def test_a_sender_is_chosen_by_the_address() -> None:
    async def run() -> None:
        made = sender("redis://localhost:1/0")
        assert isinstance(made, RedisSender)
        await made.close()

    asyncio.run(run())


def test_an_error_without_words_is_named_by_its_kind() -> None:
    assert str(unreachable("Redis", OSError())) == "Redis cannot be reached: OSError"
