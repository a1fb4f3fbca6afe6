"""The gateway's Prometheus metrics: its calls, the system's health, and figures from the database.

The figures are numbers that operators watch, such as the number of claimable users of each dialer
queue.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from assignment_workers.assignment.reports.figures import Figures, JobFigures, QueueFigures
from assignment_workers.assignment.reports.status import COUNTED_AT_MOST as CLAIMABLE_AT_MOST
from assignment_workers.assignment.reports.status import SequencerStatus
from assignment_workers.gateway.problems import Problem
from assignment_workers.gateway.read_cache import ReadCache
from assignment_workers.health.model import Health, HealthState, JobState, ProcessHealth
from assignment_workers.telemetry import PREFIX

Labelled = dict[tuple[str, ...], float | None]
"""Maps the values of a gauge's labels to the gauge's value; None: the value is unknown."""

FIGURES_SECONDS = 2.0
"""The most seconds that a scrape waits for the metrics that are read from the database."""
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.3, 0.6, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """The Prometheus metrics of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for each in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(each)
        self.answers = Counter(
            "assignment_workers_gateway_answers_total",
            "Answers by move and outcome.",
            ["move", "outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "assignment_workers_gateway_answer_seconds",
            "From the call to its answer.",
            ["move"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "assignment_workers_gateway_waiting",
            "Calls that wait for an answer now.",
            registry=self.registry,
        )
        self.gone = Counter(
            "assignment_workers_gateway_gone_total",
            "Callers who left before their answer came.",
            registry=self.registry,
        )
        self.unavailable = Counter(
            "assignment_workers_gateway_unavailable_total",
            "Calls of agents that were answered 503, for whichever reason.",
            registry=self.registry,
        )
        self.refused = Counter(
            "assignment_workers_gateway_refused_total",
            "Calls that were refused: unauthenticated, forbidden, a failed sign-in, or hurried.",
            ["what"],
            registry=self.registry,
        )
        self.streams = Gauge(
            "assignment_workers_gateway_streams",
            "Streams of live events that are open now.",
            registry=self.registry,
        )


class StoredFigures(Collector):
    """A Prometheus collector for the system's health and for figures that the database computes.

    The figures are numbers that operators watch, such as the number of claimable users of each
    dialer queue. They are the same at every gateway. Frequent scrapes share one reading of the
    database, which is cached for a moment (`read_cache.FRESH_SECONDS`). While the database cannot
    answer, the figures are left out, because unknown is not zero.
    """

    def __init__(self, read_cache: ReadCache, health: Callable[[], Health]) -> None:
        self._read_cache = read_cache
        self._health = health
        self._threads = ThreadPoolExecutor(1, "figures")
        self._reading: Future[Figures] | None = None

    def describe(self) -> Iterable[Metric]:
        """Return no description, so that registering this collector does not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges with their current values."""
        health = self._health()
        yield from health_gauges(health)
        database = health.of("postgresql")
        is_down = database is not None and database.state is HealthState.DOWN
        now = None if is_down else self._figures()
        is_up = float(now is not None)
        yield gauge("database_up", "Whether the database answers this gateway.", {(): is_up})
        if now is not None:
            yield from _gauges(now)

    def _figures(self) -> Figures | None:
        """Return the figures for operators, such as the claimable users of each dialer queue.

        The figures come from the database or the cache. None if the database does not answer within
        `FIGURES_SECONDS`.
        """
        if self._reading is None or self._reading.done():
            self._reading = self._threads.submit(self._read_cache.figures)
        try:
            return self._reading.result(FIGURES_SECONDS)
        except (Problem, TimeoutError):
            return None


def health_gauges(health: Health) -> Iterator[Metric]:
    """Yield the gauges for the health of the system."""
    yield gauge(
        "component_state",
        "1 for the state that the component has, 0 for the others.",
        {
            (each.name, each.title, str(state)): float(each.state is state)
            for each in health.components
            for state in HealthState
        },
        "component",
        "title",
        "state",
    )
    yield gauge(
        "health_state",
        "1 for the state of the whole system, 0 for the others; down: agents are not served.",
        {(str(state),): float(health.state is state) for state in HealthState},
        "state",
    )
    yield gauge(
        "job_state",
        "1 for the state that the job has, 0 for the others.",
        {
            (each.job, each.queue or "", str(state)): float(each.state is state)
            for each in health.jobs
            for state in JobState
        },
        "job",
        "queue",
        "state",
    )
    queues = health.celery_queues
    yield gauge(
        "celery_queue_messages",
        "Messages that wait in the Celery queue.",
        {(each.name,): each.depth for each in queues},
        "celery_queue",
    )
    yield gauge(
        "celery_queue_head_age_seconds",
        "Since the next message of the Celery queue was sent.",
        {(each.name,): each.head_age_seconds for each in queues},
        "celery_queue",
    )
    counts = Counts((each.role, str(each.state)) for each in health.processes)
    yield gauge(
        "processes",
        "Processes by their role, and by whether they give signs of life.",
        {key: float(count) for key, count in counts.items()},
        "role",
        "state",
    )
    yield gauge(
        "process_memory_bytes",
        "Resident memory of the processes of a role on a host, together.",
        _summed(health, lambda each: each.memory_bytes),
        "role",
        "host",
    )
    yield gauge(
        "disk_free_ratio",
        "Free part of the file system that has the files of the host's processes, the least.",
        {
            (host,): min(
                each.disk_free_bytes / each.disk_bytes
                for each in health.processes
                if each.host == host and each.disk_bytes and each.disk_free_bytes is not None
            )
            for host in {each.host for each in health.processes if each.disk_bytes}
        },
        "host",
    )
    yield gauge(
        "certificate_expires_seconds",
        "Until the TLS certificate expires.",
        {
            (each.title,): (each.expires_at - health.at).total_seconds()
            for each in health.certificates
        },
        "certificate",
    )
    expires = health.token_expires_at
    yield gauge(
        "token_expires_seconds",
        "Until the API token expires that expires next.",
        {(): (expires - health.at).total_seconds() if expires else None},
    )


def _summed(health: Health, read: Callable[[ProcessHealth], int | None]) -> Labelled:
    found: Labelled = {}
    for each in health.processes:
        key = each.role, each.host
        found[key] = (found.get(key) or 0) + (read(each) or 0)
    return found


def _gauges(now: Figures) -> Iterator[Metric]:
    yield gauge("crm_up", "Whether the CRM's users can be read.", {(): now.crm_up})
    yield gauge(
        "crm_mirror_age_seconds",
        "Since the last reading of a CRM elsewhere as a whole began.",
        {(): now.crm.mirror_age_seconds},
    )
    by_queue: dict[str, tuple[str, Callable[[QueueFigures], float | None]]] = {
        "queue_claimable_users": (
            f"Users who can be handed out now, counted up to {CLAIMABLE_AT_MOST}.",
            lambda each: each.claimable,
        ),
        "queue_waiting_users": (
            f"Users who wait until a time, counted up to {CLAIMABLE_AT_MOST}.",
            lambda each: each.waiting,
        ),
        "queue_held_users": ("Users of the dialer queue held now.", lambda each: each.held),
        "queue_quarantined_users": (
            "Users of the pool who are set aside until an operator releases them.",
            lambda each: each.quarantined,
        ),
        "queue_skipped_last_hour": (
            "Holds of the dialer queue that ended in a skip.",
            lambda each: each.skipped_last_hour,
        ),
        "queue_paused": ("Whether an operator paused it.", lambda each: each.paused),
        "queue_runway_seconds": (
            "How long the claimable users last at the rate of the last hour.",
            lambda each: None if each.runway_minutes is None else each.runway_minutes * 60,
        ),
        "generation_age_seconds": (
            "Since the published generation was published.",
            lambda each: each.age_seconds,
        ),
        "generation_users": ("Users in the published generation.", lambda each: each.size),
    }
    for name, (told, read) in by_queue.items():
        found: Labelled = {(each.queue,): read(each) for each in now.queues}
        yield gauge(name, told, found, "queue")
    yield gauge(
        "generations_unpublished", "Built, and waiting to be published.", {(): now.unpublished}
    )
    yield gauge("holds", "Active assignments.", {(): now.holds})
    yield gauge("holds_lapsing", "Holds with less than a minute left.", {(): now.holds_lapsing})
    yield gauge("holds_lapsed", "Holds that outlived their lease.", {(): now.holds_lapsed})
    yield gauge(
        "answers_last_hour", "Requests answered.", _labelled(now.answers_last_hour), "outcome"
    )
    yield gauge("holds_ended_last_hour", "Holds ended.", _labelled(now.ended_last_hour), "state")
    yield gauge(
        "races_last_hour", "Races met and resolved.", _labelled(now.races_last_hour), "kind"
    )
    times = now.time_to_assign
    yield gauge(
        "assign_seconds",
        "From the sending of a request to the commit that assigned, over five minutes.",
        {("0.5",): times.p50, ("0.95",): times.p95, ("0.99",): times.p99},
        "quantile",
    )
    yield gauge("assign_average_seconds", "The same, on average.", {(): times.average})
    yield from _of_lanes(now)
    yield gauge(
        "dead_letters_unseen",
        "Dead letters neither sent again nor dismissed.",
        {(): now.dead_letters},
    )
    yield gauge(
        "dead_letters_new", "Those of them that came within an hour.", {(): now.dead_letters_new}
    )
    yield gauge(
        "audit_lag_seconds",
        "Age of the oldest event that is in no hash chain yet.",
        {(): now.audit_lag_seconds},
    )
    yield gauge(
        "guarantee_broken",
        "Breaches that the doctor found when it last ran by itself.",
        {(each.check,): each.count for each in now.findings},
        "check",
    )
    yield gauge(
        "doctor_age_seconds",
        "Since the doctor last ran by itself.",
        {(): (now.at - now.examined_at).total_seconds() if now.examined_at else None},
    )
    yield from _of_jobs(now)


def _of_lanes(now: Figures) -> Iterator[Metric]:
    def of_each(read: Callable[[SequencerStatus], float | None]) -> Labelled:
        return {(each.lane,): read(each) for each in now.lanes}

    by_lane: dict[str, tuple[str, Callable[[SequencerStatus], float | None]]] = {
        "sequencer_term": ("The term of the lane.", lambda each: each.term),
        "sequencer_leaders": ("1 while one leads.", lambda each: each.leader is not None),
        "sequencer_standbys": ("Sequencers that stand by.", lambda each: each.standbys),
        "sequencer_silent_seconds": (
            "Since its last turn began.",
            lambda each: each.silent_seconds,
        ),
        "line_probe_seconds": ("The line's pace: a probe's.", lambda each: each.probe_seconds),
    }
    for name, (told, read) in by_lane.items():
        yield gauge(name, told, of_each(read), "lane")


def _of_jobs(now: Figures) -> Iterator[Metric]:
    def of_each(read: Callable[[JobFigures], float | None]) -> Labelled:
        return {(each.job, each.queue or ""): read(each) for each in now.jobs}

    yield gauge(
        "job_success_age_seconds",
        "Since the beginning of the last run that succeeded.",
        of_each(lambda j: (now.at - j.succeeded_at).total_seconds() if j.succeeded_at else None),
        "job",
        "queue",
    )
    yield gauge(
        "job_last_run_seconds", "How long it took.", of_each(lambda j: j.seconds), "job", "queue"
    )
    yield gauge(
        "job_last_run_failed",
        "Whether it failed.",
        of_each(lambda j: j.status == "failed"),
        "job",
        "queue",
    )


def gauge(name: str, told: str, values: Labelled, *labels: str) -> Metric:
    """Return a gauge with the help text `told` and the values `values`.

    `labels` are the names of the gauge's labels. The keys of `values` are combinations of the
    labels' values. A combination whose value is None, which means unknown, is not in the gauge.
    """
    made = GaugeMetricFamily(f"{PREFIX}_{name}", told, labels=labels)
    for given, value in values.items():
        if value is not None:
            made.add_metric(given, float(value))
    return made


def _labelled(counts: Mapping[str, int]) -> Labelled:
    return {(name,): float(count) for name, count in counts.items()}
