"""Filters for spans: a sampler and a redacting exporter. Needs the extra `traces`."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, Status, TraceState, get_current_span
from opentelemetry.util.types import Attributes

PROBE = "assignment.probe"
"""The Celery task of the probe, the message that a sequencer sends to itself.

It runs every two seconds. Its spans are dropped, because they would fill the stored traces.
"""
KEPT = "exception.type"


class DropRootClientSpans(Sampler):
    """A sampler that drops client spans without a parent, and the spans of probe tasks.

    A client span without a parent is not part of a request; it comes from a regular poll. A probe
    is a message that a sequencer sends to itself every two seconds. The many spans of polls and
    probes would fill the stored traces.
    """

    def __init__(self, then: Sampler) -> None:
        self._then = then
        """The sampler that decides on the spans that this sampler does not drop.

        The environment variable `OTEL_TRACES_SAMPLER` names it.
        """

    def should_sample(  # noqa: PLR0917 - the SDK's own
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide if a span is recorded.

        Client spans without a parent and spans of the task `assignment.probe` are dropped. The
        sampler that `OTEL_TRACES_SAMPLER` names decides on all other spans.
        """
        is_root = not get_current_span(parent_context).get_span_context().is_valid
        if (is_root and kind is SpanKind.CLIENT) or name.endswith(f"/{PROBE}"):
            return SamplingResult(Decision.DROP)
        return self._then.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        """Return the name of this sampler with the description of the sampler that it wraps.

        The wrapped sampler decides on the spans that this sampler does not drop.
        """
        return f"DropRootClientSpans{{{self._then.get_description()}}}"


class RedactingExporter(SpanExporter):
    """An exporter that removes the texts of exceptions, which may repeat what an agent wrote."""

    def __init__(self, to: SpanExporter) -> None:
        self._to = to

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans, without the texts of exceptions."""
        return self._to.export([_quiet(each) for each in spans])

    def shutdown(self) -> None:
        """Shut down the wrapped exporter."""
        self._to.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped exporter, within `timeout_millis` milliseconds."""
        return self._to.force_flush(timeout_millis)


def _quiet(span: ReadableSpan) -> ReadableSpan:
    if not span.events and not span.status.description:
        return span
    return ReadableSpan(
        span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=[Event(each.name, _type_alone(each), each.timestamp) for each in span.events],
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _type_alone(event: Event) -> Attributes:
    said = event.attributes or {}
    return {KEPT: str(said[KEPT])} if KEPT in said else None
