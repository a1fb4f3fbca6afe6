"""What this gateway counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.3, 0.6, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """The figures of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.streams = Gauge(
            "assignment_workers_gateway_streams",
            "Streams of live events that are open now.",
            registry=self.registry,
        )
