"""The Prometheus metrics of a process, and the HTTP endpoint that serves them.

Names follow the conventions of Prometheus: base units, and `_total` for counters. Labels are
bounded: names of tasks, outcomes and kinds of races (conflicts of two writers) are fixed by this
package. Each process has its own registry and, if configured, its own address. Processes share
nothing, so a killed process leaves nothing behind. Metrics of the database's contents are served by
the gateway (`gateway/metrics.py`), because they are the same for every process.
"""

from __future__ import annotations

from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
)

from assignment_workers.addresses import cannot_listen

PREFIX = "assignment_workers"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0, 300.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)

REGISTRY = CollectorRegistry()
for _each in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
    REGISTRY.register(_each)

TASK_SECONDS = Histogram(
    f"{PREFIX}_task_seconds",
    "From the beginning of a task to its end.",
    ["task"],
    buckets=SECONDS,
    registry=REGISTRY,
)
ANSWERS = Counter(
    f"{PREFIX}_answers_total",
    "Answers of tasks by outcome; a message of many requests has many.",
    ["task", "outcome"],
    registry=REGISTRY,
)
TOGETHER = Histogram(
    f"{PREFIX}_requests_together",
    "Requests and moves that one message carried.",
    buckets=SIZES,
    registry=REGISTRY,
)
TURN_SECONDS = Histogram(
    f"{PREFIX}_turn_seconds",
    "One transaction of the assignment queue, from its beginning to its commit.",
    buckets=SECONDS,
    registry=REGISTRY,
)
TURN_RETRIES = Counter(
    f"{PREFIX}_turn_retries_total",
    "Turns tried again because the database failed in a passing way.",
    registry=REGISTRY,
)
RACES = Counter(
    f"{PREFIX}_races_total", "Races met and resolved, by kind.", ["kind"], registry=REGISTRY
)
DEAD_LETTERS = Counter(
    f"{PREFIX}_dead_letters_total",
    "Messages that could not be handled and were kept.",
    registry=REGISTRY,
)
TERM = Gauge(
    f"{PREFIX}_sequencer_own_term",
    "The term that this process leads; 0 while it does not.",
    registry=REGISTRY,
)
CRM_SECONDS = Histogram(
    f"{PREFIX}_crm_read_seconds",
    "One read of a CRM elsewhere for the facts of some users, from its beginning to its end.",
    buckets=SECONDS,
    registry=REGISTRY,
)
CRM_READS = Counter(
    f"{PREFIX}_crm_reads_total",
    "Reads of a CRM elsewhere: answered, late or failed; and rows that make no sense, unreadable.",
    ["outcome"],
    registry=REGISTRY,
)
CRM_OPEN = Gauge(
    f"{PREFIX}_crm_breaker_open",
    "1 while a CRM elsewhere is left alone because it failed repeatedly.",
    registry=REGISTRY,
)


def export(host: str, port: int) -> WSGIServer:
    """Serve `GET /metrics` at this address in a background thread until the process ends.

    Raises `UsageError` if listening fails.
    """
    try:
        server, _ = start_http_server(port, host, registry=REGISTRY)
    except OSError as error:
        raise cannot_listen("ASSIGNMENT_WORKERS_METRICS_PORT", host, port, error) from None
    return server
