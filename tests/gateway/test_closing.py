"""What a gateway closes when it ends."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.gateway.browsing import signed_in
from tests.gateway.stage import Gateway, never, scope


def test_a_gateway_that_ends_leaves_no_connection_to_redis_open(gateway: Gateway) -> None:
    """The clients of requests, of the health and of the dashboard's schedule."""
    app, cookie = gateway.app(), signed_in(gateway, "operator")
    port = urlsplit(gateway.stack.redis_url).port

    def connections() -> set[int]:
        found = psutil.Process().net_connections(kind="tcp")
        return {each.laddr.port for each in found if each.raddr[1:] == (port,)}

    async def run() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async with app.router.lifespan_context(app):
            await app(scope("GET", "/jobs", bearer="", cookie=cookie), never, send)
            assert sent[0]["status"] == 200
            assert connections() > before

    before = connections()
    asyncio.run(run())
    assert connections() <= before
