"""The gateway's process: checks the database, then serves HTTP with uvicorn until a signal."""

from __future__ import annotations

import ipaddress
import signal
import socket
from datetime import timedelta

import structlog
import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError, ProgrammingError

from assignment_workers import memory
from assignment_workers.addresses import listen
from assignment_workers.assignment import settings_versions
from assignment_workers.assignment.calling import numbers_of
from assignment_workers.assignment.crm import fact_views
from assignment_workers.assignment.crm.external_crm import checked
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.assignment.suppressions import check_key
from assignment_workers.errors import UsageError
from assignment_workers.gateway.app import create_app
from assignment_workers.gateway.socket_limits import LimitedProtocol
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate
from assignment_workers.schema.engine import ConnectionGate, connect
from assignment_workers.settings import Settings
from assignment_workers.traces import NO_TRACES, Tracing

log = structlog.get_logger()

STATEMENT_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
"""Seconds for which an idle connection stays open.

A browser that makes few calls can make all of them on one connection, if no pause between two calls
is longer than this.
"""
BACKLOG = 1024
GRACE_SECONDS = 5
"""The most seconds that HTTP calls get to finish after the process was asked to stop."""
STALLED_SECONDS = 20
"""Seconds after which a client that does not read the sent data is disconnected."""


def serve(settings: Settings, tracing: Tracing = NO_TRACES) -> int:
    """Run the gateway until a signal ends it; return the exit code.

    Raises `UsageError` if tokens are off where they are required (`wants_tokens`), and
    `DatabaseUnavailable` or `SchemaMismatch` if the database or the CRM cannot be used.
    """
    tokens = wants_tokens(settings)
    gate = ConnectionGate()
    engine = connect(
        settings.database,
        name="assignment-workers gateway",
        statement_timeout=timedelta(seconds=STATEMENT_SECONDS),
        pool_size=4,
        gate=gate,
    )
    tracing.instrument_engine(engine)
    try:
        with engine.connect() as connection:
            migrate.check(connection)
            check_key(connection, numbers_of(settings).reader)
            settings_versions.tell_ignored(connection, loaded(), settings)
            connection.rollback()
            fact_views.prepare_if_possible(connection, loaded(), settings)
    except (OperationalError, ProgrammingError) as error:
        raise migrate.unreachable(error) from error
    crm = checked(loaded(), settings)
    use_fact_schema(engine, loaded(), crm)
    if not tokens:
        log.warning("tokens_off", why="every program on this machine may do everything")
    app = create_app(settings, engine, crm=crm, gate=gate, tokens=tokens, tracing=tracing)
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.gateway_host,
            port=settings.gateway_port,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=settings.gateway_proxies is not None,
            forwarded_allow_ips=settings.gateway_proxies,
            http=LimitedProtocol,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            backlog=BACKLOG,
            ws="none",
        ),
        app,
    )
    # uvicorn raises the signal again after a clean stop; ignored, so that the exit code is ours.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    memory.freeze_loaded_objects()
    server.run([_listening(settings.gateway_host, settings.gateway_port)])
    engine.dispose()
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """A uvicorn server that first ends the event streams when it is asked to stop."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.started:
            await self._app.state.gateway.live.close()
        await super().shutdown(sockets)


def _listening(host: str, port: int) -> socket.socket:
    """Return the listening socket. Accepted connections inherit the socket options set here.

    Raises `UsageError` if the gateway cannot listen on the address.
    """
    listening = listen("ASSIGNMENT_WORKERS_GATEWAY_PORT", host, port, backlog=BACKLOG)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)
    return listening


def wants_tokens(settings: Settings) -> bool:
    """Return True if callers need a token.

    Tokens may be off only if two conditions hold: the gateway listens on a loopback address, and
    `assignment-workers up` runs PostgreSQL and Valkey itself. Raises `UsageError` if tokens are off
    although one of these conditions does not hold.
    """
    if settings.gateway_tokens != "off":
        return True
    if not (settings.embedded and _is_loopback(settings.gateway_host)):
        raise UsageError(
            "ASSIGNMENT_WORKERS_GATEWAY_TOKENS='off': only with the embedded servers "
            "and on a loopback address"
        )
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
