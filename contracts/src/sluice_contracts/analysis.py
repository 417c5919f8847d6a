"""What a gateway has counted per version: the evidence a canary is judged by. No content, no identities."""

from bisect import bisect_left
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sluice_contracts.base import Contract, ShortText, Timestamp
from sluice_contracts.kubernetes import ObjectName

LATENCY_EDGES: tuple[float, ...] = tuple(round(0.001 * 1.25**i, 6) for i in range(52))
"""Upper edges in seconds: 1 ms to about 88 s, each 25 % above the one before. A value above the last falls into the
overflow bucket."""
TOKEN_EDGES: tuple[float, ...] = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    2048,
    4096,
)
"""Upper edges of output lengths in tokens."""


class Histogram(Contract):
    """Counts of values at or below each edge and above the one before; the last count is the overflow."""

    counts: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=64)]
    total: Annotated[float, Field(ge=0)] = 0
    """Sum of the values."""

    @property
    def n(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    @classmethod
    def empty(cls, edges: tuple[float, ...]) -> Self:
        """A histogram over `edges` that has counted nothing."""
        return cls(counts=[0] * (len(edges) + 1))

    def observe(self, edges: tuple[float, ...], value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(edges, value)] += 1
        self.total += value

    def plus(self, other: "Histogram") -> "Histogram":
        """Both histograms' counts together. Raises ValueError if they have different edges."""
        if len(self.counts) != len(other.counts):
            raise ValueError("histograms with different edges cannot be added")
        return Histogram(
            counts=[a + b for a, b in zip(self.counts, other.counts, strict=True)], total=self.total + other.total
        )


class VersionCounts(Contract):
    """What happened to one version's requests in the window."""

    requests: Annotated[int, Field(ge=0)] = 0
    errors: Annotated[int, Field(ge=0)] = 0
    """Requests that the version failed: 5xx, a broken stream, a timeout. Clients' own errors and 429 do not count."""
    ttft: Histogram = Field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    latency: Histogram = Field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    inter_token: Histogram = Field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    output_tokens: Histogram = Field(default_factory=lambda: Histogram.empty(TOKEN_EDGES))
    finish_reasons: dict[Annotated[str, StringConstraints(max_length=32)], int] = {}

    @model_validator(mode="after")
    def _errors_are_requests(self) -> Self:
        if self.errors > self.requests:
            raise ValueError("errors cannot outnumber requests")
        return self

    def plus(self, other: "VersionCounts") -> "VersionCounts":
        """Both counts together."""
        reasons = dict(self.finish_reasons)
        for reason, n in other.finish_reasons.items():
            reasons[reason] = reasons.get(reason, 0) + n
        return VersionCounts(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            ttft=self.ttft.plus(other.ttft),
            latency=self.latency.plus(other.latency),
            inter_token=self.inter_token.plus(other.inter_token),
            output_tokens=self.output_tokens.plus(other.output_tokens),
            finish_reasons=reasons,
        )


class AnalysisSnapshot(Contract):
    """GET /analysis of a gateway's internal port: counts since the window began."""

    schema_version: Literal[1] = 1
    instance: ShortText
    """Random id of the gateway process: a restart starts the counts anew."""
    window: ShortText
    since: Timestamp
    versions: dict[ObjectName, VersionCounts]
