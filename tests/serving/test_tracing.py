"""Traces: one span tree a request, on its way to the engine and to a collector; none unless asked for; no content."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes, url_attributes
from sluice_contracts.routing import CacheRoute, MirrorRoute, RoutingLimits
from sluice_devcluster.ports import free_port
from sluice_serving.gateway import trace_export
from sluice_serving.gateway.trace_export import (
    BATCH,
    PIECE,
    QUEUE,
    HeadersError,
    TraceExporter,
    otlp_span,
    parse_headers,
)
from sluice_serving.gateway.trace_settings import TracingSettings
from sluice_serving.gateway.tracing import Span

DOCUMENT = (Path(__file__).parents[2] / "docs/tracing.md").read_text()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "my pin is 47zz11"
SAID: Any = [{"role": "user", "content": SECRET}]
FORBIDDEN = (SECRET, "47zz11", "jane", "sk-test", "friend", "user_agent", "python")
"""Content, keys, names of users, and other words of clients: in no span and no log line."""


class Receiver:
    """A collector: takes OTLP over HTTP, and keeps it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.status = 200
        self.rejects = 0
        self.requests: list[tuple[dict[str, str], ExportTraceServiceRequest]] = []
        self.hold: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    @property
    def spans(self) -> list[trace_pb2.Span]:
        return [s for _, r in self.requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]

    def of(self, name: str) -> list[trace_pb2.Span]:
        return [s for s in self.spans if s.name == name]

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        if self.hold is not None:
            await self.hold.wait()
        assert request.content_type == "application/x-protobuf"
        body = ExportTraceServiceRequest.FromString(await request.read())
        self.requests.append(({name.lower(): value for name, value in request.headers.items()}, body))
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.rejects
        return web.Response(status=self.status, body=answer.SerializeToString())


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    monkeypatch.setattr(trace_export, "INTERVAL_SECONDS", 0.05)
    found = Receiver()
    await found.start()
    yield found
    await found.stop()


def attributes(span: trace_pb2.Span) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, str(kind))
        found[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


def tracing(receiver: Receiver, ratio: float = 1.0, *trusted: str, **more: Any) -> TracingSettings:
    return TracingSettings(receiver.url, ratio, trusted_tenants=frozenset(trusted), **more)


async def eventually(condition: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


def sent_parent(engine: Any) -> tuple[str, str, str]:
    """Trace, span and flags of what the engine was told last."""
    found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])", engine.headers[-1]["traceparent"])
    assert found is not None
    return found.group(1), found.group(2), found.group(3)


# The whole way


async def test_a_request_of_a_trusted_tenant_is_one_tree_from_client_to_engine(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver
) -> None:
    gateway = await start_gateway(tracing=tracing(receiver, 0.0, "acme", service="bot-gateway", namespace="support"))
    engine = await engines()
    await gateway.route(served(engine, "v1", 100))
    told = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1, b@c=x y"}
    async with gateway.chat(headers=told, messages=SAID, user="jane@example.org") as response:
        assert response.status == 200
        request_id = response.headers["x-request-id"]
        await response.read()
    await eventually(lambda: len(receiver.spans) == 3, "three spans have arrived")
    (server,), (queue,) = receiver.of("POST /v1/chat/completions"), receiver.of("queue")
    (asked,) = receiver.of("chat support-bot")
    assert {s.trace_id.hex() for s in receiver.spans} == {TRACE}
    assert server.parent_span_id.hex() == PARENT
    assert queue.parent_span_id == asked.parent_span_id == server.span_id
    assert sent_parent(engine) == (TRACE, asked.span_id.hex(), "01")
    assert engine.headers[-1]["tracestate"] == server.trace_state == "a=1,b@c=x y"
    assert (server.kind, asked.kind) == (trace_pb2.Span.SPAN_KIND_SERVER, trace_pb2.Span.SPAN_KIND_CLIENT)
    assert server.start_time_unix_nano <= queue.start_time_unix_nano <= asked.start_time_unix_nano
    assert asked.end_time_unix_nano <= server.end_time_unix_nano
    assert abs(time.time_ns() - server.end_time_unix_nano) < 60e9
    about, of_engine = attributes(server), attributes(asked)
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.request.model": "support-bot",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.response.finish_reasons": ["stop"],
        "sluice.version": "v1",
        "sluice.lineage": "lineage-of-v1",
        "sluice.tenant": "acme",
        "sluice.route": "split",
        "sluice.outcome": "ok",
        "sluice.request_id": request_id,
    }
    assert {k: about[k] for k in expected} == expected
    assert of_engine["gen_ai.usage.output_tokens"] == about["gen_ai.usage.output_tokens"] > 0
    assert of_engine["server.port"] == engine.port
    assert server.status.code == asked.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    (resource,) = [r.resource for r in receiver.requests[0][1].resource_spans]
    named = {a.key: a.value.string_value for a in resource.attributes}
    assert (named["service.name"], named["service.namespace"]) == ("bot-gateway", "support")
    assert not [word for word in FORBIDDEN if word in str(receiver.spans)]
    assert "sluice_trace_spans_exported_total 3.0" in await gateway.metrics()


