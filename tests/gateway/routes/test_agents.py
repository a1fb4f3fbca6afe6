"""Offers, states and signs of life, through the gateway and by each client of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from uuid import UUID

import pytest

from assignment_workers.assignment.answers import Code, Noted, Stated
from assignment_workers.client import (
    Assigned,
    AsyncClient,
    AsyncHttpClient,
    Client,
    EventsRefused,
    Finished,
    Hold,
    HttpClient,
    Refused,
)
from assignment_workers.client.assignment_client import AssignmentClient
from tests.gateway.stage import Gateway


@pytest.fixture(params=["over Celery", "over HTTP"])
def client(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[AssignmentClient]:
    if request.param == "over HTTP":
        with HttpClient(gateway.url, token=gateway.tokens["frontend"]) as made:
            yield made
    else:
        with Client.connect(gateway.stack.redis_url) as made:
            yield made


def assigned(client: AssignmentClient, agent: int) -> Assigned:
    answer = client.request_next(agent)
    assert isinstance(answer, Assigned), answer
    return answer


def test_an_offer_is_taken_up_put_off_and_closed(client: AssignmentClient) -> None:
    held = assigned(client, 81).assignment
    assert held.accepted_at is None
    taken = client.accept(held.id, 81)
    assert isinstance(taken, Finished)
    assert (taken.outcome, taken.assignment.version) == ("accepted", held.version)
    assert taken.assignment.accepted_at is not None
    assert taken.assignment.lease_expires_at > held.lease_expires_at
    again = client.accept(held.id, 81, version=held.version)
    assert isinstance(again, Finished)
    assert again.replayed
    later = client.defer(held.id, 81, seconds=3_600, why="at work")
    assert isinstance(later, Finished)
    assert (later.outcome, later.assignment.state) == ("deferred", "skipped")
    other = assigned(client, 81).assignment
    assert other.user_id != held.user_id
    gone = client.close_user(other.id, 81, "moved away")
    assert isinstance(gone, Finished)
    assert gone.outcome == "closed"
    late = client.accept(other.id, 81)
    assert isinstance(late, Refused)
    assert late.code == "not_active"


def test_a_hold_in_hand_is_put_off_or_closed(client: AssignmentClient) -> None:
    with client.holding(82) as held:
        assert isinstance(held, Hold)
        put_off = held.defer(seconds=60)
        assert isinstance(put_off, Finished)
        assert put_off.outcome == "deferred"
    with client.holding(82) as held:
        assert isinstance(held, Hold)
        closed = held.close_user("moved away")
        assert isinstance(closed, Finished)
        assert closed.outcome == "closed"


def test_who_goes_on_break_loses_an_offer_and_is_handed_nobody(client: AssignmentClient) -> None:
    held = assigned(client, 83).assignment
    away = client.state(83, "break", why="lunch")
    assert isinstance(away, Stated)
    assert away.released == held.id
    refused = client.request_next(83)
    assert isinstance(refused, Refused)
    assert refused.code == "on_break"
    assert refused.reason == "agent 83 is on break; state available to go on"
    back = client.state(83, "available")
    assert isinstance(back, Stated)
    assert not back.replayed
    client.release(assigned(client, 83).assignment.id, 83)


def test_the_first_sign_of_life_that_names_an_offer_accepts_it(client: AssignmentClient) -> None:
    held = assigned(client, 84).assignment
    alive = client.heartbeat(84)
    assert isinstance(alive, Noted)
    assert (alive.assignment_id, alive.lease_expires_at) == (held.id, held.lease_expires_at)
    taken = client.heartbeat(84, assignment_id=held.id)
    assert isinstance(taken, Noted)
    assert taken.lease_expires_at is not None
    assert taken.lease_expires_at > held.lease_expires_at
    foreign = client.heartbeat(85, assignment_id=held.id)
    assert isinstance(foreign, Refused)
    assert foreign.code == "not_owner"
    assert isinstance(client.heartbeat(999_999), Refused)
    client.release(held.id, 84)


def test_signs_of_life_that_come_together_are_each_answered(gateway: Gateway) -> None:
    found: dict[int, str] = {}

    def beat(agent: int) -> None:
        answer = gateway.post(f"/v1/agents/{agent}/heartbeat", {})
        found[agent] = answer.json["outcome"]

    together = [threading.Thread(target=beat, args=(agent,)) for agent in (*range(1, 25), 999_999)]
    for each in together:
        each.start()
    for each in together:
        each.join()
    assert found == dict.fromkeys(range(1, 25), "noted") | {999_999: "refused"}
    seen = gateway.stack.value("SELECT count(*) FROM assignment.agents_seen WHERE agent_id < 25")
    assert seen == 24


@pytest.mark.parametrize("way", ["over Celery", "over HTTP"])
def test_coroutines_do_the_same(gateway: Gateway, way: str) -> None:
    def made() -> AsyncClient | AsyncHttpClient:
        if way == "over HTTP":
            return AsyncHttpClient(gateway.url, token=gateway.tokens["frontend"])
        return AsyncClient(gateway.stack.redis_url)

    async def one_agent() -> list[str]:
        async with made() as client:
            answer = await client.request_next(86)
            assert isinstance(answer, Assigned)
            held = answer.assignment
            said = [
                await client.heartbeat(86, assignment_id=held.id),
                await client.accept(held.id, 86),
                await client.defer(held.id, 86, seconds=5),
                await client.state(86, "offline"),
            ]
            again = await client.state(86, "available")
            answer = await client.request_next(86)
            assert isinstance(answer, Assigned)
            closed = await client.close_user(answer.assignment.id, 86, "moved away")
            return [each.outcome for each in (*said, again, closed)]

    assert asyncio.run(one_agent()) == [
        "noted",
        "accepted",
        "deferred",
        "stated",
        "stated",
        "closed",
    ]


def test_both_clients_over_http_read_the_events_that_came_after_one(gateway: Gateway) -> None:
    last = gateway.stack.value("SELECT max(id) FROM assignment.events")
    token = gateway.tokens["supervisor"]
    with HttpClient(gateway.url, token=gateway.tokens["frontend"]) as acting:
        held = assigned(acting, 87).assignment
        acting.release(held.id, 87)
    found = []
    with HttpClient(gateway.url, token=token) as client:
        for event in client.events(agent_id=87, after=last):
            found.append((event.kind, event.assignment_id))
            if event.kind == "released":
                break
    assert found == [("assigned", held.id), ("released", held.id)]

    async def read() -> list[tuple[str, UUID | None]]:
        again = []
        async with AsyncHttpClient(gateway.url, token=token) as client:
            async for event in client.events(agent_id=87, after=last):
                again.append((event.kind, event.assignment_id))
                if event.kind == "released":
                    break
        return again

    assert asyncio.run(read()) == found


def test_events_are_refused_to_a_token_that_is_not_in_force(gateway: Gateway) -> None:
    with HttpClient(gateway.url, token="x" * 40) as client:
        with pytest.raises(EventsRefused) as refused:
            next(client.events())
    assert refused.value.code == Code.UNAUTHENTICATED


def test_how_an_agent_stands_is_told_to_them_alone(gateway: Gateway) -> None:
    gateway.post("/v1/agents/2/state", {"state": "wrap_up"}, bearer="agent 2")
    shown = gateway.get("/v1/agents/2", bearer="agent 2").json
    assert (shown["agent_id"], shown["state"], shown["stale"]) == (2, "wrap_up", False)
    assert gateway.get("/v1/agents/2", bearer="agent 1").status == 403
    assert gateway.get("/v1/agents/999999").status == 404
    odd = gateway.post("/v1/agents/2/state", {"state": "asleep"}, bearer="agent 2")
    assert (odd.status, odd.json["code"]) == (422, "malformed")
    assert "available" in odd.text
    gateway.post("/v1/agents/2/state", {"state": "available"}, bearer="agent 2")
