"""Spans on their way to a collector: OTLP over HTTP, in protobuf, off every request's path.

Requests add to a bounded queue and go on. A task takes what has gathered, encodes it a few spans at a time (so that no
request waits behind it for more than a millisecond), and sends it within a deadline. A collector that is down is asked
again, ever more rarely; meanwhile the queue fills, and what no longer fits is dropped and counted. Nothing waits.

The format: opentelemetry.io/docs/specs/otlp, OTLP/HTTP.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import aiohttp
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice_serving.gateway.tracing import Span, SpanKind, Value

logger = logging.getLogger("sluice.gateway")

QUEUE = 4096
"""Spans that wait at most: a few megabytes."""
BATCH = 512
"""Spans of one request to the collector."""
PIECE = 16
"""Spans encoded at once, between two looks at the event loop."""
INTERVAL_SECONDS = 2.0
SEND_SECONDS = 10.0
"""The SDKs' own default (OTEL_EXPORTER_OTLP_TIMEOUT)."""
PAUSE_SECONDS = (1.0, 30.0)
TRIES = 5
AGAIN = frozenset({429, 502, 503, 504})
"""Statuses after which OTLP wants the same request sent again."""
FLUSH_SECONDS = 5.0
LOG_SECONDS = 60.0
MAX_ANSWER = 1 << 16
KINDS: dict[SpanKind, trace_pb2.Span.SpanKind.ValueType] = {
    "internal": trace_pb2.Span.SPAN_KIND_INTERNAL,
    "server": trace_pb2.Span.SPAN_KIND_SERVER,
    "client": trace_pb2.Span.SPAN_KIND_CLIENT,
}
SAMPLED, KNOWN, REMOTE = 0x01, 0x100, 0x200
"""A span's flags: the trace flags of W3C, and whether its parent is known to be of another process."""
SCOPE = InstrumentationScope(name="sluice.gateway")


class HeadersError(Exception):
    """The file with the collector's headers cannot be used. The message holds nothing of what is in it."""


def parse_headers(text: str) -> dict[str, str]:
    """Headers as OTEL_EXPORTER_OTLP_HEADERS has them: `name=value`, separated by commas, values percent-encoded.
    Raises HeadersError."""
    headers = {}
    for n, part in enumerate(filter(None, (p.strip() for p in text.split(","))), start=1):
        name, equals, value = part.partition("=")
        name, value = name.strip().lower(), unquote(value.strip())
        sane = name.isascii() and name.replace("-", "").replace("_", "").isalnum() and value.isprintable()
        if not (equals and sane and value.isascii()):
            raise HeadersError(f"header {n} is not name=value; separate several by commas and percent-encode values")
        headers[name] = value
    return headers


