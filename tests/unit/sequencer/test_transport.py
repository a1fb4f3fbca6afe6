"""The transport's list handling, on a Redis within the process, with errors as one likes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from assignment_workers.client.wire.message import message
from assignment_workers.errors import NotStored
from assignment_workers.sequencer import transport
from assignment_workers.sequencer.redis_refusals import WRITE_REFUSALS
from assignment_workers.sequencer.transport import QoS, taken_key
from tests.support.fake_redis import Consumed, consumed

QUEUE = "assignment"
TAKEN = taken_key(QUEUE, "0")


def item(name: str) -> str:
    return json.dumps(message("t", [], {}, task_id=name, celery_queue=QUEUE, expires=None))


def push(line: Consumed, *names: str) -> None:
    for name in names:
        line.redis.lpush(QUEUE, item(name))


def names(line: Consumed, key: str) -> list[str]:
    return [json.loads(each)["headers"]["id"] for each in line.redis.lrange(key, 0, -1)]


def tag(got: dict[str, dict[str, str]]) -> str:
    return got["properties"]["delivery_tag"]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Consumed]:
    monkeypatch.setattr(transport, "PAUSE_SECONDS", 0.0)
    with consumed(QUEUE) as made:
        yield made


def test_messages_come_in_the_order_in_which_they_were_sent(line: Consumed) -> None:
    push(line, "first", "second", "third")
    assert [line.take()["headers"]["id"] for _ in range(3)] == ["first", "second", "third"]
    assert names(line, TAKEN) == ["third", "second", "first"]


def test_an_empty_queue_is_empty_and_not_an_error(line: Consumed) -> None:
    with pytest.raises(Empty):
        line.take()
    assert line.channel._in_poll is None


def test_the_sender_s_tag_is_never_used(line: Consumed) -> None:
    push(line, "same", "same")
    first, second = line.take(), line.take()
    assert len({tag(first), tag(second), "same"}) == 3


def test_what_was_handled_leaves_with_the_next_asking(line: Consumed) -> None:
    push(line, "first", "second")
    line.channel.forget(tag(line.take()))
    assert names(line, TAKEN) == ["first"]
    line.take()
    assert names(line, TAKEN) == ["second"]


def test_what_was_handled_leaves_at_once_where_no_more_is_asked_for(line: Consumed) -> None:
    push(line, "first", "second")
    line.channel.qos.ack(tag(line.take()))
    line.channel.settle()
    assert names(line, TAKEN) == []


def test_one_that_is_given_back_is_the_next_again(line: Consumed) -> None:
    push(line, "first", "second")
    line.channel.qos.reject(tag(line.take()), requeue=True)
    assert names(line, TAKEN) == []
    assert line.take()["headers"]["id"] == "first"


def test_one_that_is_rejected_for_good_is_gone(line: Consumed) -> None:
    push(line, "first")
    line.channel.qos.reject(tag(line.take()))
    line.channel.settle()
    assert names(line, TAKEN) == names(line, QUEUE) == []


def test_an_unknown_tag_changes_nothing(line: Consumed) -> None:
    push(line, "first")
    line.take()
    line.channel.forget("another")
    line.channel.give_back("another")
    line.channel.settle()
    assert names(line, TAKEN) == ["first"]
    assert line.channel.item("another") is None


def test_the_message_in_hand_is_had_as_it_stands(line: Consumed) -> None:
    push(line, "first")
    assert line.channel.item(tag(line.take())) == item("first").encode()


@pytest.mark.parametrize("own", [True, False])
def test_put_back_restores_the_order_over_several_terms(line: Consumed, own: bool) -> None:
    marks = ["1", "2", "10"]
    for mark, each in zip(marks, ["first", "second", "third"], strict=True):
        line.redis.lpush(taken_key(QUEUE, mark), item(each))
    push(line, "fourth")
    shared = line.channel.consumption
    shared.mark = "40"
    line.redis.lpush(taken_key(QUEUE, "40"), item("own"))
    assert line.channel.put_back(QUEUE, own=own, begins=True) == 3 + own
    waiting = list(reversed(names(line, QUEUE)))
    assert waiting == ["first", "second", "third", *(["own"] if own else []), "fourth"]
    assert names(line, taken_key(QUEUE, "40")) == ([] if own else ["own"])


def test_an_empty_message_is_one_and_is_in_nobody_s_way(line: Consumed) -> None:
    shared = line.channel.consumption
    shared.mark = "40"
    for each in (item("first"), "", item("second")):
        line.redis.lpush(taken_key(QUEUE, "2"), each)
    assert line.channel.put_back(QUEUE, begins=True) == 3
    assert line.take()["headers"]["id"] == "first"
    line.take()
    assert [said for _, said, _ in line.refused] == [b""]
    assert line.take()["headers"]["id"] == "second"


def redelivered(got: dict[str, Any]) -> bool:
    return bool(got["properties"]["delivery_info"].get("redelivered"))


def test_what_a_dead_term_had_taken_is_suspect_once(line: Consumed) -> None:
    shared = line.channel.consumption
    shared.mark, shared.spared = "40", "3"
    for mark, name in (("2", "a dead one's"), ("3", "a live one's"), ("40", "own")):
        line.redis.lpush(taken_key(QUEUE, mark), item(name))
    push(line, "new")
    line.channel.put_back(QUEUE, own=True, begins=True)
    taken = {(got := line.take())["headers"]["id"]: redelivered(got) for _ in range(4)}
    assert taken == {"a dead one's": True, "a live one's": False, "own": False, "new": False}
    line.channel.put_back(QUEUE, own=True)
    assert not any(redelivered(line.take()) for _ in range(4)), "after its own connection is back"


def test_what_is_malformed_is_handed_over_and_leaves_the_list(line: Consumed) -> None:
    line.redis.lpush(QUEUE, "{")
    line.channel._brpop_start(timeout=0.01)
    assert line.channel._brpop_read()
    ((queue, said, _why),) = line.refused
    assert (queue, said) == (QUEUE, b"{")
    assert line.got == []
    assert line.redis.exists(TAKEN) == 0


def test_what_is_too_large_is_not_read(line: Consumed) -> None:
    line.channel.consumption.largest = 10
    push(line, "first")
    line.channel._brpop_start(timeout=0.01)
    line.channel._brpop_read()
    assert "a message of at most 10 is read" in line.refused[0][2]


def test_a_lost_connection_is_given_up_and_told(line: Consumed) -> None:
    line.wire.fails = [Lost("gone")]
    line.channel._brpop_start(timeout=0.01)
    with pytest.raises(Lost):
        line.channel._brpop_read()
    assert line.wire.disconnected == 1


def test_a_lost_answer_leaves_the_message_with_those_taken(line: Consumed) -> None:
    push(line, "first", "second")
    line.wire.fails = [Lost("gone")]
    line.channel._brpop_start(timeout=0.01)
    with pytest.raises(Lost):
        line.channel._brpop_read()
    assert names(line, TAKEN) == ["first"]
    assert line.channel.put_back(QUEUE, own=True) == 1
    assert line.take()["headers"]["id"] == "first"


@pytest.mark.parametrize("error", [ReadOnlyError("READONLY replica"), ResponseError("NOSCRIPT")])
def test_an_error_that_is_no_refusal_to_write_is_raised(line: Consumed, error: Exception) -> None:
    line.wire.fails = [error]
    line.channel._brpop_start(timeout=0.01)
    with pytest.raises(ResponseError):
        line.channel._brpop_read()


def test_a_full_redis_hands_its_messages_over_all_the_same(line: Consumed) -> None:
    line.channel._brpop_start(timeout=0.01)  # nothing is there yet
    push(line, "first")
    line.wire.fails = [OutOfMemoryError("OOM command not allowed")]
    line.channel._brpop_read()
    assert line.got[-1]["headers"]["id"] == "first"
    assert names(line, TAKEN) == ["first"]
    assert WRITE_REFUSALS.within(60)


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("OOM command not allowed"),
        ResponseError("MISCONF errors saving"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
)
def test_a_refusal_with_nothing_to_take_is_an_empty_queue(line: Consumed, error: Exception) -> None:
    line.wire.fails = [error]
    line.channel._brpop_start(timeout=0.01)
    with pytest.raises(Empty):
        line.channel._brpop_read()


def test_nothing_is_asked_where_no_queue_is_consumed() -> None:
    with consumed() as none:
        none.channel._brpop_start(timeout=0.01)
        assert none.channel._in_poll in {None, False}


@pytest.mark.parametrize("error", [OutOfMemoryError("OOM"), ResponseError("MISCONF")])
def test_a_refused_read_of_a_maintenance_worker_is_an_empty_queue(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PAUSE_SECONDS", 0.0)
    with consumed("maintenance", ordered=False) as line:
        line.wire.fails = [error]
        line.channel._brpop_start(timeout=0.01)
        with pytest.raises(Empty):
            line.channel._brpop_read()
        line.redis.lpush("maintenance", item("first"))
        assert line.take()["headers"]["id"] == "first"


@pytest.mark.parametrize("prefix", ["", "ours:"])
def test_what_could_not_be_stored_is_stored_later_by_one_worker_at_a_time(prefix: str) -> None:
    with consumed("heartbeats", ordered=False, prefix=prefix) as line:
        unstored, lock = f"{prefix}heartbeats.unstored", f"{prefix}heartbeats.unstored.lock"
        store, away = line.channel.consumption.on_malformed, [True]

        def stored(*given: Any) -> None:
            if away:
                raise NotStored("the database is away")
            store(*given)

        line.channel.consumption.on_malformed = stored
        assert line.channel._read("heartbeats", b"{") is None
        assert line.channel._read("heartbeats", b"[") is None
        line.channel.store_again("heartbeats")
        assert sorted(line.redis.lrange(unstored, 0, -1)) == [b"[", b"{"], "kept, each once"
        away.clear()
        line.redis.set(lock, "another", ex=9)
        line.channel.store_again("heartbeats")
        assert (line.refused, line.redis.llen(unstored)) == ([], 2), "another worker stores them"
        assert line.redis.get(lock) == b"another"
        line.redis.delete(lock)
        line.redis.rpush(unstored, item("first"))
        line.channel.store_again("heartbeats")
        assert sorted(said for _, said, _ in line.refused) == [b"[", b"{"]
        assert names(line, f"{prefix}heartbeats") == ["first"], "this version can read it"
        assert line.redis.exists(unstored, lock) == 0


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Consumed]:
    """A maintenance worker's channel, whose Redis lets nothing grow when a test says so."""
    monkeypatch.setattr(transport, "PAUSE_SECONDS", 0.0)
    with consumed("maintenance", ordered=False) as made:
        made.channel.typeof = lambda _: type("Type", (), {"type": "direct"})
        yield made


