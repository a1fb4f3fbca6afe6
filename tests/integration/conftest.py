"""A world for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.world import World, opened


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """A dialer's world without agents and users, in a database of its own."""
    with opened(database_url) as made:
        yield made
