"""Runs one process of this system in the foreground, until a signal ends it.

The function `run` prepares logs, metrics and traces, and then calls the function of the process in
`PROCESSES`. These are the processes:

* `sequencer`: the Celery worker on the assignment queue of a lane, which leads or stands by;
* `maintenance`: the Celery worker for jobs, such as builds of dialer queues, and for heartbeats,
  the agents' signs of presence;
* `heartbeats`: an additional Celery worker for heartbeats alone;
* `beat`: Celery beat, which sends the messages that start the jobs;
* `flower`: Flower, which shows the workers and their tasks in a browser;
* `gateway`: the HTTP server for agents and operators.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
import structlog
from celery import signals
from celery.exceptions import SecurityWarning
from celery.worker import state
from sqlalchemy.exc import OperationalError, ProgrammingError

from assignment_workers import logs, memory, telemetry, traces, versions
from assignment_workers.addresses import REDIS, listen
from assignment_workers.assignment import settings_changes, settings_versions
from assignment_workers.assignment.calling import numbers_of, policies_of
from assignment_workers.assignment.crm import fact_views, mirror_tables
from assignment_workers.assignment.crm.external_crm import checked
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.assignment.generations import dialer_queues
from assignment_workers.assignment.lanes import VARIABLE, checked_lanes
from assignment_workers.assignment.suppressions import check_key
from assignment_workers.client.wire.redis_clients import redis_client
from assignment_workers.errors import UsageError
from assignment_workers.health import signs as life_signs
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate
from assignment_workers.schema.engine import connect, direct_url
from assignment_workers.schema.tables import DEFAULT_LANE
from assignment_workers.sequencer.event_buffer import EventBuffer
from assignment_workers.sequencer.first_node import FirstNode
from assignment_workers.sequencer.leadership import Leadership
from assignment_workers.sequencer.refusals import Refusals
from assignment_workers.sequencer.sequencer import Sequencer
from assignment_workers.sequencer.suspects import Suspects
from assignment_workers.sequencer.term import Candidacy
from assignment_workers.sequencer.transport import Consumption, install, pooled_producer
from assignment_workers.settings import ProcessName, Settings
from assignment_workers.tasks.app import HEARTBEATS, MAINTENANCE, create_app
from assignment_workers.tasks.flower import guard_flower
from assignment_workers.tasks.task_handler import App
from assignment_workers.traces import Tracing

log = structlog.get_logger()

TURN_SECONDS = 5
"""The most seconds that one statement of a sequencer or of a heartbeat worker may take."""
PROBE_EXPIRES = 600
"""Seconds after which a probe that no sequencer has handled is dropped.

A probe is the message that a sequencer sends to itself to prove that it still leads.
"""
HEARTBEAT_SECONDS = 3
"""Seconds between RabbitMQ's connection heartbeats, for processes whose tasks are short.

Redis has no such heartbeats.
"""
FLOWER_COLUMNS = "name,state,args,result,received,runtime,worker,uuid"
"""The columns of Flower's task list, in order.

The column `worker` has the name of the process that received the task.
"""
FLOWER_TASKS = "5000"
"""The number of tasks that Flower remembers, at about 10 kB each. Flower's default: 100,000."""
JOB_SECONDS = 1800
"""The most seconds that one statement of a job may take. A build of tens of millions of users takes
minutes.
"""


def run(name: ProcessName, settings: Settings, *, lane: str | None = None) -> int:
    """Run the process `name` in the foreground until a signal ends it; return the exit code.

    `settings` has the servers' addresses. `lane`: the lane of a sequencer; None: the default lane.
    Raises `UsageError` for an unknown lane, or for an invalid setting such as the hours in which
    users may be called. Raises `DatabaseUnavailable` or `SchemaMismatch`, before anything is
    started, if the database is not set up or not up to date.
    """
    dialer = loaded()
    policies_of(dialer, settings)
    lanes = checked_lanes(settings, dialer.policies)
    if lane is not None and (name != "sequencer" or lane not in lanes.names):
        raise UsageError(
            f"--lane {lane}: a sequencer's, and one of {', '.join(lanes.names)};"
            f" {VARIABLE} names them"
        )
    logs.set_up(settings.log_format, settings.log_level)
    for line in versions.untested():
        log.warning("version_not_tested", why=line)
    if settings.metrics_port is not None and name in EXPORTING:
        telemetry.export(settings.metrics_host, settings.metrics_port)
    tracing = traces.NO_TRACES if name == "flower" else traces.set_up(os.environ)
    return _sequencer(settings, tracing, lane) if lane else PROCESSES[name](settings, tracing)