async def test_an_untrusted_client_can_neither_force_a_trace_nor_write_into_another(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver
) -> None:
    engine = await engines()
    told = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
    silent = await start_gateway(tracing=tracing(receiver, 0.0, "others"))
    await silent.route(served(engine, "v1", 100))
    async with silent.chat(headers=told) as response:
        assert response.status == 200
    trace_id, _, flags = sent_parent(engine)
    assert trace_id != TRACE
    assert flags == "00"  # said, or the engine would decide by itself
    assert "tracestate" not in engine.headers[-1]
    loud = await start_gateway(tracing=tracing(receiver, 1.0))
    await loud.route(served(engine, "v1", 100))
    async with loud.chat(headers=told) as response:
        assert response.status == 200
    await eventually(lambda: receiver.of("POST /v1/chat/completions"), "the span has arrived")
    (server,) = receiver.of("POST /v1/chat/completions")
    assert server.trace_id.hex() not in {TRACE, trace_id}
    assert not server.parent_span_id
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in server.links] == [(TRACE, PARENT)]


async def test_what_goes_wrong_is_told_by_kind_and_each_attempt_is_seen(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver
) -> None:
    gateway = await start_gateway(tracing=tracing(receiver))
    failing, whole = await engines(), await engines()
    failing.status = 500
    await gateway.route(served(failing, "v1", 100), served(whole, "v2", 0))
    async with gateway.chat() as response:
        assert response.status in {200, 502}
    failing.status = 400
    async with gateway.chat(messages=SAID) as response:
        assert response.status == 400
    async with gateway.chat(key="sk-wrong") as response:
        assert response.status == 401
    await eventually(lambda: len(receiver.of("POST /v1/chat/completions")) == 3, "three requests have arrived")
    tries = [attributes(s) for s in receiver.of("chat support-bot")]
    assert [t["error.type"] for t in tries if t["sluice.version"] == "v1"] == [
        "engine_error", "engine_error", "invalid_request"
    ]  # fmt: skip
    errors = [(attributes(s).get("error.type"), s.status.code) for s in receiver.of("POST /v1/chat/completions")]
    failed, unset = trace_pb2.Status.STATUS_CODE_ERROR, trace_pb2.Status.STATUS_CODE_UNSET
    assert errors == [("engine_error", failed), ("invalid_request", unset), ("invalid_api_key", unset)]
    assert "sluice.tenant" not in attributes(receiver.of("POST /v1/chat/completions")[-1])
    assert not [word for word in FORBIDDEN if word in str(receiver.spans)]


async def test_a_request_that_waits_in_vain_is_seen_waiting(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver
) -> None:
    gateway = await start_gateway(tracing=tracing(receiver))
    engine = await engines()
    engine.hold = asyncio.Event()
    limits = RoutingLimits(in_flight_per_replica=1, queue=1, queue_timeout_seconds=0.2)
    await gateway.route(served(engine, "v1", 100), limits=limits)
    first = asyncio.create_task(gateway.chat().__aenter__())
    await eventually(lambda: engine.running == 1, "the engine is busy")
    async with gateway.chat() as response:
        assert response.status == 429
    await eventually(lambda: receiver.of("POST /v1/chat/completions"), "the refusal has arrived")
    (refused,) = receiver.of("POST /v1/chat/completions")
    assert attributes(refused)["error.type"] == "overloaded"
    (waited,) = [s for s in receiver.of("queue") if s.trace_id == refused.trace_id]
    assert attributes(waited)["error.type"] == "queue_timeout"
    assert waited.end_time_unix_nano - waited.start_time_unix_nano > 0.15e9
    engine.hold.set()
    (await first).close()