class Refused(Exception):
    """A batch was not taken. `reason` is a word for metrics and logs; `again` where another try may do better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.reason, self.again = reason, again


class TraceExporter(Collector):
    """The queue, and the task that empties it. Also what /metrics tells of it."""

    def __init__(
        self,
        endpoint: str,
        resource: Mapping[str, str],
        headers_file: Path | None = None,
        *,
        interval: float | None = None,
        pauses: tuple[float, float] = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`endpoint` is the whole URL that spans are POSTed to."""
        self.exported = 0
        self.lost: Counter[str] = Counter()
        """Spans by why they were dropped."""
        self._endpoint, self._headers_file = endpoint, headers_file
        self._resource = Resource(attributes=[key_value(k, v) for k, v in resource.items()])
        self._interval = INTERVAL_SECONDS if interval is None else interval
        self._pauses, self._clock = pauses, clock
        self._queue: deque[Span] = deque()
        self._enough = asyncio.Event()
        self._closing = asyncio.Event()
        self._told: float | None = None
        self._untold = 0

    @property
    def waiting(self) -> int:
        """Spans in the queue."""
        return len(self._queue)

    def add(self, span: Span) -> None:
        """Take a span. Returns at once; one too many is dropped."""
        if len(self._queue) >= QUEUE or self._closing.is_set():
            self._lose(1, "stopped" if self._closing.is_set() else "queue_full")
            return
        self._queue.append(span)
        if len(self._queue) == BATCH:
            self._enough.set()

    async def run(self) -> None:
        """Send what gathers, until `close`; then what is left, once."""
        timeout = aiohttp.ClientTimeout(total=SEND_SECONDS)
        # No proxy, cookie or credential from anywhere but the pool's own settings.
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while not self._closing.is_set():
                await self._either(self._enough, self._interval)
                self._enough.clear()
                if self._queue:
                    await self._send_batch(session)
                # What came meanwhile gathers again, unless it is a batch already.
                while len(self._queue) >= BATCH and not self._closing.is_set():
                    await self._send_batch(session)
            while self._queue:
                await self._send_batch(session)

    async def close(self, running: "asyncio.Task[None]", seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left, for so long at most, and end `running`."""
        self._closing.set()
        await asyncio.wait({running}, timeout=seconds)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        if self._queue:
            self._lose(len(self._queue), "unreachable")
            self._queue.clear()
        self._tell("the gateway stopped", at_once=True)

    async def _either(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for `event`, or the end, or so many seconds."""
        waits = [asyncio.create_task(event.wait()), asyncio.create_task(self._closing.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _send_batch(self, session: aiohttp.ClientSession) -> None:
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        body, odd = await encoded(batch, self._resource)
        if odd:
            self._lose(odd, "not_encodable")
        pause, longest = self._pauses
        for left in reversed(range(TRIES)):
            try:
                rejected = await self._send(session, body)
            except Refused as error:
                if left and error.again and not self._closing.is_set():
                    self._tell(error.reason)
                    await self._either(self._closing, pause)
                    pause = min(longest, pause * 2)
                    continue
                self._lose(len(batch) - odd, error.reason)
            else:
                self.exported += len(batch) - odd - rejected
                if rejected:
                    self._lose(rejected, "rejected")
            return

    async def _send(self, session: aiohttp.ClientSession, body: bytes) -> int:
        """Send one request. Returns how many of its spans the collector would not have. Raises Refused."""
        try:
            headers = await asyncio.to_thread(self._headers)
        except HeadersError:
            raise Refused("headers", again=True) from None
        headers |= {"content-type": "application/x-protobuf", "user-agent": "sluice-gateway"}
        try:
            async with session.post(self._endpoint, data=body, headers=headers, allow_redirects=False) as response:
                if not 200 <= response.status < 300:
                    raise Refused(f"status_{response.status}", again=response.status in AGAIN)
                answer = await response.content.read(MAX_ANSWER)
        except TimeoutError:
            raise Refused("timeout", again=True) from None
        except (aiohttp.ClientError, OSError):
            raise Refused("unreachable", again=True) from None
        try:
            rejected: int = ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans
        except DecodeError:
            return 0  # it said 200: an answer in another format is no reason to send all again
        return rejected

    def _headers(self) -> dict[str, str]:
        """Read each time, so that a token that was renewed in the Secret is the one that is sent."""
        if self._headers_file is None:
            return {}
        try:
            return parse_headers(self._headers_file.read_text())
        except (OSError, UnicodeDecodeError):
            raise HeadersError("the file cannot be read") from None

    def _lose(self, spans: int, reason: str) -> None:
        self.lost[reason] += spans
        self._untold += spans
        self._tell(reason)

    def _tell(self, reason: str, *, at_once: bool = False) -> None:
        """Say it in the log, once a minute at most: not where, since an address may tell a secret."""
        now = self._clock()
        if at_once:
            if not self._untold:
                return
        elif self._told is not None and now - self._told < LOG_SECONDS:
            return
        self._told = now
        logger.warning("traces do not reach the collector (%s); %d spans lost since last told", reason, self._untold)
        self._untold = 0

    def collect(self) -> Iterator[Metric]:
        """The metrics of docs/tracing.md."""
        yield CounterMetricFamily("sluice_trace_spans_exported", "Spans that the collector took.", self.exported)
        lost = CounterMetricFamily("sluice_trace_spans_lost", "Spans that were dropped.", labels=["reason"])
        for reason, n in sorted(self.lost.items()):
            lost.add_metric([reason], n)
        yield lost
        yield GaugeMetricFamily("sluice_trace_spans_waiting", "Spans not yet sent.", self.waiting)


async def encoded(batch: list[Span], resource: Resource) -> tuple[bytes, int]:
    """The body of a request, and how many spans it lacks: an engine's numbers and words may be what protobuf has no
    place for, such as a count beyond 64 bits.

    Pieces of one message, one after the other, are the message: that is how protobuf merges repeated fields
    (protobuf.dev/programming-guides/encoding, "Last One Wins")."""
    pieces, odd = [], 0
    for i in range(0, len(batch), PIECE):
        spans = []
        for span in batch[i : i + PIECE]:
            try:
                spans.append(otlp_span(span))
            except (ValueError, TypeError):  # among them UnicodeEncodeError
                odd += 1
        scoped = trace_pb2.ScopeSpans(scope=SCOPE, spans=spans)
        request = ExportTraceServiceRequest(
            resource_spans=[trace_pb2.ResourceSpans(resource=resource, scope_spans=[scoped])]
        )
        pieces.append(request.SerializeToString())
        await asyncio.sleep(0)
    return b"".join(pieces), odd


def otlp_span(span: Span) -> trace_pb2.Span:
    """As OTLP has it."""
    links = []
    if span.link is not None:
        flags = KNOWN | REMOTE | (SAMPLED if span.link.sampled else 0)
        trace_id, span_id = bytes.fromhex(span.link.trace_id), bytes.fromhex(span.link.span_id)
        links.append(trace_pb2.Span.Link(trace_id=trace_id, span_id=span_id, flags=flags))
    return trace_pb2.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        trace_state=span.state,
        name=span.name,
        kind=KINDS[span.kind],
        start_time_unix_nano=span.start,
        end_time_unix_nano=max(span.start, span.end),
        attributes=[key_value(name, value) for name, value in span.attributes.items()],
        links=links,
        flags=SAMPLED | KNOWN | (REMOTE if span.remote_parent else 0),
        status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR) if span.failed else None,
    )


def key_value(name: str, value: Value) -> KeyValue:
    """An attribute as OTLP has it."""
    match value:
        case bool():  # first: Python's bool is an int too
            found = AnyValue(bool_value=value)
        case int():
            found = AnyValue(int_value=value)
        case float():
            found = AnyValue(double_value=value)
        case str():
            found = AnyValue(string_value=value)
        case list():
            found = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=item) for item in value]))
    return KeyValue(key=name, value=found)
