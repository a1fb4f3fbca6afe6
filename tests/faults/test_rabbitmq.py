"""The same workers with RabbitMQ between them: one line, in order, whoever is killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import amqp
import pytest
from kombu import Connection, Producer, Queue

from assignment_workers.client import Assigned, Finished, Unavailable
from assignment_workers.client.wire.rabbitmq import CONFIRM_SECONDS
from assignment_workers.devstack import rabbitmq
from assignment_workers.health.model import HealthState
from assignment_workers.health.monitor import ONCE_SECONDS, read_once
from assignment_workers.sequencer.transport import ANSWER_SECONDS, RabbitTransport
from assignment_workers.settings import Settings
from tests.support.processes import Agents, Keeper, Stack, running, wait_until
from tests.support.servers import Rabbit, wire

pytestmark = pytest.mark.skipif(
    not rabbitmq.PROGRAM.exists(),
    reason="RabbitMQ is not installed (Debian: apt install rabbitmq-server)",
)

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path, rabbit: Rabbit) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        made.broker_url = rabbit.url
        yield made
    with Connection(rabbit.url) as connection:
        for queue in ("assignment", "maintenance"):
            Queue(queue, channel=connection.channel()).delete()


def waiting(stack: Stack, queue: str = "assignment") -> int:
    """How many messages are ready on this Celery queue."""
    assert stack.broker_url is not None
    with Connection(stack.broker_url) as connection:
        declared: Any = Queue(queue, channel=connection.channel()).queue_declare(passive=True)
        return int(declared.message_count)


def went_on(agents: Agents, count: int) -> bool:
    return len(agents.answered) > count


def test_before_a_worker_made_the_queue_callers_are_told_and_nothing_is_dropped(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    answer = stack.client().request_next(26, timeout=timedelta(seconds=60))
    assert isinstance(answer, Unavailable)
    assert answer.reason == "RabbitMQ cannot be reached"
    assert "no queue 'assignment'" in caplog.text, "the detail is for who operates it"


def test_a_message_that_rabbitmq_refuses_is_unavailable(stack: Stack, rabbit: Rabbit) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with Connection(rabbit.url) as connection:
        Queue("maintenance", channel=connection.channel(), queue_arguments=full).queue_declare()
    client = stack.client()
    assert isinstance(client.regenerate(), str)
    answer = client.regenerate()
    assert isinstance(answer, Unavailable)
    assert answer.reason == "RabbitMQ did not take the message"


def test_a_request_is_answered_and_what_cannot_be_read_is_kept(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    answer = client.request_next(26)
    assert isinstance(answer, Assigned)
    held = answer.assignment
    done = client.complete(held.id, 26, "no_answer", version=held.version)
    assert isinstance(done, Finished)
    assert stack.broker_url is not None
    confirmed = {"confirm_publish": True}  # or what another sends later may be there before it
    with Connection(stack.broker_url, transport_options=confirmed) as connection:
        quorum = Queue(
            "assignment",
            channel=connection.channel(),
            queue_arguments=QUORUM,
        )
        with pytest.raises(amqp.PreconditionFailed, match="x-single-active-consumer"):
            quorum.queue_declare()
        producer = Producer(connection.channel())
        producer.publish(b"\xff\xfe not even text", routing_key="assignment")
        unknown = {"task": "no.such_task", "id": "unknown", "lang": "py"}
        producer.publish(
            b"[[], {}, {}]",
            routing_key="assignment",
            headers=unknown,
            content_type="application/json",
            content_encoding="utf-8",
        )
    assert isinstance(client.request_next(27), Assigned)
    errors = [
        row.error for row in stack.rows("SELECT error FROM assignment.dead_letters ORDER BY id")
    ]
    assert len(errors) == 2
    assert "no.such_task" in errors[1]
    stack.assert_healthy()


@pytest.mark.timeout(180)
def test_a_killed_leader_is_followed_and_no_request_is_lost(stack: Stack) -> None:
    processes = [stack.start("sequencer"), stack.start("sequencer")]
    stack.built()
    with Agents(stack, 16) as agents:
        for _ in range(5):
            seen = len(agents.answered)
            wait_until(partial(went_on, agents, seen + 32), "work to go on")
            leader = stack.value("SELECT leader_pid FROM assignment.sequencer")
            (killed,) = (each for each in processes if each.pid == leader)
            killed.signal(signal.SIGKILL)
            killed.popen.wait()
            processes.remove(killed)
            processes.append(stack.start("sequencer"))
    assert agents.unanswered == []
    assert stack.term() >= 6
    stack.assert_healthy()


def test_requests_that_waited_are_served_in_their_order_after_a_restart_of_everything(
    stack: Stack, rabbit: Rabbit
) -> None:
    stack.seed(users=1000)
    first = [stack.start("sequencer"), stack.start("maintenance")]
    client = stack.client()
    stack.wait_for_leader()
    stack.regenerate(client)
    for process in first:
        process.stop()
    for agent in range(1, 41):
        said = {"agent_id": agent, "request_id": f"waits-{agent}"}
        client.send_again("assignment.request", [], said, "assignment")
    assert waiting(stack) == 40
    rabbit.kill()
    rabbit.start()
    stack.start("sequencer")
    sql = "SELECT agent_id FROM assignment.events WHERE kind = 'assigned' ORDER BY id"
    wait_until(lambda: len(stack.rows(sql)) == 40, "all of them to be served")
    assert [row.agent_id for row in stack.rows(sql)] == list(range(1, 41))
    stack.assert_healthy()


def test_rabbitmq_is_killed_and_comes_back(stack: Stack, rabbit: Rabbit) -> None:
    with Keeper(stack, "sequencer", "sequencer", "maintenance"):
        stack.seed(users=1000)
        stack.wait_for_leader()
        stack.regenerate(stack.client())
        with Agents(stack, 8) as agents:
            for _ in range(2):
                seen = len(agents.answered)
                wait_until(partial(went_on, agents, seen + 16), "work to go on", seconds=40)
                rabbit.kill()
                rabbit.start()
            seen = len(agents.answered)
            wait_until(partial(went_on, agents, seen + 16), "work to go on", seconds=40)
    assert all(isinstance(each, Unavailable) for each in agents.unanswered)
    stack.assert_healthy()


@pytest.mark.timeout(120)
def test_a_worker_returns_to_its_first_node_and_the_others_may_be_lost(
    stack: Stack, rabbit: Rabbit
) -> None:
    with wire(rabbit.url) as first, wire(rabbit.url) as other:
        first.cut()
        stack.broker_url = f"{first.url};{other.url}"
        sequencer = stack.start("sequencer")
        stack.broker_url = rabbit.url
        stack.built()
        with Agents(stack, 4) as agents:
            wait_until(partial(went_on, agents, 8), "work over the other node")
            first.mend()
            wait_until(lambda: "returns_to_first_node" in sequencer.said(), "the return")
            wait_until(partial(went_on, agents, len(agents.answered) + 8), "work to go on")
            other.cut()
            began, seen = time.monotonic(), len(agents.answered)
            wait_until(partial(went_on, agents, seen + 8), "work to go on")
            assert agents.answered[seen + 7][0] - began < 5, "the lost node was not in use"
        assert agents.unanswered == []
    stack.assert_healthy()


def test_a_client_whose_node_hangs_sends_over_the_next_one(stack: Stack, rabbit: Rabbit) -> None:
    with wire(rabbit.url) as first, wire(rabbit.url) as other:
        stack.broker_url = rabbit.url
        stack.start("sequencer")
        stack.built()
        stack.broker_url = f"{first.url};{other.url}"
        client = stack.client()
        assert isinstance(client.request_next(26), Assigned)
        first.cut()
        began = time.monotonic()
        assert isinstance(client.request_next(27, timeout=timedelta(seconds=30)), Assigned)
        assert time.monotonic() - began < 9, "a time-out of the message, and one to connect"


def test_a_worker_whose_node_answers_no_command_connects_anew(rabbit: Rabbit) -> None:
    with wire(rabbit.url) as line, Connection(line.url, transport=RabbitTransport) as connection:
        channel = connection.channel()
        line.cut()
        began = time.monotonic()
        with pytest.raises(connection.connection_errors):
            Queue("nobody", channel=channel).queue_declare(passive=True)
        assert time.monotonic() - began < ANSWER_SECONDS + 2
        connection.collect()


def test_without_memory_rabbitmq_takes_nothing_callers_are_told_and_service_comes_back(
    stack: Stack, rabbit: Rabbit
) -> None:
    with Keeper(stack, "sequencer", "sequencer"):
        stack.built()
        with Agents(stack, 8) as agents:
            wait_until(partial(went_on, agents, 50), "work")
            client = stack.client()
            with rabbit.memory_alarm():
                began = time.monotonic()
                answer = client.request_next(90)
                assert isinstance(answer, Unavailable)
                assert time.monotonic() - began < 11
                wait_until(lambda: len(agents.unanswered) >= 2, "agents to be told", seconds=60)
            lifted, seen = time.monotonic(), len(agents.answered)
            wait_until(partial(went_on, agents, seen + 16), "work to go on", seconds=60)
            print(f"{agents.answered[seen][0] - lifted:.1f} s after the alarm")
            assert agents.answered[seen][0] - lifted < 10
    assert all(isinstance(each, Unavailable) for each in agents.unanswered)
    stack.assert_healthy()


def test_the_health_names_rabbitmq_and_counts_its_messages(
    rabbit: Rabbit, database_url: str, redis_url: str
) -> None:
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "BROKER_URL": rabbit.url}
    settings = Settings.from_environment(servers)

    def broker() -> tuple[str, HealthState]:
        found = read_once(settings).of("broker")
        assert found is not None
        return found.title, found.state

    with rabbit.queues(), Connection(rabbit.url) as connection:
        channel = connection.channel()
        for name in ("assignment", "maintenance"):
            Queue(name, channel=channel, durable=True).declare()
        producer = Producer(channel, routing_key="assignment")
        for _ in range(2):
            producer.publish("{}")

        def depth() -> int | None:
            queues = {each.name: each.depth for each in read_once(settings).celery_queues}
            return queues["assignment"]

        wait_until(lambda: depth() == 2, "the messages to be counted")
        assert broker() == ("RabbitMQ (broker)", HealthState.GOOD)
        rabbit.freeze()
        try:
            began = time.monotonic()
            assert broker() == ("RabbitMQ (broker)", HealthState.DOWN)
            assert time.monotonic() - began < ONCE_SECONDS + 2
        finally:
            rabbit.thaw()
        wait_until(lambda: broker()[1] is HealthState.GOOD, "RabbitMQ to be good again")


def test_a_client_returns_to_its_first_node_and_the_others_may_be_lost(
    stack: Stack, rabbit: Rabbit
) -> None:
    with wire(rabbit.url) as first, wire(rabbit.url) as other:
        stack.broker_url = rabbit.url
        stack.start("sequencer")
        stack.built()
        first.cut()
        stack.broker_url = f"{first.url};{other.url}"
        client = stack.client()
        assert isinstance(client.request_next(26), Assigned)
        first.mend()

        def went_over_the_first() -> bool:
            before = other.sent
            assert not isinstance(client.request_next(26), Unavailable)
            return other.sent == before

        wait_until(went_over_the_first, "the return")
        other.cut()
        began = time.monotonic()
        assert isinstance(client.request_next(27), Assigned)
        assert time.monotonic() - began < 2, "the lost node was not in use"


def test_a_queue_that_confirms_late_gets_each_message_once(stack: Stack, rabbit: Rabbit) -> None:
    """A node that answers keeps its connection: what it has is for the queue's next leader."""
    with Connection(rabbit.url) as connection:
        own = {"x-queue-type": "quorum"}
        Queue("maintenance", channel=connection.channel(), queue_arguments=own).queue_declare()
    client = stack.client()
    assert isinstance(client.regenerate(), str)
    rabbit.suspend_leader("maintenance", seconds=CONFIRM_SECONDS - 1)
    assert isinstance(client.regenerate(), str)
    assert waiting(stack, "maintenance") == 2
    with rabbit.without_leader("maintenance"):
        assert isinstance(client.regenerate(), Unavailable)
        undeclared = client.request_next(26)
        assert isinstance(undeclared, Unavailable), "which costs the other message nothing"
    wait_until(lambda: waiting(stack, "maintenance") == 3, "the one that was late")