async def test_kept_answers_and_copies_have_their_place_in_the_trace(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver
) -> None:
    gateway = await start_gateway(tracing=tracing(receiver))
    stable, candidate = await engines(), await engines()
    mirror = MirrorRoute(percent=100, candidate="v2", max_in_flight=2)
    backends = served(stable, "v1", 100), served(candidate, "v2", 0)
    limits = RoutingLimits(in_flight_per_replica=8)
    await gateway.route(*backends, cache=CacheRoute(max_entries=9), mirror=mirror, limits=limits)
    for _ in range(2):
        async with gateway.chat(temperature=0) as response:
            assert response.status == 200
    await eventually(lambda: receiver.of("mirror"), "the copy's span has arrived")
    await eventually(lambda: len(receiver.of("POST /v1/chat/completions")) == 2, "both requests have arrived")
    first, second = receiver.of("POST /v1/chat/completions")
    assert [attributes(s)["sluice.cache"] for s in (first, second)] == ["miss", "hit"]
    assert (attributes(second)["sluice.route"], attributes(second)["sluice.outcome"]) == ("cache", "cached")
    assert {s.trace_id for s in receiver.of("chat support-bot")} == {first.trace_id}
    (copy,) = receiver.of("mirror")
    assert (copy.trace_id, copy.parent_span_id) == (first.trace_id, first.span_id)
    asked = [h["traceparent"] for e in (stable, candidate) for h in e.headers]
    assert f"00-{copy.trace_id.hex()}-{copy.span_id.hex()}-01" in asked


async def test_no_variable_of_others_switches_anything_on(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.url,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret",
        "OTEL_RESOURCE_ATTRIBUTES": "mine=yes",
    }.items():
        monkeypatch.setenv(name, value)
    engine = await engines()
    off = await start_gateway()
    await off.route(served(engine, "v1", 100))
    async with off.chat(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}) as response:
        assert response.status == 200
    assert "traceparent" not in engine.headers[-1]
    assert "sluice_trace" not in await off.metrics()
    on = await start_gateway(tracing=tracing(receiver, 0.0))
    await on.route(served(engine, "v1", 100))
    async with on.chat() as response:
        assert response.status == 200
    await on.close()
    assert receiver.requests == []
    last = await start_gateway(tracing=tracing(receiver))
    await last.route(served(engine, "v1", 100))
    async with last.chat() as response:
        assert response.status == 200
    await eventually(lambda: receiver.requests, "traces where they were asked for")
    headers, request = receiver.requests[0]
    assert "authorization" not in headers
    assert "mine" not in str(request)


