"""Addresses that a client is given: another form is refused at once, in one line."""

from __future__ import annotations

import asyncio

import pytest

from assignment_workers.client import AsyncClient, AsyncHttpClient, Client, HttpClient
from assignment_workers.errors import UsageError

WRONG = {
    "nonsense": "redis_url: the scheme is ''",
    "": "redis_url: the scheme is ''",
    "localhost:6379": "redis_url: the scheme is 'localhost'",
    "http://localhost:6379": "accepted: redis, rediss",
    "redis://localhost:six": "redis_url: the port is not a number",
    "redis://:pass[word@localhost:6379": "redis_url: the port is not a number",
    "amqp://localhost": "redis_url: the scheme is 'amqp'",
}


@pytest.mark.parametrize("url", WRONG)
def test_an_address_of_another_form_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(UsageError, match=WRONG[url]) as told:
        Client.connect(url)
    assert "\n" not in str(told.value)
    assert "word" not in str(told.value).replace("password are", "")

    async def connect() -> None:
        AsyncClient(url)

    with pytest.raises(UsageError, match=WRONG[url]):
        asyncio.run(connect())


def test_the_broker_s_own_address_is_judged_too() -> None:
    with pytest.raises(UsageError, match="broker_url: the scheme is 'kafka'"):
        Client.connect("redis://localhost", broker_url="kafka://localhost")
    Client.connect("redis://localhost", broker_url="amqp://localhost").close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "gateway_url: the scheme is ''"),
        ("localhost:8000", "gateway_url: the scheme is 'localhost'"),
        ("http://", "gateway_url: the host is missing"),
        ("http://localhost:six", "gateway_url: the port is not a number"),
    ],
)
def test_an_address_of_no_gateway_is_refused(url: str, told: str) -> None:
    for made in (HttpClient, AsyncHttpClient):
        with pytest.raises(UsageError, match=told):
            made(url)
