"""Ports on this machine: tests whether a port is free, and the addresses of embedded servers."""

from __future__ import annotations

import errno
import itertools
import random
import secrets
import socket
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assignment_workers.runtime.errors import PortTaken, StackFailed
from assignment_workers.runtime.home import write_private

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - tried, never served
CHOICE = range(20_000, 32_000)
"""The range of ports for embedded servers, below the ports that the system uses for outgoing
connections. Otherwise an outgoing connection could take the port of a server between two starts.
"""


class Address(BaseModel):
    """The port of an embedded server on the loopback interface, and the password for it."""

    model_config = ConfigDict(frozen=True)

    port: int = Field(ge=1, le=65535)
    password: str


def remembered(file: Path) -> Address:
    """Return the address stored in `file`, so that a server keeps its port and password.

    If there is none, a new address is chosen. If the stored port is in use, another port is chosen.
    The result is stored.
    """
    try:
        address = Address.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        address = Address(port=free_ports(1)[0], password=secrets.token_hex(24))
    else:
        if is_free(address.port):
            return address
        address = address.model_copy(update={"port": free_ports(1)[0]})
    write_private(file, address.model_dump_json())
    return address


def require_free(port: int, *, purpose: str, setting: str) -> None:
    """Raise `PortTaken` if any program listens on the port.

    The message has the `purpose` of the port and the name of the `setting` to change.
    """
    if not is_free(port, host=EVERY_ADDRESS):
        raise PortTaken(port, purpose=purpose, setting=setting, holder=_holder(port))


def _holder(port: int) -> str | None:
    """Return a description of the process that listens on the port; None if it cannot be found."""
    try:
        listening = [
            each.pid
            for each in psutil.net_connections(kind="tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
        ]
    except (psutil.Error, OSError):
        return None
    pid = next((pid for pid in listening if pid is not None), None)
    if pid is None:
        return None
    try:
        return f"process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"process {pid}"


def is_free(port: int, *, host: str = LOOPBACK) -> bool:
    """Return True if a server could listen on the port now.

    Connections that remain of a server that has just ended do not count.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_ports(count: int) -> list[int]:
    """Return ports of `CHOICE` that are free now. Raises `StackFailed` if there are too few."""
    ports = list(itertools.islice(filter(is_free, random.sample(CHOICE, 100)), count))
    if len(ports) < count:
        raise StackFailed(f"no port is free between {CHOICE.start} and {CHOICE.stop - 1}")
    return ports


def answers_http(host: str, port: int, path: str) -> bool:
    """Return True if a server on this machine answers a GET of `path` with 200 within a second."""
    on_any = host in {EVERY_ADDRESS, "::"}
    connection = HTTPConnection(LOOPBACK if on_any else host, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
