"""Whose trace a request belongs to, whether it is sampled, and the settings that say so. Nothing is sent here."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.propagators.textmap import DefaultGetter
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sluice_serving.gateway.settings import SettingsError, read_settings
from sluice_serving.gateway.trace_context import MAX_MEMBERS, MAX_STATE, read_context, read_state, traceparent
from sluice_serving.gateway.trace_settings import TracingSettings
from sluice_serving.gateway.tracing import Sampling, Span, Trace, Tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def official(headers: dict[str, str]) -> tuple[str, str, bool] | None:
    """What OpenTelemetry's own propagator reads."""
    carrier = TraceContextTextMapPropagator().extract(headers, getter=DefaultGetter())
    found = get_current_span(carrier).get_span_context()
    return (f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled) if found.is_valid else None


hexes = st.text("0123456789abcdef", min_size=30, max_size=34)
parents = st.one_of(
    st.text(max_size=60),
    st.tuples(
        st.sampled_from(["00", "01", "ff", "0", "cc"]),
        hexes | st.just("0" * 32) | st.just(TRACE),
        st.text("0123456789abcdef", min_size=15, max_size=17) | st.just("0" * 16) | st.just(PARENT),
        st.sampled_from(["00", "01", "02", "03", "ff", "1", "01-x"]),
    ).map("-".join),
)


@given(parents)
@example(f"00-{TRACE}-{PARENT}-01")
@example(f"01-{TRACE}-{PARENT}-01-more")
def test_a_context_is_read_as_opentelemetry_reads_it(text: str) -> None:
    found = read_context([(b"traceparent", text.encode("latin-1", "replace"))])
    if found is None:
        # OpenTelemetry's takes trailing words only of later versions, and is laxer nowhere else that could be tried.
        assert official({"traceparent": text}) is None
    else:
        assert official({"traceparent": text.strip(" \t")}) == (found.trace_id, found.span_id, found.sampled)
        assert read_context([(b"traceparent", traceparent(TRACE, PARENT, sampled=True).encode())]) is not None


@pytest.mark.parametrize(
    "headers",
    [
        [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())] * 2,
        [(b"traceparent", f"00-{TRACE.upper()}-{PARENT}-01".encode())],
        [(b"traceparent", f"00-{TRACE}-{PARENT}-01\n".encode())],
        [(b"traceparent", f"01-{TRACE}-{PARENT}-01-{'x' * 200}".encode())],
        [(b"tracestate", b"a=1")],
    ],
)
def test_what_is_not_quite_a_context_is_none(headers: list[tuple[bytes, bytes]]) -> None:
    assert read_context(headers) is None


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ([b"a=1,b=2", b"c=3"], "a=1,b=2,c=3"),
        ([b" a=1 , , 0x@v=2 "], "a=1,0x@v=2"),
        ([b"a=1,a=2"], ""),
        ([b"A=1"], ""),
        ([b"a=1=2"], ""),
        ([b"a=\xe9"], ""),
        ([b"a=1\r\nx: y"], ""),
        ([b",".join(b"k%d=1" % i for i in range(MAX_MEMBERS + 1))], ""),
        ([b"a=" + b"x" * 250 + b",b=" + b"x" * 250 + b",c=" + b"x" * (MAX_STATE - 500)], ""),
    ],
)
def test_a_tracestate_is_passed_on_whole_or_not_at_all(sent: list[bytes], read: str) -> None:
    assert read_state(sent) == read


class Counting:
    """An exporter's place, for what is decided before it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, span: Span) -> None:
        self.spans.append(span)


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.sampled_from([None, True, False]), st.booleans())
def test_a_trusted_parent_decides_and_else_the_ratio(
    ratio: float, chance: float, parent: bool | None, trusted: bool
) -> None:
    exporter: Any = Counting()
    tracer = Tracer(Sampling(ratio, frozenset({"acme"} if trusted else ())), exporter, chance=lambda: chance)
    headers = [] if parent is None else [(b"traceparent", traceparent(TRACE, PARENT, sampled=parent).encode())]
    trace = Trace(tracer, "chat", {"headers": headers, "method": "POST", "path": "/v1/chat/completions"})
    trace.admit("acme")
    assert trace.sampled is (parent if trusted and parent is not None else chance < ratio)
    assert (trace.id == TRACE) is (trusted and parent is not None)
    trace.child("x", 1.0, 2.0, {})
    assert len(exporter.spans) == trace.sampled


def test_nobody_who_was_not_let_in_is_believed() -> None:
    assert Sampling(0, frozenset({"*"})).believes("acme")
    assert not Sampling(0, frozenset({"*", ""})).believes("")


# Settings


REQUIRED = {"SLUICE_KEYS_DIR": "/keys", "SLUICE_ROUTES_CONFIGMAP": "support/bot-routes"}


def test_settings_are_read_and_wrong_ones_are_named() -> None:
    assert read_settings(REQUIRED | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}).tracing is None
    env = {"ENDPOINT": "https://c/v1/traces", "RATIO": "0.5", "HEADERS_FILE": "/h", "TRUSTED_TENANTS": "a, b,"}
    found = read_settings(REQUIRED | {f"SLUICE_TRACING_{k}": v for k, v in env.items()}).tracing
    expected = TracingSettings("https://c/v1/traces", 0.5, Path("/h"), frozenset({"a", "b"}), namespace="support")
    assert found == expected


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"ENDPOINT": "c:4318"}, "SLUICE_TRACING_ENDPOINT"),
        ({"ENDPOINT": "https://me:s3cret@c/v1/traces"}, "SLUICE_TRACING_ENDPOINT"),
        ({"ENDPOINT": "https://c/v1/traces?key=s3cret"}, "SLUICE_TRACING_ENDPOINT"),
        ({"ENDPOINT": "http://c/v1/traces", "HEADERS_FILE": "/h"}, "SLUICE_TRACING_HEADERS_FILE"),
        ({"ENDPOINT": "http://c/v1/traces", "RATIO": "1.5"}, "SLUICE_TRACING_RATIO"),
        ({"ENDPOINT": "http://c/v1/traces", "RATIO": "nan"}, "SLUICE_TRACING_RATIO"),
        ({"RATIO": "0.5"}, "SLUICE_TRACING_RATIO"),
    ],
)
def test_wrong_settings_are_refused_without_repeating_secrets(env: dict[str, str], name: str) -> None:
    with pytest.raises(SettingsError, match=name) as refused:
        read_settings(REQUIRED | {f"SLUICE_TRACING_{k}": v for k, v in env.items()})
    assert "s3cret" not in str(refused.value)
