"""Traces of requests: an InferencePool's `spec.gateway.tracing`. Without it nothing is traced."""

from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract
from sluice_contracts.kubernetes import SecretKeyReference, cel

TracedTenant = Annotated[
    str, StringConstraints(pattern=r"^(\*|[-._a-zA-Z0-9]+)$", min_length=1, max_length=253)
]  # fmt: skip
"""A key of the tenants' Secret, or `*` for all of them."""


class Tracing(Contract):
    """The gateway sends a trace of some requests to an OpenTelemetry collector (OTLP over HTTP, protobuf). No content,
    key or name of a user is in it."""

    model_config = cel(
        (
            "!has(self.headersSecretRef) || self.endpoint.startsWith('https://')",
            "gateway.tracing.headersSecretRef needs an endpoint that begins with https://: a token would be readable "
            "on its way",
        ),
        (
            "!self.engines || !has(self.headersSecretRef)",
            "gateway.tracing.engines and gateway.tracing.headersSecretRef do not go together: engines hold no secrets "
            "of the gateway; name a collector in the cluster that asks for no headers",
        ),
    )

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@?#/]+(/[^\s@?#]*)?$", max_length=512)]
    """The whole URL that traces are POSTed to, such as http://collector.observability:4318/v1/traces; without user,
    password or query, which anyone who may read the pool would read."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of requests that are traced, where no trusted client has decided."""
    headers_secret_ref: SecretKeyReference | None = None
    """Headers for the collector, such as a token: `name=value`, separated by commas, values percent-encoded, as in
    OTEL_EXPORTER_OTLP_HEADERS. Read anew for each request to it."""
    trusted_tenants: Annotated[list[TracedTenant], Field(max_length=64)] = []
    """Tenants whose requests join the trace that their `traceparent` names, and are sampled where it says so. Others
    can do neither: their requests begin a trace here, with a link to theirs."""
    engines: bool = False
    """Whether vLLM adds a span to each request that is traced. A change replaces the pool's engines in place."""