def _sequencer(settings: Settings, tracing: Tracing, lane: str = DEFAULT_LANE) -> int:
    app = create_app(settings, tracing)
    app.engine = connect(
        settings.database,
        name="assignment-workers turns",
        statement_timeout=timedelta(seconds=TURN_SECONDS),
        lock_timeout=timedelta(seconds=TURN_SECONDS),
        pool_size=2,
        index_plans_only=True,
    )
    tracing.instrument_engine(app.engine)
    _check(app)
    _use_crm(app)
    queue = app.lanes.celery_queue(lane)
    candidacy = Candidacy(direct_url(settings), dialer=app.dialer, lane=lane, lanes=app.lanes)
    if wrong := candidacy.disagreement():
        raise UsageError(wrong)
    app.sequencer = Sequencer(
        app.engine,
        candidacy,
        crm=app.crm,
        queue=queue,
        lanes=app.lanes,
        send_probe=lambda: _send_probe(app, queue),
        begin=lambda runner: runner.run(lambda each: settings_changes.begin(each, settings)),
    )
    # RabbitMQ serves the next sequencer once it has missed two heartbeats of this one.
    app.conf.broker_heartbeat = HEARTBEAT_SECONDS
    app.steps["consumer"].update([Leadership, EventBuffer])
    pool = "assignment_workers.sequencer.pool:TaskPool"
    code = _work(app, "sequencer", (queue,), app.assignment_tasks, pool, lane=lane)
    return os.EX_TEMPFAIL if app.sequencer.lost else code


def _send_probe(app: App, queue: str) -> None:
    with pooled_producer(app) as producer:
        app.send_task(
            "assignment.probe",
            [datetime.now(UTC).isoformat()],
            queue=queue,
            ignore_result=True,
            expires=PROBE_EXPIRES,
            retry=False,
            producer=producer,
        )


def _maintenance(settings: Settings, tracing: Tracing) -> int:
    app = create_app(settings, tracing)
    app.engine = connect(
        settings.database,
        name="assignment-workers maintenance",
        statement_timeout=timedelta(seconds=JOB_SECONDS),
        lock_timeout=timedelta(seconds=60),
        pool_size=6,
    )
    tracing.instrument_engine(app.engine)
    _check(app)
    with app.engine.connect() as connection:
        mirror_tables.prepare(connection, app.dialer, settings)
    _use_crm(app)
    queues = MAINTENANCE, HEARTBEATS
    return _work(app, "maintenance", queues, app.maintenance_tasks, "solo")


def _heartbeats(settings: Settings, tracing: Tracing) -> int:
    app = create_app(settings, tracing)
    app.engine = connect(
        settings.database,
        name="assignment-workers heartbeats",
        statement_timeout=timedelta(seconds=TURN_SECONDS),
        lock_timeout=timedelta(seconds=TURN_SECONDS),
    )
    tracing.instrument_engine(app.engine)
    _check(app)
    app.conf.broker_heartbeat = HEARTBEAT_SECONDS
    return _work(app, "heartbeats", (HEARTBEATS,), app.heartbeat_tasks, "solo")


