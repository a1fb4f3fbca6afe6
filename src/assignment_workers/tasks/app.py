"""The Celery application, and the settings that no configuration may change."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import amqp
from celery.exceptions import QueueNotFound
from kombu import Queue

from assignment_workers import python_files
from assignment_workers.addresses import SENTINEL, SentinelAddress
from assignment_workers.assignment.lanes import ASSIGNMENT, Lanes, checked_lanes
from assignment_workers.client.wire.redis_clients import sentinel_options, tls_options
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings
from assignment_workers.tasks import assignment, maintenance, results
from assignment_workers.tasks.beat import connect_beat
from assignment_workers.tasks.task_handler import App, HandledTask
from assignment_workers.traces import NO_TRACES, Tracing

MAINTENANCE = "maintenance"
HEARTBEATS = "heartbeats"
"""The Celery queue of agents' heartbeats, which must not wait for jobs. Maintenance workers and
heartbeat workers both consume it.
"""

FIXED: dict[str, object] = {
    "worker_prefetch_multiplier": 1,
    "task_acks_late": True,
    "worker_disable_rate_limits": True,
    "task_create_missing_queues": False,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "enable_utc": True,
    "task_ignore_result": False,
    "task_always_eager": False,
}
"""Celery settings that no configuration file may change.

The order of the assignment queue or the safety of its messages depends on them.
"""

EACH_LANE = ("assignment.expire",)
"""The tasks that beat sends to the assignment queue of every lane."""

SINGLE: dict[str, object] = {"x-queue-type": "quorum", "x-single-active-consumer": True}
"""RabbitMQ arguments of an assignment queue that keep its messages in order and safe."""

_AMQP_OPTIONS = set(inspect.signature(amqp.Connection).parameters)


def create_app(settings: Settings, tracing: Tracing = NO_TRACES) -> App:
    """Create the Celery application with every task, connected to the servers of `settings`.

    The rest of the configuration is from `celeryconfig.py`. Raises `UsageError`, with a text of one
    line, if that file or a setting cannot be used.
    """
    app = App("assignment_workers", set_as_current=False)
    app.config_from_object(_module(settings))
    app.loader.override_backends = results.OVERRIDES
    app.conf.update(
        broker_url=settings.broker_url or settings.redis_url,
        result_backend=settings.redis_url,
        redbeat_redis_url=settings.redis_url,
    )
    for name in ("broker", "result_backend"):
        _name_sentinels(app, name)
        _require_certificate(app, name)
    connect_beat(app)
    dialer = loaded()
    lanes = checked_lanes(settings, dialer.policies)
    _check(app, lanes)
    app.settings, app.lanes, app.tracing = settings, lanes, tracing
    app.dialer, app.crm = dialer, None
    try:
        app.outcomes = dialer.overridden(settings.outcome_changes)
    except ValueError as error:
        raise UsageError(f"ASSIGNMENT_WORKERS_OUTCOMES: {error}") from None
    assignment.register(app)
    app.assignment_tasks = _registered_tasks(app)
    _check_tasks(app, app.assignment_tasks, ASSIGNMENT)
    maintenance.register(app)
    app.maintenance_tasks = _registered_tasks(app) - app.assignment_tasks
    app.heartbeat_tasks = frozenset({"agent.heartbeats"})
    _check_tasks(app, app.maintenance_tasks - app.heartbeat_tasks, MAINTENANCE)
    # A configuration file of 0.1.0 names no queue for heartbeats.
    _check_tasks(app, app.heartbeat_tasks, HEARTBEATS, MAINTENANCE)
    return app


def _require_certificate(app: App, name: str) -> None:
    """Require a valid server certificate for a `rediss:` address, unless its query says otherwise.

    `name` is `broker` or `result_backend`.
    """
    setting = "broker_url" if name == "broker" else name
    url = str(app.conf[setting] or "")
    if url.startswith("rediss:") and "ssl_cert_reqs" not in url:
        app.conf[setting] = f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def _name_sentinels(app: App, name: str) -> None:
    """Set the options by which Celery finds a Redis through Sentinel.

    `name` is `broker` or `result_backend`: the server whose address is read. Options come from this
    address, for example `master_name` from its query, and from Celery's configuration file.

    For each transport option, the value of the file is used if the file has one, and otherwise that
    of the address. The TLS options are all from one source: from the address if it has any TLS
    option, and otherwise from the file. Does nothing if the address is not that of a Sentinel.
    """
    setting = "broker_url" if name == "broker" else name
    url = str(app.conf[setting] or "")
    if not url.startswith(SENTINEL):
        return
    at = SentinelAddress.read(url)
    own: dict[str, Any] = app.conf[f"{name}_transport_options"] or {}
    asked = {**sentinel_options(at), **own.get("sentinel_kwargs", {})}
    app.conf[f"{name}_transport_options"] = {
        "master_name": at.master_name,
        **own,
        "sentinel_kwargs": asked,
    }
    app.conf[setting] = at.for_celery
    if at.tls:
        app.conf["broker_use_ssl" if name == "broker" else "redis_backend_use_ssl"] = {
            "ssl_cert_reqs": "required",
            **tls_options(at),
        }


def _registered_tasks(app: App) -> frozenset[str]:
    """Return the names of this package's tasks that are registered with `app` so far."""
    return frozenset(name for name, task in app.tasks.items() if isinstance(task, HandledTask))


