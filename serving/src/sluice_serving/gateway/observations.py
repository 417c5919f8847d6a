"""What happened to each version's requests: counted once, shown twice.

The same counts answer /analysis (since the analysis window began) and /metrics (since the process began), so that a
dashboard and a verdict cannot disagree.
"""

import secrets
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sluice_contracts.analysis import (
    COST_EDGES,
    LATENCY_EDGES,
    QUEUE_FLOOR_SECONDS,
    QUEUE_SAMPLE_SECONDS,
    REQUEST_BYTES_EDGES,
    TOKEN_EDGES,
    AnalysisSnapshot,
    Histogram,
    Shape,
    VersionCounts,
)
from sluice_contracts.base import timestamp
from sluice_contracts.routing import Backend, Price, RoutingTable

from sluice_serving.gateway.costs import request_cost

MAX_VERSIONS = 64
"""Versions kept in /metrics; a pool that sees more forgets those that are no longer routed to."""


@dataclass
class Outcome:
    """How one request ended for the version that had it."""

    failed: bool
    """The version's fault: 5xx, broken stream, timeout."""
    latency: float | None = None
    """Seconds from arrival at the engine to the last byte; None if there was no complete answer."""
    ttft: float | None = None
    """Seconds to the first token; None where the answer came in one piece."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    label: str = "ok"
    """`ok`, or what went wrong, for /metrics."""
    schema_owed: bool = False
    """Whether the request asked for a JSON shape."""
    schema_valid: bool | None = None
    """Whether the answer has it; None if it owed none after all, or nobody could tell."""
    cost: float | None = None
    """In the price's currency; filled in when the outcome is counted."""

    @property
    def inter_token(self) -> float | None:
        """Mean seconds between tokens: one value a request, since the gaps within a request are not independent."""
        if self.ttft is None or self.latency is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Mirrored:
    """What became of one copy of a request."""

    outcome: str
    """`scored`; `failed`: no answer in time, which scores 0; `no_room`, `judge_failed`, `not_comparable`: no score."""
    score: float | None = None
    similarity: float | None = None
    """To stable's answer, whoever judges."""
    length: float | None = None
    """The shorter answer's length over the longer one's."""
    schema_valid: bool | None = None


@dataclass
class Sum:
    """A mean in the making."""

    n: int = 0
    total: float = 0.0

    def add(self, value: float | None) -> None:
        """Take in one value, if it is one."""
        if value is not None:
            self.n, self.total = self.n + 1, self.total + value


@dataclass
class Totals:
    """One version since the process began."""

    counts: VersionCounts = field(default_factory=VersionCounts)
    outcomes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    queue: Histogram = field(default_factory=lambda: Histogram.empty(LATENCY_EDGES))
    """Of all requests, those judged and the others."""
    schema: Counter[str] = field(default_factory=Counter)
    mirrored: Counter[str] = field(default_factory=Counter)
    mirror_schema: Counter[str] = field(default_factory=Counter)
    mirror_score: Sum = field(default_factory=Sum)
    mirror_similarity: Sum = field(default_factory=Sum)
    mirror_length: Sum = field(default_factory=Sum)


