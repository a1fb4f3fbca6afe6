"""The application: its parts, its routes and its middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import version
from random import Random

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from redis import Redis
from sqlalchemy import Engine

from assignment_workers.assignment.answer_counts import AnswerTally
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.lanes import checked_lanes
from assignment_workers.client import AsyncClient
from assignment_workers.client.wire.redis_clients import redis_client
from assignment_workers.clock import system_clock
from assignment_workers.gateway.abandoned import Abandoned
from assignment_workers.gateway.answer_log import AnswerLog, CountedAnswers
from assignment_workers.gateway.auth.audit import AccessLog
from assignment_workers.gateway.auth.callers import Callers
from assignment_workers.gateway.auth.doorkeeper import Doorkeeper
from assignment_workers.gateway.auth.tokens import of_stack
from assignment_workers.gateway.command_dispatcher import CommandDispatcher
from assignment_workers.gateway.dashboard import pages, runbooks
from assignment_workers.gateway.dashboard.page_rendering import Dashboard
from assignment_workers.gateway.dashboard.render import environment
from assignment_workers.gateway.dashboard.schedule import Schedule
from assignment_workers.gateway.dashboard.views import PageSource
from assignment_workers.gateway.dependencies import Gateway
from assignment_workers.gateway.events.live import Live
from assignment_workers.gateway.heartbeats import Heartbeats
from assignment_workers.gateway.limits import (
    SECURITY_HEADERS,
    BodyLimit,
    OwnPages,
    SecurityHeaders,
    TokenBucket,
)
from assignment_workers.gateway.metrics import Metrics, StoredFigures
from assignment_workers.gateway.problems import REQUEST_ID, handle, problem
from assignment_workers.gateway.read_cache import ReadCache
from assignment_workers.gateway.routes import agents, dead_letters, meta, operators, persons
from assignment_workers.gateway.routes import settings as settings_routes
from assignment_workers.gateway.system_health import SystemHealth
from assignment_workers.origins import Origins
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.engine import ConnectionGate
from assignment_workers.settings import Settings
from assignment_workers.traces import NO_TRACES, Tracing


def create_app(
    settings: Settings,
    engine: Engine,
    *,
    crm: Crm | None = None,
    gate: ConnectionGate | None = None,
    tokens: bool,
    tracing: Tracing = NO_TRACES,
) -> FastAPI:
    """Return the FastAPI application of a gateway.

    It uses the database of `engine` and the Redis of `settings`. `crm`: the external CRM; None if
    the CRM is in the database of `engine`. `gate`: the object by which `engine` refuses new
    connections while the database does not answer. `tokens` False: no token is needed, and every
    caller may do everything.
    """
    origins = Origins.of(
        settings.allowed_hosts, settings.gateway_origins, listens=settings.gateway_host
    )
    metrics = Metrics()
    lanes = checked_lanes(settings, loaded().policies)
    read_cache = ReadCache(engine, crm, lanes)
    health = SystemHealth(settings, engine, gate or ConnectionGate())
    metrics.registry.register(StoredFigures(read_cache, lambda: health.latest))
    access = AccessLog(engine, lambda: datetime.now(UTC))
    answers = AnswerLog(engine, AnswerTally(system_clock))
    callers = Callers(
        engine,
        tokens,
        TokenBucket(settings.gateway_token_rate),
        TokenBucket(settings.gateway_agent_rate),
        of_stack(settings.stack_token),
        access.used,
        access.acted,
    )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(health.start)
        abandoned = Abandoned()
        client = AsyncClient(
            settings.redis,
            broker_url=settings.broker_url,
            lanes=lanes,
            key=settings.signing_key,
            orphaned=lambda _, answer: abandoned(answer),
            tracing=tracing,
        )
        abandoned.client = client
        live = Live(engine, settings.lock_database_url or settings.database)
        redis = _redis(settings)
        metrics.streams.set_function(lambda: live.readers)
        app.state.gateway = Gateway(
            engine,
            crm,
            CommandDispatcher(client, metrics, abandoned),
            callers,
            live,
            read_cache,
            Heartbeats(engine, settings),
            Random(),
            settings,
            health,
        )
        app.state.dashboard = Dashboard(
            engine,
            client,
            callers,
            live,
            PageSource(read_cache, Schedule(redis), settings),
            flower_url(settings),
            secure=not settings.embedded,
            templates=environment(settings.environment),
            health=health,
            secret=settings.stack_token,
        )
        access.start()
        answers.start()
        yield
        await live.close()
        await access.close()
        await answers.close()
        await app.state.gateway.heartbeats.close()
        app.state.dashboard.threads.shutdown(wait=False, cancel_futures=True)
        redis.close()
        await abandoned.close()
        await client.close()
        await asyncio.to_thread(health.stop)

    app = FastAPI(
        title="assignment-workers",
        version=version("assignment-workers"),
        summary="Hands each call-centre agent the next user to call: each user to one agent.",
        lifespan=life,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=tracing.gateway_telemetry(),
    )
    for each in (
        agents.QUICK,
        agents.ROUTES,
        operators.ROUTES,
        dead_letters.ROUTES,
        persons.ROUTES,
        settings_routes.ROUTES,
        meta.ROUTES,
        meta.DOCUMENT,
        pages.ROUTES,
        runbooks.ROUTES,
    ):
        app.include_router(each)
    handle(app, callers.caller)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        # This response is made outside of all middleware, so its headers are added here.
        detail = "the gateway failed; its log tells how"
        response = problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)
        response.raw_headers += SECURITY_HEADERS
        return response

    app.add_middleware(BodyLimit)
    if origins.pages:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(origins.pages),
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=[REQUEST_ID, "Retry-After", "Date"],
        )
    app.add_middleware(OwnPages, origins=origins)
    app.add_middleware(
        Doorkeeper,
        callers=callers,
        access=access,
        metrics=metrics,
        answers=health.answers,
        pace=TokenBucket(settings.gateway_refusal_rate),
    )
    app.add_middleware(CountedAnswers, counts=answers.counts)
    app.add_middleware(SecurityHeaders)
    return app


def flower_url(settings: Settings) -> str | None:
    """Return the address of Flower for the dashboard; None if it is unknown."""
    if settings.flower_url is None and (settings.embedded or settings.stack_token):
        return f"http://127.0.0.1:{settings.flower_port}"
    return settings.flower_url


def _redis(settings: Settings) -> Redis:
    return redis_client(settings.redis, protocol=2, socket_timeout=1, socket_connect_timeout=1)