def refuse(monkeypatch: pytest.MonkeyPatch, command: str, error: Exception) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("redis.client.Redis." + command, refused)


def test_a_queue_is_bound_in_a_full_redis_too(
    worker: Consumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "sadd", OutOfMemoryError("OOM"))
    worker.channel._queue_bind("exchange", "key", "", "maintenance")
    (member,) = worker.redis.smembers("_kombu.binding.exchange")
    assert member == worker.channel.sep.join(["key", "", "maintenance"]).encode()


def test_a_queue_that_cannot_be_bound_is_tried_again_by_celery(
    worker: Consumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "sadd", ResponseError("MISCONF errors saving"))
    with pytest.raises(Lost, match="MISCONF"):
        worker.channel._queue_bind("exchange", "key", "", "maintenance")


@pytest.mark.parametrize(
    ("error", "passes"),
    [(OutOfMemoryError("OOM"), True), (ResponseError("MISCONF"), True), (ReadOnlyError(), False)],
)
def test_what_is_overdue_is_put_back_later_where_redis_refuses(
    worker: Consumed, monkeypatch: pytest.MonkeyPatch, error: Exception, passes: bool
) -> None:
    def restore(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("kombu.transport.redis.QoS.restore_visible", restore)
    if passes:
        worker.channel.qos.restore_visible()
    else:
        with pytest.raises(ReadOnlyError):
            worker.channel.qos.restore_visible()


def test_what_was_taken_is_noted_in_a_full_redis_too(
    worker: Consumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(*_: object, **__: object) -> None:
        raise OutOfMemoryError("OOM")

    monkeypatch.setattr("kombu.transport.redis.QoS.append", append)
    worker.redis.lpush("maintenance", item("first"))
    taken = worker.channel.Message(worker.take(), channel=worker.channel)
    worker.channel.qos.append(taken, "tag")
    assert worker.redis.zrange("unacked_index", 0, -1) == [b"tag"]
    assert json.loads(worker.redis.hget("unacked", "tag") or "")[0]["headers"]["id"] == "first"


@pytest.mark.parametrize(
    ("error", "answer"),
    [(Empty(), None), (OutOfMemoryError("OOM"), None), (ValueError("no JSON"), None)],
)
def test_a_broadcast_that_cannot_be_read_is_no_message(
    worker: Consumed, monkeypatch: pytest.MonkeyPatch, error: Exception, answer: None
) -> None:
    def receive(*_: object) -> None:
        raise error

    monkeypatch.setattr("kombu.transport.redis.Channel._receive_one", receive)
    assert worker.channel._receive_one(None) is answer


def test_a_broadcast_s_lost_connection_is_celery_s_to_mend(
    worker: Consumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(*_: object) -> None:
        raise Lost("gone")

    monkeypatch.setattr("kombu.transport.redis.Channel._receive_one", receive)
    with pytest.raises(Lost):
        worker.channel._receive_one(None)


@pytest.mark.parametrize("how", ["ack", "reject"])
@pytest.mark.parametrize("error", [RedisTimeout("no answer"), Lost("it is gone")])
def test_an_acknowledgement_without_an_answer_ends_the_connection(
    how: str, error: Exception
) -> None:
    """Or the message counts as taken for good, and no other one is taken."""

    class Silent(QoS):
        def _remove_from_indices(self, *_: object) -> Any:
            raise error

    channel: Any = SimpleNamespace(connection_errors=(KeyError, RedisError), do_restore=False)
    qos = Silent(channel, prefetch_count=1)
    assert qos.can_consume()
    with pytest.raises(type(error)):
        getattr(qos, how)("1")
    with pytest.raises(Lost, match="an acknowledgement got no answer"):
        qos.can_consume()
