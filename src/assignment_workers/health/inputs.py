"""Read all servers of the system at the same time, to find out its health."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NoReturn

from assignment_workers.assignment.crm.external_crm import configured
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.health import certificates, servers
from assignment_workers.health.database import DatabaseReader
from assignment_workers.health.judgement import Installation
from assignment_workers.health.readings import (
    NOT_NAMED,
    READING_SECONDS,
    InputReader,
    NotRead,
    Readings,
)
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings

OTHER_QUEUES = ("maintenance", "heartbeats")
"""The Celery queues that are not assignment queues."""


class Inputs:
    """Reads PostgreSQL, the broker, Redis, the certificates and an external CRM, all at once."""

    def __init__(self, settings: Settings) -> None:
        lanes, dialer = lanes_of(settings), loaded()
        crm = configured(dialer, settings)
        broker_url = settings.broker_url or settings.redis_url
        is_rabbitmq = broker_url is not None and broker_url.startswith("amqp")
        self.installation = Installation(
            lanes=lanes,
            queues=tuple(dialer.policies),
            broker="RabbitMQ" if is_rabbitmq else "Redis",
            external_crm=crm is not None,
            crm_grace=settings.crm_grace,
        )
        queues = (*lanes.celery_queues, *OTHER_QUEUES)
        self._facts = DatabaseReader(settings.database, lanes, dialer, own_crm=crm is None)
        self._database = InputReader("postgresql", self._facts)
        self._broker = InputReader(
            "broker", servers.broker_reader(broker_url, queues) if broker_url else _not_named
        )
        self._results = InputReader(
            "results",
            servers.results_reader(settings.redis_url) if settings.redis_url else _not_named,
        )
        self._certificates = InputReader("certificates", certificates.reader(settings))
        self._crm = None if crm is None else InputReader("crm", crm.trouble)
        self._external = crm

    def read(self, *, within: float = READING_SECONDS) -> Readings:
        """Read every server within `within` seconds.

        A server that answers later counts as not answering. If a server is still being read for an
        earlier call, this call waits for that reading and starts no other.
        """
        until = time.monotonic() + within
        self._database.begin()
        self._broker.begin()
        self._results.begin()
        self._certificates.begin()
        if self._crm is not None:
            self._crm.begin()
        return Readings(
            database=self._database.result(until),
            broker=self._broker.result(until),
            results=self._results.result(until),
            certificates=self._certificates.result(until),
            crm=None if self._crm is None else self._crm.result(until),
            at=datetime.now(UTC),
        )

    def close(self) -> None:
        """Close the connections to PostgreSQL and to an external CRM. No others are kept open."""
        self._facts.close()
        if self._external is not None:
            self._external.close()


def _not_named() -> NoReturn:
    raise NotRead(NOT_NAMED)
