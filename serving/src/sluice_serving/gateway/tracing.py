"""Which requests are traced, and what each is a part of.

Written on OTLP itself (opentelemetry-proto) rather than the OpenTelemetry SDK: the SDK takes orders from dozens of
OTEL_* variables, down to which classes to load, starts a thread that competes with the event loop, and makes its spans
at the moment they begin. Here nothing is read but the gateway's own settings, a request that is not sampled costs two
random numbers, and one that is costs a few tuples, encoded later and elsewhere (`trace_export`).

Whether a request is sampled is decided here, once, and everyone behind follows (parent-based): the engine is told in
`traceparent` also where the answer is no, for it would else decide by itself.

What a client says of its own trace is believed for the tenants that the pool trusts: their requests join the client's
trace, sampled where the client's is. For all others a trace begins here, and only a link leads back: as OpenTelemetry
has it for public endpoints. Nobody outside can thus have himself sampled, or write into a trace of others.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from starlette.types import Scope

from sluice_serving.gateway.admission import Overloaded
from sluice_serving.gateway.errors import ApiError, EngineFailed
from sluice_serving.gateway.parameters import Kind
from sluice_serving.gateway.trace_context import TraceContext, read_context, traceparent

if TYPE_CHECKING:
    from sluice_contracts.routing import Backend

    from sluice_serving.gateway.exchange import Exchange
    from sluice_serving.gateway.observations import Outcome
    from sluice_serving.gateway.trace_export import TraceExporter

Value = str | int | float | bool | list[str]
SpanKind = Literal["internal", "server", "client"]
ANYONE = "*"
OPERATIONS: dict[Kind, str] = {
    "chat": "chat", "text": "text_completion", "embeddings": "embeddings", "responses": "chat"
}  # fmt: skip
"""`gen_ai.operation.name` by kind of request: the conventions' well-known values."""
PROVIDER = "vllm"
MAX_WORD = 64
"""Characters of an engine's word."""


@dataclass(slots=True)
class Span:
    """One piece of work, complete. Times are nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: SpanKind
    start: int
    end: int
    attributes: dict[str, Value]
    failed: bool = False
    state: str = ""
    remote_parent: bool = False
    link: TraceContext | None = None


@dataclass(frozen=True)
class Sampling:
    """Which requests are traced."""

    ratio: float
    """Of the requests that no trusted client has decided about; 0 to 1."""
    trusted: frozenset[str] = frozenset()
    """Tenants whose clients' trace contexts are believed; `*` is all of them."""

    def believes(self, tenant: str) -> bool:
        """Whether that tenant's clients may say what a request is a part of."""
        return tenant != "" and (tenant in self.trusted or ANYONE in self.trusted)


@dataclass
class Tracer:
    """What the traces of one gateway share."""

    sampling: Sampling
    exporter: "TraceExporter"
    chance: Callable[[], float] = random.random
    bits: Callable[[int], int] = random.getrandbits

    @contextmanager
    def following(self, exchange: "Exchange", scope: Scope) -> Iterator[None]:
        """A request, from its arrival to its end. Nothing is decided before it is known whose it is."""
        exchange.trace = trace = Trace(self, exchange.kind, scope)
        try:
            yield
        finally:
            trace.end(exchange)

    def new_id(self, bits: int) -> str:
        """A random id in hexadecimal; never the invalid one of zeros."""
        return f"{self.bits(bits) or 1:0{bits // 4}x}"


