"""One stack with a gateway for all tests of this folder; it lasts for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.serving import serving
from tests.gateway.stage import Gateway


@pytest.fixture(scope="session")
def gateway(
    postgres_server: str,
    migrated_template: str,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with serving(
        "gateway", postgres_server, migrated_template, valkey_server, folder, redis_database=0
    ) as found:
        yield found
