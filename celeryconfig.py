"""Celery's settings: the one file an operator edits.

Read by every process from the working directory (or from ASSIGNMENT_WORKERS_CELERY_CONFIG). Servers
come from the environment: REDIS_URL (broker and results), BROKER_URL (the broker alone), or the
files that REDIS_URL_FILE and BROKER_URL_FILE name. What keeps the assignment queue ordered is
checked at every start; a change to it is refused with a line that names it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from celery.schedules import crontab
from kombu import Queue


def _address(variable: str) -> str | None:
    """Return the value of a variable, or the content of the file that `…_FILE` names."""
    if file := os.environ.get(f"{variable}_FILE"):
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    return os.environ.get(variable)


broker_url = _address("BROKER_URL") or _address("REDIS_URL")
result_backend = _address("REDIS_URL")

# Three queues. `assignment` is the ordered one: one consumer, one message at a time; `heartbeats`
# waits for no job. The arguments are for RabbitMQ: all are replicated, of several consumers of
# `assignment` one is served, and nothing is dropped for having been returned often, as it would be
# from version 4 on.
REPLICATED = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
task_queues = [
    Queue("assignment", queue_arguments=REPLICATED | {"x-single-active-consumer": True}),
    Queue("maintenance", queue_arguments=REPLICATED),
    Queue("heartbeats", queue_arguments=REPLICATED),
]
task_default_queue = "maintenance"
task_create_missing_queues = False
task_routes = {
    "assignment.*": {"queue": "assignment"},
    "agent.state": {"queue": "assignment"},
    "agent.end_sessions": {"queue": "assignment"},
    "agent.heartbeats": {"queue": "heartbeats"},
    "generation.publish": {"queue": "assignment"},
    "queue.pause": {"queue": "assignment"},
    "queue.resume": {"queue": "assignment"},
    "queue.remove_converted": {"queue": "assignment"},
    "queue.drain": {"queue": "assignment"},
    "queue.repair": {"queue": "assignment"},
    "user.*": {"queue": "assignment"},
}

# Only JSON is read or written.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"

# Order: nothing is fetched ahead, acknowledged before it is done, or delayed in memory.
worker_prefetch_multiplier = 1
task_acks_late = True
worker_disable_rate_limits = True
task_reject_on_worker_lost = True

# A half-dead connection is noticed in seconds (docs/waits.md), and the broker may be away for as
# long as it takes. A sequencer may have to find out twice, and be back within ten seconds.
broker_transport_options: dict[str, object]
if (broker_url or "").startswith("amqp"):
    broker_transport_options = {"confirm_publish": True, "read_timeout": 3, "write_timeout": 3}
    broker_connection_timeout = 2
else:
    broker_transport_options = {
        "priority_steps": [0],
        "socket_timeout": 3,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 2,
        "visibility_timeout": 3600,
    }
# What a job sends waits half a minute for a broker that is away; then the job has failed.
task_publish_retry_policy = {
    "max_retries": 30,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 1,
}
result_backend_transport_options = {"visibility_timeout": 3600}
redbeat_redis_options = {
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 5,
}
redis_socket_timeout = 3
redis_socket_connect_timeout = 3
redis_socket_keepalive = True
redis_backend_health_check_interval = 5
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
result_expires = timedelta(hours=1)

# What Flower shows. Workers say when they receive, begin and end a task; an event of each sending
# would cost the sender a third of its rate, and list the probe that goes out every two seconds.
worker_send_task_events = True
task_send_sent_event = False
task_track_started = False

# Our own logging stands (structlog).
worker_hijack_root_logger = False

timezone = "UTC"
enable_utc = True

# Any number of beats may run: redbeat's lock lets one fire, and each job's slot is done once.
beat_scheduler = "assignment_workers.tasks.beat:Scheduler"
redbeat_redis_url = _address("REDIS_URL")
redbeat_key_prefix = "assignment-workers:beat:"
redbeat_lock_timeout = 10
beat_max_loop_interval = 2
beat_schedule = {
    "expire lapsed holds": {
        "task": "assignment.expire",
        "schedule": 30.0,
        "options": {"expires": 30},
    },
    "check levels": {
        "task": "queue.check_levels",
        "schedule": crontab(minute="*/5"),
        "options": {"expires": 300},
    },
    "tend generations": {
        "task": "generation.tend",
        "schedule": 60.0,
        "options": {"expires": 60},
    },
    "examine guarantees": {
        "task": "doctor.examine",
        "schedule": 180.0,
        "options": {"expires": 180},
    },
    "regenerate every hour": {
        "task": "queue.regenerate",
        "schedule": crontab(minute="30"),
        "kwargs": {"trigger": "hourly"},
        "options": {"expires": 3000},
    },
    "tend agents": {
        "task": "agent.tend",
        "schedule": 60.0,
        "options": {"expires": 60},
    },
    "match missed calls": {
        "task": "missed_calls.match",
        "schedule": 60.0,
        "options": {"expires": 60},
    },
    "mirror a CRM elsewhere": {
        "task": "crm.mirror",
        "schedule": 300.0,
        "options": {"expires": 300},
    },
    "read phone numbers": {
        "task": "phones.read",
        "schedule": 120.0,
        "options": {"expires": 120},
    },
    "clean conversions": {
        "task": "queue.clean_conversions",
        "schedule": crontab(minute="0,10"),
        "options": {"expires": 600},
    },
    "discover who is new": {
        "task": "queue.discover",
        "schedule": 300.0,
        "options": {"expires": 300},
    },
    "reconcile the pools": {
        "task": "queue.reconcile",
        "schedule": crontab(minute="45"),
        "options": {"expires": 3000},
    },
    "chain events": {
        "task": "audit.extend",
        "schedule": 20.0,
        "options": {"expires": 20},
    },
    "clean daily": {
        "task": "queue.clean_daily",
        "schedule": crontab(hour="2", minute="0"),
        "options": {"expires": 36_000},
    },
    "age scores": {
        "task": "scores.age",
        "schedule": crontab(hour="0", minute="1"),
        "options": {"expires": 36_000},
    },
}
