"""What a pool says of tracing, from SLUICE_TRACING_* variables. OTEL_* variables are not looked at: a cluster that sets
them everywhere has not asked this gateway for anything."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sluice_serving.gateway.tracing import Sampling, Tracer

LOOPBACK = ("http://127.0.0.1:", "http://localhost:", "http://[::1]:")
_URL = re.compile(r"https?://[^\s@?#/]+(/[^\s@?#]*)?")
"""No name and password, and no query: an address is written to places where secrets are not."""


class WrongTracing(Exception):
    """A variable is wrong; the message names it."""


@dataclass(frozen=True)
class TracingSettings:
    """Where traces go, and which."""

    endpoint: str
    """The whole URL that OTLP requests are POSTed to, as in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT."""
    ratio: float
    headers_file: Path | None = None
    trusted_tenants: frozenset[str] = frozenset()
    service: str = "sluice-gateway"
    namespace: str = ""


def read_tracing(env: Mapping[str, str]) -> TracingSettings | None:
    """The settings, None where no endpoint is set. Raises WrongTracing."""
    endpoint = env.get("SLUICE_TRACING_ENDPOINT")
    if not endpoint:
        for name in ("RATIO", "HEADERS_FILE", "TRUSTED_TENANTS"):
            if env.get(f"SLUICE_TRACING_{name}"):
                raise WrongTracing(f"SLUICE_TRACING_{name} is set, but SLUICE_TRACING_ENDPOINT is not: send where?")
        return None
    if _URL.fullmatch(endpoint) is None:  # not repeated here: it may hold a password
        raise WrongTracing(
            "SLUICE_TRACING_ENDPOINT must be the http:// or https:// URL that traces are sent to, such as "
            "http://collector:4318/v1/traces, without user, password, query or fragment"
        )
    file = env.get("SLUICE_TRACING_HEADERS_FILE")
    if file and not endpoint.startswith(("https://", *LOOPBACK)):
        raise WrongTracing(
            "SLUICE_TRACING_HEADERS_FILE is set and SLUICE_TRACING_ENDPOINT is not https://: a token would be readable "
            "on its way"
        )
    text = env.get("SLUICE_TRACING_RATIO") or "0.01"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise WrongTracing(f"SLUICE_TRACING_RATIO is {text!r}; expected a share of requests from 0 to 1, such as 0.01")
    tenants = (t.strip() for t in (env.get("SLUICE_TRACING_TRUSTED_TENANTS") or "").split(","))
    return TracingSettings(
        endpoint=endpoint,
        ratio=ratio,
        headers_file=Path(file) if file else None,
        trusted_tenants=frozenset(t for t in tenants if t),
        service=env.get("SLUICE_TRACING_SERVICE") or "sluice-gateway",
        namespace=(env.get("SLUICE_ROUTES_CONFIGMAP") or "").partition("/")[0],
    )


def make_tracer(settings: TracingSettings) -> Tracer:
    """A tracer and its exporter, not yet running."""
    # Only here: who does not trace does not load protobuf.
    from sluice_serving.gateway.trace_export import TraceExporter

    resource = {"service.name": settings.service, "service.instance.id": socket.gethostname()}
    if settings.namespace:
        resource |= {"service.namespace": settings.namespace, "k8s.namespace.name": settings.namespace}
    exporter = TraceExporter(settings.endpoint, resource, settings.headers_file)
    return Tracer(Sampling(settings.ratio, settings.trusted_tenants), exporter)
