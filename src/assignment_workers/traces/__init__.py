"""Traces by OpenTelemetry's own instrumentations: off, and not imported, unless configured.

`OTEL_TRACES_EXPORTER` turns traces on; the other standard variables (`OTEL_SERVICE_NAME`,
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`, `OTEL_PROPAGATORS`) have the
meaning that OpenTelemetry documents. A trace begins with an HTTP call to the gateway, with a
message, or with a request by the Python client (an `ask` span). It continues through the task to
each SQL statement.

One message may have the requests of several callers, each with a trace and an `ask` span of its
own. The task that handles the message has a single span. This span belongs to the trace of the
first caller, and has a link to the `ask` span of each other caller. The `ask` span of each other
caller has a link to the `ask` span of the first caller. So each caller's trace leads to the task.

A span holds no text that people typed: statements have no values, and of an exception only the type
is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from assignment_workers.errors import UsageError

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext, Tracer
    from sqlalchemy import Engine

NAME = "assignment-workers"
SHARED = "traces"
"""The message header with the trace contexts of a batch's callers, without the first caller's.

A batch message has the requests of several callers, each with a trace of its own. The standard
header `traceparent` has the trace context of the first caller. This header has a list of the other
trace contexts, each in the form of `traceparent`.
"""
LINKED_AT_MOST = 128
UNTRACED = ("/healthz", "/readyz", "/metrics", "/assets/", "/v1/events")
"""Paths of the gateway that are not traced, because clients poll them or keep them open."""

_EXPORTER = "OTEL_TRACES_EXPORTER"
_EXPORTERS = "opentelemetry_traces_exporter"


@dataclass(frozen=True)
class CallerSpan:
    """The span of one request: from its start in the Python client until it is answered.

    The span also ends if no answer arrives in time, or if the caller no longer waits.
    """

    span: Span

    def end(self) -> None:
        """End the span, because the request was answered or the caller has gone."""
        self.span.end()


@dataclass(frozen=True)
class Tracing:
    """The tracing of a process or of a client: makes spans with `tracer`.

    If `tracer` is None, tracing is off and no span is made.
    """

    tracer: Tracer | None = None

    def instrument_engine(self, engine: Engine) -> None:
        """Trace the SQL statements of this engine. Call it once per process."""
        if self.tracer is not None:
            from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

            # The instrumentation declares support up to SQLAlchemy 2.0; the events that it uses
            # have not changed since.
            SQLAlchemyInstrumentor().instrument(engine=engine, skip_dep_check=True)

    def gateway_telemetry(self) -> TelemetryConfig:
        """Return FastAPI's tracing configuration. Calls are traced if this process is traced."""
        return {
            "tracing": self.tracer is not None,
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
            "exclude": lambda scope: str(scope.get("path", "")).startswith(UNTRACED),
        }

    def ask(self, task: str, said: Mapping[str, object]) -> CallerSpan | None:
        """Begin and return a span for a request that the client is about to send.

        Returns None if tracing is off. `task`: the name of the Celery task that will carry out the
        request. `said`: the arguments of the request. The ids of the request, the assignment and
        the agent among these arguments become attributes of the span.
        """
        if self.tracer is None:
            return None
        from opentelemetry.trace import SpanKind

        facts = {f"{NAME}.{name}": said[name] for name in _NAMED if said.get(name) is not None}
        return CallerSpan(
            self.tracer.start_span(
                f"ask {task}",
                kind=SpanKind.PRODUCER,
                attributes={name: str(value) for name, value in facts.items()},
            )
        )

    def inject_headers(self) -> dict[str, Any]:
        """Return headers that make a message part of the current trace.

        They are empty without tracing.
        """
        headers: dict[str, Any] = {}
        if self.tracer is not None:
            from opentelemetry.propagate import inject

            inject(headers)
        return headers

    def link_callers(self, shared: object, facts: Mapping[str, object]) -> None:
        """Link the running task's span to the traces of all callers whose requests it carries out.

        The span belongs to the first caller's trace already. `shared`: the trace contexts of the
        other callers, from the message's header `traces`. `facts` become attributes of the span.
        """
        if self.tracer is None:
            return
        from opentelemetry import trace

        span = trace.get_current_span()
        if not span.is_recording():
            return
        for each in shared[:LINKED_AT_MOST] if isinstance(shared, list) else ():
            found = _read(str(each))
            if found.is_valid:
                span.add_link(found)
        for name, value in facts.items():
            span.set_attribute(f"{NAME}.{name}", value if isinstance(value, int) else str(value))