class Observations:
    """All counts of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.instance = secrets.token_hex(8)
        self.pool = ""
        """Namespace and name, once there is a table."""
        self._clock = clock
        self._prices: dict[str, Price | None] = {}
        self._wait_judged: dict[str, float] = {}
        self.window = ""
        self.since = datetime.now(UTC)
        self.versions: dict[str, VersionCounts] = {}
        self.totals: dict[str, Totals] = {}
        self.rejected: Counter[str] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        """Answers by kind of fallback, and which: a version of another pool's, or a template."""
        self.fallback_model: Counter[str] = Counter()
        """Requests for another pool's model, by what came of them."""
        self.retries = 0

    def follow(self, table: RoutingTable) -> None:
        """Take the table's window and versions. Another window starts the counts anew."""
        if table.window != self.window or not self.versions:
            self.window, self.since, self.versions = table.window, datetime.now(UTC), {}
        self.pool = f"{table.namespace}/{table.pool}"
        self._prices = {b.model_version: b.price for b in table.backends}
        for backend in table.backends:
            if backend.model_version not in self.versions:
                self.versions[backend.model_version] = _nothing()
            self._total(backend.model_version)
        routed = {b.model_version for b in table.backends}
        for name in [n for n in self.totals if n not in routed][: max(0, len(self.totals) - MAX_VERSIONS)]:
            del self.totals[name]

    def record(self, version: str, window: str, outcome: Outcome, request_bytes: int) -> None:
        """Count one request of so many bytes. One that began in an earlier window counts for /metrics only."""
        self._sum_up(version, self._prices.get(version), outcome)
        if window == self.window and version in self.versions:
            _count(self.versions[version], outcome)
            _shape(self.versions[version].by_length[bisect_left(REQUEST_BYTES_EDGES, request_bytes)], outcome)

    def elsewhere(self, backend: Backend, outcome: Outcome) -> None:
        """Count a request that another pool's version had: for /metrics only, by that pool's prices. It says nothing of
        this pool's versions, not even of one by the same name."""
        self._sum_up(backend.model_version, backend.price, outcome)

    def _sum_up(self, version: str, price: Price | None, outcome: Outcome) -> None:
        outcome.cost = request_cost(price, outcome.latency, outcome.prompt_tokens, outcome.output_tokens)
        total = self._total(version)
        _count(total.counts, outcome)
        total.cost += outcome.cost or 0.0
        if outcome.schema_owed:
            total.schema[_schema_result(outcome.schema_valid)] += 1
        total.outcomes[outcome.label] += 1
        total.prompt_tokens += outcome.prompt_tokens or 0
        total.output_tokens += outcome.output_tokens or 0

    def waited(self, version: str, window: str, seconds: float) -> None:
        """Count how long a request was in the queue, whether it then got a place or not."""
        self._total(version).queue.observe(LATENCY_EDGES, seconds)
        now = self._clock()
        last = self._wait_judged.get(version)
        if window != self.window or version not in self.versions:
            return
        if last is None or now - last >= QUEUE_SAMPLE_SECONDS:
            self._wait_judged = {n: t for n, t in self._wait_judged.items() if n in self.versions} | {version: now}
            self.versions[version].queue.observe(LATENCY_EDGES, max(QUEUE_FLOOR_SECONDS, seconds))

    def mirrored(self, version: str, window: str, seen: Mirrored) -> None:
        """Count a copy. It is no request of anyone's, so it counts nowhere else."""
        total = self._total(version)
        total.mirrored[seen.outcome] += 1
        total.mirror_score.add(seen.score)
        total.mirror_similarity.add(seen.similarity)
        total.mirror_length.add(seen.length)
        if seen.schema_valid is not None:
            total.mirror_schema[_schema_result(seen.schema_valid)] += 1
        if seen.score is not None and window == self.window and version in self.versions:
            self.versions[version].mirror_scored += 1
            self.versions[version].mirror_score += seen.score

    def _total(self, version: str) -> Totals:
        """Made where it is missing, and only there: empty histograms cost more than the rest of a request's counts."""
        total = self.totals.get(version)
        if total is None:
            total = self.totals[version] = Totals()
        return total

    def snapshot(self) -> AnalysisSnapshot:
        """The answer of GET /analysis."""
        return AnalysisSnapshot(
            instance=self.instance, window=self.window, since=timestamp(self.since), versions=self.versions
        )


def _nothing() -> VersionCounts:
    return VersionCounts(by_length=[Shape() for _ in range(len(REQUEST_BYTES_EDGES) + 1)])


def _count(counts: VersionCounts, outcome: Outcome) -> None:
    counts.requests += 1
    counts.errors += outcome.failed
    if outcome.finish_reason:
        counts.finish_reasons[outcome.finish_reason] = counts.finish_reasons.get(outcome.finish_reason, 0) + 1
    if outcome.schema_valid is not None:
        counts.schema_checked += 1
        counts.schema_invalid += not outcome.schema_valid
    _shape(counts, outcome)


def _schema_result(valid: bool | None) -> str:
    return "unchecked" if valid is None else "valid" if valid else "invalid"


def _shape(shape: Shape, outcome: Outcome) -> None:
    if outcome.ttft is not None:
        shape.ttft.observe(LATENCY_EDGES, outcome.ttft)
    if outcome.failed or outcome.latency is None:
        return
    shape.latency.observe(LATENCY_EDGES, outcome.latency)
    if outcome.inter_token is not None:
        shape.inter_token.observe(LATENCY_EDGES, outcome.inter_token)
    if outcome.output_tokens is not None:
        shape.output_tokens.observe(TOKEN_EDGES, outcome.output_tokens)
    if outcome.cost is not None:
        shape.cost.observe(COST_EDGES, outcome.cost)
