"""Traces: one from the gateway's call through the shared task to SQL, told to a real collector."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.gateway.serving import serving
from tests.gateway.stage import Gateway
from tests.support.celery_programs import celery_program
from tests.support.processes import wait_until

TOGETHER = 8


@dataclass(frozen=True)
class Seen:
    """A span as the collector got it."""

    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    said: dict[str, str]
    process: str


@dataclass
class Collector:
    """Where the processes send their spans."""

    spans: list[Seen] = field(default_factory=list)

    def named(self, name: str) -> list[Seen]:
        return [each for each in list(self.spans) if each.name == name]

    def of(self, trace: str) -> list[Seen]:
        return [each for each in list(self.spans) if each.trace == trace]

    def whole(self, trace: str) -> bool:
        """Whether one span of it is the first, and whatever another is below has come."""
        found = self.of(trace)
        missing = {each.parent for each in found} - {each.id for each in found}
        return missing == {""}

    def kept(self, trace: str) -> list[Seen]:
        """The statements that keep a hold."""
        made = "INSERT INTO assignment.assignments"
        return [each for each in self.of(trace) if made in each.said.get("db.statement", "")]

    def proved(self, trace: str) -> list[Seen]:
        """The statements that prove a term: the lane's row, of this number and id, is locked."""
        by = "sequencer.term = ", "sequencer.term_id = ", "FOR UPDATE"
        said = [(each, each.said.get("db.statement", "")) for each in self.of(trace)]
        return [each for each, sql in said if all(part in sql for part in by)]

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            process = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    said = {each.key: str(each.value) for each in span.attributes}
                    self.spans.append(
                        Seen(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            tuple(link.trace_id.hex() for link in span.links),
                            said,
                            process["service.name"],
                        )
                    )


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            found.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def traced(
    collector: tuple[Collector, str],
    postgres_server: str,
    migrated_template: str,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A stack whose every process is traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[1])
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with serving(
            "traces",
            postgres_server,
            migrated_template,
            valkey_server,
            tmp_path_factory.mktemp("traces"),
            redis_database=3,
        ) as found:
            yield found


def test_one_trace_goes_from_the_call_through_the_task_to_sql(
    traced: Gateway, collector: tuple[Collector, str]
) -> None:
    spans, _ = collector
    hold = traced.assigned(26)
    request = traced.stack.value(
        "SELECT request_id FROM assignment.assignments WHERE id = :id", id=hold["id"]
    )
    through = ["POST /v1/requests", "ask assignment.request", "run/assignment.request_many"]

    def ran() -> list[Seen]:
        said = "assignment-workers.request_id"
        return [each for each in spans.named(through[2]) if request in each.said[said]]

    (run,) = wait_until(ran, "the task's span")
    wait_until(lambda: spans.kept(run.trace), "SQL")
    wait_until(lambda: spans.whole(run.trace), "whatever is above what came")
    by_id = {each.id: each for each in spans.of(run.trace)}

    def path(span: Seen) -> list[str]:
        names = [span.name.split()[0]]
        while span.parent:
            span = by_id[span.parent]
            names.append(span.name)
        return names[::-1]

    paths = [path(each) for each in by_id.values()]
    assert [*through[:2], "LPUSH"] in paths
    (proved,) = spans.proved(run.trace)
    assert path(proved)[:-1] == through
    (kept,) = spans.kept(run.trace)
    assert path(kept)[:-1] == through
    assert run.links == ()


def test_callers_who_share_a_message_are_linked_both_ways(
    traced: Gateway, collector: tuple[Collector, str]
) -> None:
    spans, _ = collector
    agents = range(40, 40 + TOGETHER * 4)
    with ThreadPoolExecutor(len(agents)) as pool:
        list(pool.map(traced.assigned, agents))

    def shared() -> list[Seen]:
        return [each for each in spans.named("run/assignment.request_many") if each.links]

    def asks(run: Seen) -> list[Seen]:
        came = [each for each in spans.named("ask assignment.request") if each.trace in run.links]
        return came if len(came) == len(run.links) else []

    for run in wait_until(shared, "a message of many"):
        found = wait_until(partial(asks, run), "every ask of the message")
        assert {each.links for each in found} == {(run.trace,)}


def test_a_celery_caller_gets_one_trace_too(
    traced: Gateway, collector: tuple[Collector, str]
) -> None:
    spans, _ = collector
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with celery_program(traced.stack.redis_url, traced.stack.redis_url) as app:
        answer = app.send_task(
            "assignment.request",
            [90],
            queue="assignment",
            headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "traces": ["nonsense", 5]},
        ).get(timeout=20)
    assert answer["outcome"] == "assigned"
    wait_until(lambda: spans.kept(trace), "SQL")
    found = wait_until(lambda: spans.named("run/assignment.request"), "the task's span")
    assert [(each.trace, each.parent, each.links) for each in found] == [
        (trace, "00f067aa0ba902b7", ())
    ]


def test_a_build_is_one_trace_to_its_publication(
    traced: Gateway, collector: tuple[Collector, str]
) -> None:
    spans, _ = collector
    answer = traced.post("/v1/queues/unsigned_users/regenerate", bearer="operator")
    assert answer.status == 202, answer.text
    (call,) = wait_until(
        lambda: spans.named("POST /v1/queues/{queue}/regenerate"), "the span of the call"
    )
    wait_until(
        lambda: (
            {"run/queue.regenerate", "run/generation.publish"}
            <= {each.name for each in spans.of(call.trace)}
        ),
        "the build and its publication",
    )


def test_nothing_is_traced_that_nobody_asked_for_and_nobody_is_named(
    traced: Gateway, collector: tuple[Collector, str]
) -> None:
    spans, _ = collector
    probed = "SELECT last_probe_at FROM assignment.sequencer_signs"
    before = traced.stack.value(probed)
    wait_until(lambda: traced.stack.value(probed) > before, "a probe")
    hold = traced.assigned(95)
    said = {"agent_id": 95, "outcome": "no_answer", "notes": "SECRET"}
    assert traced.post(f"/v1/assignments/{hold['id']}/complete", said).status == 200
    wait_until(lambda: spans.named("run/assignment.finish_many"), "the completion")
    wait_until(lambda: spans.named("ask assignment.complete"), "the completion's ask")
    assert [each.name for each in spans.spans if "probe" in each.name] == []
    roots = {each.name.split("/")[0].split()[0] for each in spans.spans if not each.parent}
    assert roots <= {"POST", "GET", "apply_async", "run"}
    assert "SECRET" not in str(spans.spans)
    assert {each.process for each in spans.spans} == {"assignment-workers"}