def _work(
    app: App,
    role: ProcessName,
    queues: Sequence[str],
    tasks: frozenset[str],
    pool: str,
    *,
    lane: str | None = None,
) -> int:
    """Run a Celery worker that carries out `tasks` from the Celery queues `queues`.

    Returns the exit code. `pool` is the name of Celery's pool class. `lane`: the lane of a
    sequencer; None for other processes.

    The worker's consumer refuses some messages before their tasks run. The dead letter of such a
    message is stored under the name of the first of `queues`, even if the message was on another
    one. A message that the Redis transport itself refuses is stored under the name of its own
    queue.
    """
    name = role if lane in {None, DEFAULT_LANE} else f"{role}-{lane}"
    largest = app.settings.message_maximum
    app.consumed, app.served = queues, tasks
    app.refusals = Refusals(app.engine, app.backend, largest=largest)
    app.suspects = Suspects(app.engine, app.results)
    signals.worker_shutting_down.connect(app.suspects.excuse_soon, weak=False)
    app.consumption = Consumption(on_malformed=app.refusals.refuse, largest=largest)
    install(app.consumption, ordered=tasks == app.assignment_tasks)
    signals.setup_logging.connect(lambda **_: None, weak=False)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # only JSON is read, root or not
    app.steps["consumer"].add(FirstNode)
    worker = app.Worker(
        hostname=f"{name}-{os.getpid()}@{socket.gethostname()}",
        queues=list(queues),
        pool_cls=pool,
        consumer_cls="assignment_workers.sequencer.consumer:Consumer",
        concurrency=1,
        loglevel="INFO",
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    signals.worker_ready.connect(lambda **_: memory.freeze_loaded_objects(), weak=False)
    with life_signs.alive(
        app.settings.redis, role, lane=lane, folder=app.settings.home, more=lambda: _doing(app)
    ) as end:
        worker.start()
        end.in_order = not worker.exitcode
    return int(worker.exitcode or 0)


def _doing(app: App) -> dict[str, Any]:
    """Return the facts that a worker adds to its sign of life.

    `task` and `task_since` are the running task and its start, if a task runs. Only a sequencer has
    `leads`: True if it leads its lane.
    """
    facts: dict[str, Any] = {}
    if app.serves in app.lanes.celery_queues:
        facts = {
            "leads": app.sequencer.leads,
        }
    try:
        request = next(iter(state.active_requests), None)
    except RuntimeError:  # a task began or ended meanwhile
        request = None
    if request is None:
        return facts
    began = request.time_start
    since = None if began is None else datetime.fromtimestamp(began, UTC)
    return {**facts, "task": request.name, "task_since": since}


def _beat(settings: Settings, tracing: Tracing) -> int:
    app = create_app(settings, tracing)
    signals.setup_logging.connect(lambda **_: None, weak=False)
    with life_signs.alive(settings.redis, "beat", folder=settings.home):
        app.start(["--quiet", "beat", "--loglevel=INFO", "--pidfile="])


def _flower(settings: Settings, tracing: Tracing) -> int:
    app = create_app(settings, tracing)
    signals.setup_logging.connect(lambda **_: None, weak=False)
    argv = ["--quiet", "flower", f"--port={settings.flower_port}", "--persistent=False"]
    argv.append(f"--tasks_columns={FLOWER_COLUMNS}")
    os.environ.setdefault("FLOWER_MAX_TASKS", FLOWER_TASKS)
    if not settings.flower_basic_auth:
        raise UsageError(
            "ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH is not set: Flower needs user:password"
        )
    argv += [f"--basic_auth={settings.flower_basic_auth}", f"--address={settings.flower_host}"]
    # Flower's buttons and API could change what the workers do, and send any message.
    os.environ.setdefault("FLOWER_READ_ONLY", "true")
    guard_flower(settings)
    # Flower itself ends with a traceback where it cannot listen.
    listen("ASSIGNMENT_WORKERS_FLOWER_PORT", settings.flower_host, settings.flower_port).close()
    with life_signs.alive(settings.redis, "flower", folder=settings.home):
        app.start(argv)


def _gateway(settings: Settings, tracing: Tracing) -> int:
    from assignment_workers.gateway.serve import serve

    direct_url(settings)
    return serve(settings, tracing)


def _check_redis(settings: Settings) -> None:
    """Raise `UsageError` for a Redis that could lose or reorder messages, or accepts no messages.

    A Redis that cannot be reached is not checked; a warning is logged.
    """
    for setting, url in (("REDIS_URL", settings.redis), ("BROKER_URL", settings.broker_url)):
        if url is None or not url.startswith(REDIS):
            continue
        try:
            with redis_client(url, socket_timeout=5, socket_connect_timeout=5) as server:
                said = server.info()
        except redis.RedisError as error:
            log.warning("redis_not_checked", setting=setting, error=str(error))  # Celery waits
            continue
        wrong = _unfit(said)
        if wrong:
            raise UsageError(f"{setting} leads to {wrong}")


def _unfit(said: Mapping[str, object]) -> str | None:
    role, policy = said.get("role"), said.get("maxmemory_policy")
    mode = said.get("server_mode") or said.get("redis_mode")  # Valkey's or Redis's word
    if mode == "cluster":
        return (
            "a Redis in cluster mode, which has no one order of messages; use one primary with"
            " replicas, and Sentinel to fail over: sentinel://host:26379/0?master_name=…"
        )
    if mode == "sentinel":
        return "a Sentinel; write it as sentinel://host:26379/0?master_name=…"
    if role == "slave":
        return "a replica, which takes no messages; the primary is needed"
    if str(policy).startswith("allkeys"):
        return (
            f"a Redis that may throw messages away (maxmemory-policy {policy});"
            " noeviction is needed"
        )
    return None


def _use_crm(app: App) -> None:
    app.crm = checked(app.dialer, app.settings)
    use_fact_schema(app.engine, app.dialer, app.crm)


def _check(app: App) -> None:
    _check_redis(app.settings)
    try:
        with app.engine.connect() as connection:
            migrate.check(connection)
            check_key(connection, numbers_of(app.settings).reader)
            settings_versions.tell_ignored(connection, app.dialer, app.settings)
            dialer_queues.store_names(connection, app.dialer.policies)
            connection.commit()
            fact_views.prepare_if_possible(connection, app.dialer, app.settings)
    except (OperationalError, ProgrammingError) as error:
        raise migrate.unreachable(error) from error


EXPORTING = ("sequencer", "maintenance", "heartbeats", "beat")
"""Processes that serve Prometheus metrics at `metrics_port`. The gateway and Flower have endpoints
of their own.
"""

PROCESSES: dict[ProcessName, Callable[[Settings, Tracing], int]] = {
    "sequencer": _sequencer,
    "maintenance": _maintenance,
    "heartbeats": _heartbeats,
    "beat": _beat,
    "flower": _flower,
    "gateway": _gateway,
}
