"""A RabbitMQ node of our own, started from the program that Debian installs on this machine.

`up` starts no RabbitMQ. The simulated call centre (`cli.call_centre`) and some tests can start a
node, if the program is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kombu import Connection
from kombu.exceptions import OperationalError

from assignment_workers.devstack.ports import LOOPBACK, free_ports
from assignment_workers.devstack.process import ProcessSpec
from assignment_workers.devstack.server import Server

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The program of Debian's package. Unlike the one in /usr/sbin, it runs as the current account."""
ACCOUNT = "guest:guest"
"""User and password of a new node. RabbitMQ accepts them on the loopback interface only."""
ANSWER_SECONDS = 0.5


@dataclass(frozen=True)
class NodePorts:
    """The loopback ports of a RabbitMQ node: AMQP, Erlang distribution, Erlang's port mapper."""

    node: int
    distribution: int
    mapper: int

    @classmethod
    def free(cls) -> Self:
        """Return three ports that are free now. Raises `StackFailed` if there are too few."""
        return cls(*free_ports(len(cls.__dataclass_fields__)))


def port_mapper(directory: Path, ports: NodePorts) -> ProcessSpec:
    """Return the description of the process of Erlang's port mapper, `epmd`.

    The process must run as long as the node, and also while the node is restarted.
    """
    command: Sequence[str] = ["epmd", "-port", str(ports.mapper), "-address", LOOPBACK]
    return ProcessSpec("epmd", command, log=directory.with_suffix(".epmd"))


def prepare(directory: Path, ports: NodePorts) -> Server:
    """Write the configuration of a RabbitMQ node with its data in `directory`; return the node.

    The port mapper must run before the node is started.
    """
    directory.mkdir(parents=True, exist_ok=True)
    plugins, settings = directory / "plugins", directory / "rabbitmq.conf"
    plugins.write_text("[].", encoding="ascii")
    settings.write_text("", encoding="ascii")
    url = f"amqp://{ACCOUNT}@{LOOPBACK}:{ports.node}//"
    spec = ProcessSpec(
        "rabbitmq",
        [str(PROGRAM)],
        env={
            "HOME": str(directory),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(ports.mapper),
            "RABBITMQ_NODENAME": "own@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(ports.node),
            "RABBITMQ_DIST_PORT": str(ports.distribution),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(settings),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        },
        log=directory / "rabbitmq.log",
        ready=lambda _: _serves(url),
    )
    return Server(spec, url)


def _serves(url: str) -> bool:
    try:
        with Connection(url, connect_timeout=ANSWER_SECONDS) as connection:
            connection.connect()
    except (OSError, OperationalError):
        return False
    return True
