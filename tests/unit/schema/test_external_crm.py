"""Connections to an external CRM that accepts a connection and then sends nothing."""

from __future__ import annotations

import socket
import time

import pytest
from sqlalchemy.exc import OperationalError

from assignment_workers.schema.deadline import MARGIN_SECONDS
from assignment_workers.schema.external_crm import reader

SECONDS = 0.2


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "mariadb"])
def test_the_driver_waits_longer_than_its_caller_and_not_for_ever(scheme: str) -> None:
    """The caller's limit is reached first: the reason is `no answer`, on each server alike."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://a:b@127.0.0.1:{silent.getsockname()[1]}/crm"
        engine = reader(url, SECONDS, pool=1)
        began = time.monotonic()
        with pytest.raises(OperationalError):
            engine.connect()
        waited = time.monotonic() - began
        engine.dispose()
    assert SECONDS + 1 < waited < SECONDS + MARGIN_SECONDS + 5