class Trace:
    """One request's part in a trace, sampled or not."""

    __slots__ = ("_base", "_began", "_kind", "_link", "_parent", "_scope", "_tracer", "id", "sampled", "span_id")

    def __init__(self, tracer: Tracer, kind: Kind, scope: Scope) -> None:
        self._tracer, self._kind, self._scope = tracer, kind, scope
        self._began = time.monotonic()
        self._base = 0
        self._parent: TraceContext | None = None
        self._link: TraceContext | None = None
        self.id = ""
        self.span_id = ""
        self.sampled = False

    def admit(self, tenant: str) -> None:
        """Decide, now that it is known whose request it is; `tenant` is empty where nobody was believed."""
        tracer = self._tracer
        caller = read_context(self._scope["headers"])
        if caller is not None and tracer.sampling.believes(tenant):
            self._parent, self.id, self.sampled = caller, caller.trace_id, caller.sampled
        else:
            self._link, self.id = caller, tracer.new_id(128)
            self.sampled = tracer.chance() < tracer.sampling.ratio
        self.span_id = tracer.new_id(64)
        if self.sampled:
            self._base = time.time_ns() - int(time.monotonic() * 1e9)

    def headers(self, span_id: str) -> dict[str, str]:
        """What tells an engine that it works for the span of that id."""
        sent = {"traceparent": traceparent(self.id, span_id, sampled=self.sampled)}
        if self._parent is not None and self._parent.state:
            sent["tracestate"] = self._parent.state
        return sent

    def child(
        self,
        name: str,
        began: float,
        ended: float,
        attributes: dict[str, Value],
        *,
        span_id: str = "",
        kind: SpanKind = "internal",
        failed: bool = False,
    ) -> None:
        """A piece of the request's work that is done. Times are of `time.monotonic`."""
        if not self.sampled:
            return
        state = self._parent.state if self._parent else ""
        start, end = self._base + int(began * 1e9), self._base + int(ended * 1e9)
        span_id = span_id or self._tracer.new_id(64)
        self._tracer.exporter.add(
            Span(self.id, span_id, self.span_id, name, kind, start, end, attributes, failed, state)
        )

    def waiting(self, backend: "Backend", *, held: bool) -> "Waiting":
        """The request stands in the lane of `backend`. `held`: whose engine has not answered yet."""
        return Waiting(self, backend, held)

    def attempt(self, exchange: "Exchange | None", backend: "Backend", model: str, name: str = "") -> "Attempt":
        """The engine of `backend` is asked. Without `exchange` it is a copy, of which only the time is known."""
        return Attempt(self, exchange, backend, model, name)

    def end(self, exchange: "Exchange") -> None:
        """The request is over, however it ended."""
        if not self.id:
            self.admit("")
        if not self.sampled:
            return
        visit = exchange.visit
        if visit is not None and visit.looked is not None:
            began, ended, result = visit.looked
            self.child("context", began, ended, {"sluice.context": result}, failed=result == "unavailable")
        attributes = request_attributes(exchange, self._scope)
        refused, outcome = exchange.refusal, exchange.outcome
        parent = self._parent
        self._tracer.exporter.add(
            Span(
                self.id,
                self.span_id,
                parent.span_id if parent else "",
                f"{self._scope['method']} {self._scope['path']}",
                "server",
                self._base + int(self._began * 1e9),
                self._base + int(time.monotonic() * 1e9),
                attributes,
                failed=(refused is not None and refused.status >= 500) or (outcome is not None and outcome.failed),
                state=parent.state if parent else "",
                remote_parent=parent is not None,
                link=self._link,
            )
        )


class Waiting:
    """A request's time in a lane, with or without a place at the end."""

    __slots__ = ("_backend", "_began", "_held", "_trace")

    def __init__(self, trace: Trace, backend: "Backend", held: bool) -> None:
        self._trace, self._backend, self._held = trace, backend, held
        self._began = time.monotonic()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:  # fmt: skip
        trace = self._trace
        if not trace.sampled:
            return
        attributes: dict[str, Value] = {"sluice.version": self._backend.model_version, "sluice.held": self._held}
        if error is not None:
            attributes["error.type"] = error_type(error)
        failed = error is not None and not isinstance(error, asyncio.CancelledError)
        trace.child("queue", self._began, time.monotonic(), attributes, failed=failed)


