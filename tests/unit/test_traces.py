"""Traces: not even imported unless they are asked for, and then without anybody's words."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from assignment_workers import traces
from assignment_workers.errors import UsageError
from assignment_workers.traces.span_filters import DropRootClientSpans, RedactingExporter

PROCESSES = (
    "import sys; import assignment_workers.tasks.process, assignment_workers.gateway.serve;"
    " from assignment_workers import traces; traces.set_up({});"
    " parts = ('opentelemetry.instrumentation', 'opentelemetry.exporter', 'opentelemetry.sdk.trace');"
    " sys.exit(any(name.startswith(parts) for name in sys.modules))"
)


@pytest.fixture
def told() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(told: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider(
        sampler=DropRootClientSpans(ParentBased(ALWAYS_ON)), shutdown_on_exit=False
    )
    provider.add_span_processor(SimpleSpanProcessor(RedactingExporter(told)))
    return provider.get_tracer("test")


def test_a_process_that_is_not_traced_imports_nothing_of_it() -> None:
    assert subprocess.run([sys.executable, "-c", PROCESSES], check=False).returncode == 0


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": ""},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    tracing = traces.set_up(environment)
    assert tracing.ask("assignment.request", {}) is None
    assert tracing.inject_headers() == {}
    with traces.sending([None, None]) as headers:
        assert headers == {}


def test_an_exporter_that_is_not_installed_is_one_clear_line() -> None:
    with pytest.raises(
        UsageError, match=r"^OTEL_TRACES_EXPORTER='otlp,jaeger': no exporter 'jaeger'"
    ):
        traces.set_up({"OTEL_TRACES_EXPORTER": "otlp,jaeger"})


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.celery", None)
    with pytest.raises(UsageError, match=r"pip install 'assignment-workers\[traces\]'"):
        traces.set_up({"OTEL_TRACES_EXPORTER": "otlp"})


def test_polls_and_probes_begin_no_trace(tracer: Tracer, told: InMemorySpanExporter) -> None:
    tracer.start_span("SELECT", kind=SpanKind.CLIENT).end()
    with tracer.start_as_current_span("run/assignment.probe", kind=SpanKind.CONSUMER):
        tracer.start_span("UPDATE", kind=SpanKind.CLIENT).end()
    with tracer.start_as_current_span("run/assignment.expire", kind=SpanKind.CONSUMER):
        tracer.start_span("UPDATE", kind=SpanKind.CLIENT).end()
    names = [each.name for each in told.get_finished_spans()]
    assert names == ["UPDATE", "run/assignment.expire"]


def test_what_an_exception_said_is_not_told(tracer: Tracer, told: InMemorySpanExporter) -> None:
    with (
        pytest.raises(ValueError, match="SECRET"),
        tracer.start_as_current_span("run/assignment.complete", attributes={"kept": 1}),
    ):
        raise ValueError("SECRET")
    (span,) = told.get_finished_spans()
    assert "SECRET" not in span.to_json()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert [dict(each.attributes or {}) for each in span.events] == [
        {"exception.type": "ValueError"}
    ]
    assert dict(span.attributes or {}) == {"kept": 1}


def test_those_who_share_a_message_keep_their_traces(
    tracer: Tracer, told: InMemorySpanExporter
) -> None:
    tracing = traces.Tracing(tracer)
    asks = [tracing.ask("assignment.request", {"agent_id": agent}) for agent in range(3)]
    with traces.sending([None, *asks]) as headers:
        ids = [each.span.get_span_context() for each in asks if each]
        assert trace.get_current_span().get_span_context() == ids[0]
    assert not trace.get_current_span().get_span_context().is_valid
    assert f"{ids[0].span_id:016x}" in headers["traceparent"]
    assert [each.split("-")[2] for each in headers[traces.SHARED]] == [
        f"{each.span_id:016x}" for each in ids[1:]
    ]
    with tracer.start_as_current_span("run/assignment.request_many", kind=SpanKind.CONSUMER):
        tracing.link_callers(
            [*headers[traces.SHARED], "nonsense", None], {"requests": 3, "term": 7}
        )
    for each in asks:
        assert each is not None
        each.end()
    run, first, *others = told.get_finished_spans()
    assert [link.context.span_id for link in run.links] == [each.span_id for each in ids[1:]]
    assert dict(run.attributes or {}) == {
        "assignment-workers.requests": 3,
        "assignment-workers.term": 7,
    }
    assert first.links == ()
    assert [link.context for each in others for link in each.links] == [ids[0], ids[0]]
    assert dict(first.attributes or {}) == {"assignment-workers.agent_id": "0"}
