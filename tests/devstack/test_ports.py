"""A server's address is kept between starts; a port in use is one line that names the setting."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from assignment_workers.devstack.ports import is_free, remembered, require_free
from assignment_workers.errors import UsageError


def test_an_address_is_remembered_and_private(tmp_path: Path) -> None:
    file = tmp_path / "address.json"
    first = remembered(file)
    assert remembered(file) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_port_is_remembered_when_the_first_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "address.json"
    first = remembered(file)
    with socket.create_server(("127.0.0.1", first.port)):
        second = remembered(file)
    assert second.port != first.port
    assert second.password == first.password
    assert remembered(file) == second


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_a_port_in_use_names_the_setting_to_change(host: str) -> None:
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(UsageError) as refused:
            require_free(port, purpose="Flower", setting="ASSIGNMENT_WORKERS_FLOWER_PORT")
    assert str(port) in str(refused.value)
    assert "ASSIGNMENT_WORKERS_FLOWER_PORT" in str(refused.value)


def test_a_port_with_only_closed_connections_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    assert is_free(port)