class Attempt:
    """One request to an engine. A span of its own, whose id the engine gets as its parent."""

    __slots__ = ("_backend", "_began", "_exchange", "_model", "_name", "_span_id", "_trace", "headers")

    def __init__(
        self, trace: Trace, exchange: "Exchange | None", backend: "Backend", model: str, name: str
    ) -> None:  # fmt: skip
        self._trace, self._exchange, self._backend, self._model, self._name = trace, exchange, backend, model, name
        self._span_id = trace._tracer.new_id(64) if trace.sampled else trace.span_id
        self.headers = trace.headers(self._span_id)
        self._began = time.monotonic()

    def __enter__(self) -> Mapping[str, str]:
        return self.headers

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:  # fmt: skip
        trace = self._trace
        if not trace.sampled:
            return
        operation = OPERATIONS[trace._kind]
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self._model,
            **address_attributes(self._backend.url),
            **backend_attributes(self._backend),
        }
        if error is not None:
            attributes["error.type"] = error_type(error)
        elif self._exchange is not None and self._exchange.outcome is not None:
            attributes |= answer_attributes(self._exchange.outcome)
        trace.child(
            self._name or f"{operation} {self._model}",
            self._began,
            time.monotonic(),
            attributes,
            span_id=self._span_id,
            kind="client",
            # A client that left, or ran out of time, says nothing of the engine.
            failed=error is not None and not isinstance(error, asyncio.CancelledError),
        )


def error_type(error: BaseException) -> str:
    """What an attempt came to, in a word: an error's message may quote what was said."""
    match error:
        case asyncio.CancelledError():
            return "cancelled"
        case Overloaded():
            return error.kind
        case TimeoutError():
            return "timeout"
        case EngineFailed():
            return "unavailable" if error.unavailable else "engine_error"
        case ApiError():
            return error.code or str(error.status)
    return type(error).__name__


class Untraced:
    """In the place of all of these where nothing is traced."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


UNTRACED = Untraced()


def address_attributes(url: str) -> dict[str, Value]:
    """Where an engine was asked; empty where the URL is none, which is the attempt's trouble and not the trace's."""
    try:
        address = urlsplit(url)
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError:
        return {}
    return {"server.address": address.hostname or "", "server.port": port}


def backend_attributes(backend: "Backend") -> dict[str, Value]:
    """Which version was asked."""
    return {"sluice.version": backend.model_version, "sluice.lineage": backend.lineage}


def answer_attributes(outcome: "Outcome") -> dict[str, Value]:
    """What is told of an answer: how much and how fast, never what."""
    found: dict[str, Value] = {}
    if outcome.prompt_tokens is not None:
        found["gen_ai.usage.input_tokens"] = outcome.prompt_tokens
    if outcome.output_tokens is not None:
        found["gen_ai.usage.output_tokens"] = outcome.output_tokens
    if outcome.finish_reason is not None:
        found["gen_ai.response.finish_reasons"] = [outcome.finish_reason[:MAX_WORD]]
    if outcome.ttft is not None:
        found["gen_ai.response.time_to_first_chunk"] = outcome.ttft
    return found


def request_attributes(exchange: "Exchange", scope: Scope) -> dict[str, Value]:
    """The server span's: HTTP's and GenAI's semantic conventions, and Sluice's own under `sluice.`. Pure.

    No header, query or user agent of the client's is in it, and no name of a user: those are the client's own words."""
    refusal, outcome, backend = exchange.refusal, exchange.outcome, exchange.backend
    found: dict[str, Value] = {
        "http.request.method": scope["method"],
        "http.route": scope["path"],
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "gen_ai.operation.name": OPERATIONS[exchange.kind],
        "sluice.request_id": exchange.id,
        "sluice.route": exchange.route,
    }
    if exchange.tenant:
        found["sluice.tenant"] = exchange.tenant
    if exchange.model:
        found["gen_ai.request.model"] = exchange.model
    if backend is not None:
        found |= backend_attributes(backend)
    if exchange.lookup is not None:
        found["sluice.cache"] = exchange.lookup.word
    if outcome is not None:
        found["sluice.outcome"] = outcome.label
        found |= answer_attributes(outcome)
    if refusal is not None:
        found["http.response.status_code"] = refusal.status
        found["error.type"] = refusal.code or str(refusal.status)
    elif exchange.started:
        found["http.response.status_code"] = 200
    if refusal is None and outcome is not None and (outcome.failed or outcome.label == "client_closed"):
        found["error.type"] = outcome.label
    return found
