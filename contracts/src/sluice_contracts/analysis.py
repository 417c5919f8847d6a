"""What a gateway has counted per version: the evidence a canary is judged by. No content, no identities."""

from bisect import bisect_left
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sluice_contracts.base import Contract, ShortText, Timestamp
from sluice_contracts.kubernetes import ObjectName

COARSE = 5
"""Every so many latency edges make one bucket of /metrics: a verdict needs finer ones than a dashboard does."""
LATENCY_EDGES: tuple[float, ...] = tuple(round(0.001 * 1.25 ** (i / 5), 9) for i in range(256))
"""Upper edges in seconds: 1 ms to about 88 s, each 4.6 % above the one before, so that a growth of a few per cent can
be seen. A value above the last falls into the overflow bucket."""
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
COST_EDGES: tuple[float, ...] = tuple(float(f"{1e-6 * 1.25 ** (i / 5):.9g}") for i in range(400))
"""Upper edges of a request's cost in the price table's currency: a millionth to about 54, as far apart as those of
LATENCY_EDGES, so that the same test of quantiles holds."""
QUEUE_FLOOR_SECONDS = 0.025
"""Shorter waits count as this long: nobody notices them, and growth from nothing has no measure."""
QUEUE_SAMPLE_SECONDS = 5.0
"""Of each version's waits one in so many seconds is judged. Requests that come close together wait for the same ones
before them; those far apart hardly do."""
REQUEST_BYTES_EDGES: tuple[int, ...] = (512, 2048, 8192, 32768)
"""Upper edges of request lengths: about 100, 500, 2,000 and 8,000 tokens of English. Bytes, not tokens: they are known
before the answer, of failed requests too, and do not change with a version's tokenizer or chat template."""

CLIENT_CLOSED = "client_closed"
"""The finish reason of an answer whose client did not wait for its end."""


class Histogram(Contract):
    """Counts of values at or below each edge and above the one before; the last count is the overflow."""

    counts: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=512)]
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


class Shape(Contract):
    """How quick and how long the answers were."""

    ttft: Histogram = Field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    latency: Histogram = Field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    inter_token: Histogram = Field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    output_tokens: Histogram = Field(default_factory=lambda: Histogram.empty(TOKEN_EDGES))
    cost: Histogram = Field(default_factory=lambda: Histogram.empty(COST_EDGES))
    """Of requests whose version has a price."""

    def merged(self, other: "Shape") -> "Shape":
        """Both together."""
        return Shape(
            ttft=self.ttft.plus(other.ttft),
            latency=self.latency.plus(other.latency),
            inter_token=self.inter_token.plus(other.inter_token),
            output_tokens=self.output_tokens.plus(other.output_tokens),
            cost=self.cost.plus(other.cost),
        )


class VersionCounts(Shape):
    """What happened to one version's requests in the window."""

    requests: Annotated[int, Field(ge=0)] = 0
    errors: Annotated[int, Field(ge=0)] = 0
    """Requests that the version failed: 5xx, a broken stream, a timeout. Clients' own errors and 429 do not count."""
    finish_reasons: Annotated[
        dict[Annotated[str, StringConstraints(max_length=32)], Annotated[int, Field(ge=0)]], Field(max_length=64)
    ] = {}
    """The engine's words, and CLIENT_CLOSED where the client left before the end."""
    queue: Histogram = Field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    """Seconds in the gateway's queue, of one request in each QUEUE_SAMPLE_SECONDS."""
    schema_checked: Annotated[int, Field(ge=0)] = 0
    """Answers that owed a JSON shape, to a schema or as a tool's arguments, and could be checked."""
    schema_invalid: Annotated[int, Field(ge=0)] = 0
    """Those of them that broke it."""
    mirror_scored: Annotated[int, Field(ge=0)] = 0
    """Copies of requests whose answers were scored; they count nowhere else. Stable's own are answers to a question it
    had answered already: they show how alike two good answers are."""
    mirror_score: Annotated[float, Field(ge=0)] = 0
    """Sum of their scores, each from 0 (useless) to 1 (as good as stable's first answer)."""
    by_length: Annotated[list[Shape], Field(max_length=16)] = []
    """The same answers by the length of their requests: a bucket for each of REQUEST_BYTES_EDGES and one for longer
    ones. Empty where they were not told apart: all count as one bucket then."""

    @model_validator(mode="after")
    def _errors_are_requests(self) -> Self:
        if self.errors > self.requests:
            raise ValueError("errors cannot outnumber requests")
        if self.schema_invalid > self.schema_checked:
            raise ValueError("invalid answers cannot outnumber those that were checked")
        if self.mirror_score > self.mirror_scored * (1 + 1e-9):
            raise ValueError("mirrored answers score 1 at most")
        return self

    def strata(self) -> "list[Shape]":
        """The answers in buckets of like requests."""
        return self.by_length or [self]

    def plus(self, other: "VersionCounts") -> "VersionCounts":
        """Both counts together. They stay apart by request length only if both are, or one has counted nothing."""
        both = self.merged(other)
        reasons = dict(self.finish_reasons)
        for reason, n in other.finish_reasons.items():
            reasons[reason] = reasons.get(reason, 0) + n
        if len(self.by_length) == len(other.by_length):
            by_length = [a.merged(b) for a, b in zip(self.by_length, other.by_length, strict=True)]
        elif self.requests == 0 or other.requests == 0:
            by_length = self.by_length if other.requests == 0 else other.by_length
        else:
            by_length = []
        return VersionCounts(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            ttft=both.ttft,
            latency=both.latency,
            inter_token=both.inter_token,
            output_tokens=both.output_tokens,
            cost=both.cost,
            finish_reasons=reasons,
            queue=self.queue.plus(other.queue),
            schema_checked=self.schema_checked + other.schema_checked,
            schema_invalid=self.schema_invalid + other.schema_invalid,
            mirror_scored=self.mirror_scored + other.mirror_scored,
            mirror_score=self.mirror_score + other.mirror_score,
            by_length=by_length,
        )


class AnalysisSnapshot(Contract):
    """GET /analysis of a gateway's internal port: counts since the window began."""

    schema_version: Literal[1] = 1
    instance: ShortText
    """Random id of the gateway process: a restart starts the counts anew."""
    window: ShortText
    since: Timestamp
    versions: dict[ObjectName, VersionCounts]