NO_TRACES = Tracing()


def set_up(environment: MutableMapping[str, str]) -> Tracing:
    """Turn tracing on in this process if `OTEL_TRACES_EXPORTER` is set.

    Returns the `Tracing` that the caller passes on to the gateway or to the Celery application.
    Raises `UsageError`, with a text of one line, if OpenTelemetry or the exporter is not installed.
    """
    named = environment.get(_EXPORTER, "").strip()
    if named in {"", "none"} or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return NO_TRACES
    environment.setdefault("OTEL_SERVICE_NAME", NAME)
    try:
        from opentelemetry import trace
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.instrumentation.redis import RedisInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from assignment_workers.traces.span_filters import DropRootClientSpans, RedactingExporter
    except ImportError as error:
        raise UsageError(_not_installed(f"{_EXPORTER}={named!r}", error)) from None
    provider = TracerProvider()
    provider.sampler = DropRootClientSpans(provider.sampler)
    for exporter in _exporters(named):
        provider.add_span_processor(BatchSpanProcessor(RedactingExporter(exporter)))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]
    RedisInstrumentor().instrument()
    return follow()


def follow() -> Tracing:
    """Return a `Tracing` with which the Python client's spans join the calling program's traces.

    For a program that has set up OpenTelemetry itself: `Client.connect(url, tracing=follow())`.
    Raises `UsageError` if OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise UsageError(_not_installed("traces", error)) from None
    return Tracing(trace.get_tracer(NAME, version(NAME)))


_NAMED = ("request_id", "assignment_id", "agent_id")


@contextmanager
def sending(asks: Sequence[CallerSpan | None]) -> Iterator[dict[str, Any]]:
    """Yield the trace headers for a message that has the requests of several callers.

    `asks`: the span of each caller's request; None for a caller without tracing. Send the message
    inside the `with` block. If no caller has tracing, the headers are empty.
    """
    known = [each.span for each in asks if each is not None]
    if not known:
        yield {}
        return
    from opentelemetry import context
    from opentelemetry.propagate import inject
    from opentelemetry.trace import set_span_in_context

    known.sort(key=lambda span: not span.is_recording())  # a recorded span first
    first, *others = known
    told = first.get_span_context()
    for span in others:
        span.add_link(told)
    headers: dict[str, Any] = {}
    within = set_span_in_context(first, context.Context())
    inject(headers, context=within)
    if others:
        headers[SHARED] = [_written(span.get_span_context()) for span in others[:LINKED_AT_MOST]]
    token = context.attach(within)
    try:
        yield headers
    finally:
        context.detach(token)


def _written(told: SpanContext) -> str:
    return f"00-{told.trace_id:032x}-{told.span_id:016x}-{int(told.trace_flags):02x}"


def _read(said: str) -> SpanContext:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = TraceContextTextMapPropagator().extract({"traceparent": said})
    return trace.get_current_span(found).get_span_context()


def _exporters(named: str) -> Iterator[SpanExporter]:
    for each in (name.strip() for name in named.split(",")):
        name = "otlp_proto_http" if each == "otlp" else each
        found = list(entry_points(group=_EXPORTERS, name=name))
        if not found:
            there = sorted({entry.name for entry in entry_points(group=_EXPORTERS)} | {"otlp"})
            raise UsageError(
                f"{_EXPORTER}={named!r}: no exporter {each!r} is installed; "
                f"there are {', '.join(there)}, and none"
            )
        made: SpanExporter = found[0].load()()
        yield made


def _not_installed(what: str, error: ImportError) -> str:
    return (
        f"{what}: {error.name} is not installed; it comes with the extra `traces`: "
        "pip install 'assignment-workers[traces]'"
    )