async def test_a_collector_that_is_down_slows_nobody_and_is_told_of_once(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.hold = asyncio.Event()  # it takes the connection and says nothing: the worst of all ways to be down
    gateway = await start_gateway(tracing=tracing(receiver))
    engine = await engines()
    await gateway.route(served(engine, "v1", 100))
    for _ in range(5):
        async with gateway.chat() as response:
            assert response.status == 200
    receiver.status = 400
    receiver.hold.set()
    await eventually(lambda: any("do not reach" in r.message for r in caplog.records), "the log tells")
    async with gateway.chat() as response:
        assert response.status == 200

    async def lost() -> int:
        found = re.search(r'sluice_trace_spans_lost_total\{reason="status_400"\} (\d+)', await gateway.metrics())
        return int(found.group(1)) if found else 0

    async with asyncio.timeout(20):
        while await lost() < 18:
            await asyncio.sleep(0.02)
    assert len([r for r in caplog.records if "do not reach" in r.message]) == 1


async def test_what_has_gathered_is_sent_before_the_gateway_ends(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_export, "INTERVAL_SECONDS", 600.0)
    gateway = await start_gateway(tracing=tracing(receiver))
    engine = await engines()
    await gateway.route(served(engine, "v1", 100))
    async with gateway.chat() as response:
        assert response.status == 200
    assert receiver.requests == []
    await gateway.close()
    assert len(receiver.spans) == 3


# The exporter alone


def span(n: int = 1, **more: Any) -> Span:
    return Span(**{"trace_id": TRACE, "span_id": f"{n:016x}", "parent_id": "", "name": "x", "kind": "internal",
                   "start": 5, "end": 9, "attributes": {"n": n}} | more)  # fmt: skip


async def exporting(exporter: TraceExporter, spans: int = 0) -> None:
    for n in range(spans):
        exporter.add(span(n + 1))
    spans = max(spans, exporter.waiting)
    running = asyncio.create_task(exporter.run())
    await eventually(lambda: exporter.exported + sum(exporter.lost.values()) >= spans, "all are settled")
    await exporter.close(running)


async def test_the_queue_is_bounded_and_a_batch_arrives_in_pieces_put_together(receiver: Receiver) -> None:
    exporter = TraceExporter(receiver.url, {"service.name": "s"}, interval=0.01)
    await exporting(exporter, QUEUE + 10)
    assert (exporter.exported, exporter.lost) == (QUEUE, {"queue_full": 10})
    assert [int(s.span_id.hex(), 16) for s in receiver.spans] == list(range(1, QUEUE + 1))
    assert len(receiver.requests) == QUEUE // BATCH
    assert len(receiver.requests[0][1].resource_spans) == BATCH // PIECE


async def test_what_comes_while_a_batch_is_sent_gathers_again(receiver: Receiver) -> None:
    exporter = TraceExporter(receiver.url, {}, interval=0.05)
    receiver.hold = asyncio.Event()
    running = asyncio.create_task(exporter.run())
    exporter.add(span())
    await eventually(lambda: not exporter.waiting, "the first is on its way")
    for n in range(9):
        exporter.add(span(n + 2))
    receiver.hold.set()
    await eventually(lambda: exporter.exported == 10, "all have arrived")
    assert len(receiver.requests) == 2
    await exporter.close(running)


async def test_a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not(receiver: Receiver) -> None:
    exporter = TraceExporter(receiver.url, {}, interval=0.01, pauses=(0.2, 60.0))
    receiver.status = 503
    exporter.add(span())
    running = asyncio.create_task(exporter.run())
    await eventually(lambda: len(receiver.requests) >= 2, "asked again")
    receiver.status = 200
    await eventually(lambda: exporter.exported == 1, "taken in the end")
    before, receiver.status = len(receiver.requests), 401
    exporter.add(span(2))
    await eventually(lambda: exporter.lost["status_401"] == 1, "given up")
    assert len(receiver.requests) == before + 1
    receiver.status, receiver.rejects = 200, 1
    exporter.add(span(3))
    await eventually(lambda: exporter.lost["rejected"] == 1, "told that one was not taken")
    await exporter.close(running)


async def test_a_token_is_read_when_it_is_used_and_never_shown(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "headers"
    file.write_text("authorization=Bearer%20s3cret,x-scope=a\n")
    exporter = TraceExporter(receiver.url, {}, file, interval=0.01, pauses=(0.001, 0.01))
    await exporting(exporter, 1)
    assert receiver.requests[0][0]["authorization"] == "Bearer s3cret"
    file.write_text("s3cret that is no header")
    broken = TraceExporter(receiver.url, {}, file, interval=0.01, pauses=(0.001, 0.01))
    await exporting(broken, 1)
    assert broken.lost == {"headers": 1}
    assert "s3cret" not in caplog.text
    with pytest.raises(HeadersError):
        parse_headers("a=b%0d%0ac: d")


async def test_the_log_tells_of_losses_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    exporter = TraceExporter("http://127.0.0.1:9/v1/traces", {}, clock=lambda: now)
    for n in range(QUEUE + 3):
        exporter.add(span(n))
    now = 61.0
    exporter.add(span())
    told = [r.message for r in caplog.records if "do not reach" in r.message]
    assert [re.findall(r"\d+", line) for line in told] == [["1"], ["3"]]


async def test_names_are_those_of_the_conventions(
    start_gateway: Any, engines: Any, served: Any, receiver: Receiver
) -> None:
    modules = (gen_ai_attributes, error_attributes, http_attributes, server_attributes, url_attributes)
    known = {value for m in modules for value in vars(m).values() if isinstance(value, str)}
    gateway = await start_gateway(tracing=tracing(receiver))
    engine = await engines()
    await gateway.route(served(engine, "v1", 100))
    async with gateway.chat(stream=True) as response:
        await response.read()
    await eventually(lambda: len(receiver.spans) == 3, "the spans have arrived")
    names = {name for s in receiver.spans for name in attributes(s)}
    assert {n for n in names if not n.startswith("sluice.")} <= known
    assert "gen_ai.response.time_to_first_chunk" in names
    assert {n for n in names if f"`{n}`" not in DOCUMENT} == set()
    told = set(re.findall(r"^(sluice_trace\w+)", await gateway.metrics(), re.MULTILINE))
    assert told
    assert {n for n in told if f"`{n}`" not in DOCUMENT and not n.endswith("_created")} == set()


def test_a_span_says_where_its_parent_is() -> None:
    assert otlp_span(span(parent_id=PARENT, remote_parent=True)).flags == 0x301
    assert otlp_span(span(parent_id=PARENT, end=1)).end_time_unix_nano == 5


async def test_a_span_that_cannot_be_written_takes_no_other_with_it(receiver: Receiver) -> None:
    exporter = TraceExporter(receiver.url, {}, interval=0.01)
    for n, odd in enumerate((1 << 70, "\ud800", 5)):
        exporter.add(span(n + 1, attributes={"gen_ai.usage.input_tokens": odd}))
    await exporting(exporter)
    assert (exporter.exported, exporter.lost) == (1, {"not_encodable": 2})
    assert [s.span_id.hex() for s in receiver.spans] == [f"{3:016x}"]
