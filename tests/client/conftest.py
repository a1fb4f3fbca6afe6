"""A worker that a test plays by hand, on a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.worker import Worker


@pytest.fixture
def worker(redis_url: str) -> Iterator[Worker]:
    with Worker(redis_url) as played:
        yield played