def _module(settings: Settings) -> ModuleType:
    """Load Celery's configuration file and return it as a module.

    The file is the one that the settings name, or else `celeryconfig.py` of the working directory,
    or else that of this package. Raises `UsageError` if the file is missing or cannot be run.
    """
    here = Path("celeryconfig.py")
    packaged = Path(__file__).parent.parent / "_celeryconfig.py"
    in_clone = Path(__file__).parents[3] / "celeryconfig.py"
    if settings.celery_config is not None:
        path = settings.celery_config
        if not path.is_file():
            raise UsageError(
                f"ASSIGNMENT_WORKERS_CELERY_CONFIG={str(path)!r}: there is no such file"
            )
    else:
        path = next((each for each in (here, packaged, in_clone) if each.is_file()), packaged)
    if path.suffix != ".py":
        raise UsageError(f"{path}: not a Python file")
    try:
        return python_files.run(path, "celeryconfig")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: {type(error).__name__}: {reason}") from error


def _check(app: App, lanes: Lanes) -> None:
    for name, value in FIXED.items():
        found = getattr(app.conf, name)
        if found != value:
            raise UsageError(
                f"celeryconfig.py: {name} is {found!r}; the assignment queue needs {value!r}"
            )
    queues = _queues(app)
    if not {ASSIGNMENT, MAINTENANCE} <= queues.keys():
        raise UsageError(
            f"celeryconfig.py: task_queues has {', '.join(sorted(queues)) or 'none'}; "
            f"{ASSIGNMENT} and {MAINTENANCE} are needed"
        )
    if HEARTBEATS not in queues:
        arguments = queues[MAINTENANCE].queue_arguments
        app.conf.task_queues = [
            *(app.conf.task_queues or ()),
            Queue(HEARTBEATS, queue_arguments=arguments),
        ]
    _add_lanes(app, lanes, queues)
    for each in lanes.celery_queues:
        _check_broker(app, _queues(app)[each])


def _queues(app: App) -> dict[str, Any]:
    return {str(getattr(each, "name", "a word")): each for each in app.conf.task_queues or ()}


def _add_lanes(app: App, lanes: Lanes, queues: Mapping[str, Any]) -> None:
    """Add an assignment queue and its beat entries for each lane besides the default one.

    The queue has the arguments of the default assignment queue. A queue that the configuration file
    declares is left as it is.
    """
    for name in lanes.celery_queues[1:]:
        if name not in queues:
            arguments = queues[ASSIGNMENT].queue_arguments
            app.conf.task_queues = [
                *(app.conf.task_queues or ()),
                Queue(name, queue_arguments=arguments),
            ]
        for job, entry in dict(app.conf.beat_schedule or {}).items():
            if entry.get("task") in EACH_LANE and "queue" not in entry.get("options", {}):
                options = {**entry.get("options", {}), "queue": name}
                app.conf.beat_schedule[f"{job}, {name}"] = {**entry, "options": options}


def _check_broker(app: App, assignment: Queue) -> None:
    options: dict[str, Any] = app.conf.broker_transport_options or {}
    if not str(app.conf.broker_url or "").startswith("amqp"):
        if options.get("priority_steps") != [0]:
            raise UsageError(
                "celeryconfig.py: broker_transport_options['priority_steps'] must be [0]: "
                "priorities are several lists, and the assignment queue is one"
            )
        return
    if unknown := options.keys() - _AMQP_OPTIONS:
        raise UsageError(
            f"celeryconfig.py: broker_transport_options has {', '.join(sorted(unknown))}; "
            f"RabbitMQ takes {', '.join(sorted(_AMQP_OPTIONS))}"
        )
    arguments: dict[str, Any] = assignment.queue_arguments or {}
    for name, value in SINGLE.items():
        if arguments.get(name) != value:
            raise UsageError(
                f"celeryconfig.py: {name} of {assignment.name} is {arguments.get(name)!r}; "
                f"on RabbitMQ the assignment queue needs {value!r}"
            )


def _check_tasks(app: App, names: frozenset[str], queue: str, *others: str) -> None:
    for name in sorted(names):
        try:
            found = app.amqp.router.route({}, name)["queue"].name
        except QueueNotFound:
            found = "no Celery queue"
        if found not in {queue, *others}:
            raise UsageError(
                f"celeryconfig.py: task_routes sends {name} to {found}; it belongs to {queue}"
            )
        if not app.tasks[name].acks_late:
            raise UsageError(
                f"celeryconfig.py: task_annotations acknowledges {name} early; "
                "the assignment queue needs acks_late"
            )
