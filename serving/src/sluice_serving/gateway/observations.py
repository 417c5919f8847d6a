"""What happened to each version's requests: counted once, shown twice.

The same counts answer /analysis (since the analysis window began) and /metrics (since the process began), so that a
dashboard and a verdict cannot disagree.
"""

import secrets
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sluice_contracts.analysis import (
    COARSE,
    LATENCY_EDGES,
    REQUEST_BYTES_EDGES,
    TOKEN_EDGES,
    AnalysisSnapshot,
    Histogram,
    Shape,
    VersionCounts,
)
from sluice_contracts.base import timestamp
from sluice_contracts.routing import RoutingTable

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

    @property
    def inter_token(self) -> float | None:
        """Mean seconds between tokens: one value a request, since the gaps within a request are not independent."""
        if self.ttft is None or self.latency is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)


@dataclass
class Totals:
    """One version since the process began."""

    counts: VersionCounts = field(default_factory=VersionCounts)
    outcomes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    output_tokens: int = 0


class Observations:
    """All counts of this process."""

    def __init__(self) -> None:
        self.instance = secrets.token_hex(8)
        self.window = ""
        self.since = datetime.now(UTC)
        self.versions: dict[str, VersionCounts] = {}
        self.totals: dict[str, Totals] = {}
        self.rejected: Counter[str] = Counter()
        self.fallbacks = 0
        self.retries = 0

    def follow(self, table: RoutingTable) -> None:
        """Take the table's window and versions. Another window starts the counts anew."""
        if table.window != self.window or not self.versions:
            self.window, self.since, self.versions = table.window, datetime.now(UTC), {}
        for backend in table.backends:
            self.versions.setdefault(backend.model_version, _nothing())
            self.totals.setdefault(backend.model_version, Totals())
        routed = {b.model_version for b in table.backends}
        for name in [n for n in self.totals if n not in routed][: max(0, len(self.totals) - MAX_VERSIONS)]:
            del self.totals[name]

    def record(self, version: str, window: str, outcome: Outcome, request_bytes: int) -> None:
        """Count one request of so many bytes. One that began in an earlier window counts for /metrics only."""
        total = self.totals.setdefault(version, Totals())
        _count(total.counts, outcome)
        total.outcomes[outcome.label] += 1
        total.prompt_tokens += outcome.prompt_tokens or 0
        total.output_tokens += outcome.output_tokens or 0
        if window == self.window and version in self.versions:
            _count(self.versions[version], outcome)
            _shape(self.versions[version].by_length[bisect_left(REQUEST_BYTES_EDGES, request_bytes)], outcome)

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
    _shape(counts, outcome)


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


@dataclass
class Gauges:
    """The state of things at the moment of a scrape."""

    in_flight: dict[str, int]
    waiting: dict[str, int]
    weights: dict[str, int]
    interactions_waiting: int
    interactions_dropped: int
    ready: bool


class MetricsCollector(Collector):
    """Prometheus's view of `Observations` and `Gauges`."""

    def __init__(self, observations: Observations) -> None:
        self.observations = observations
        self.gauges = Gauges({}, {}, {}, 0, 0, False)

    def collect(self) -> Iterator[Metric]:
        """All metrics, computed now."""
        seen = self.observations
        requests = CounterMetricFamily("sluice_requests", "Requests by outcome.", labels=["version", "outcome"])
        tokens = CounterMetricFamily("sluice_tokens", "Tokens by kind.", labels=["version", "kind"])
        finish = CounterMetricFamily("sluice_finish_reasons", "Why answers ended.", labels=["version", "reason"])
        for version, total in seen.totals.items():
            for label, n in total.outcomes.items():
                requests.add_metric([version, label], n)
            tokens.add_metric([version, "prompt"], total.prompt_tokens)
            tokens.add_metric([version, "output"], total.output_tokens)
            for reason, n in total.counts.finish_reasons.items():
                finish.add_metric([version, reason], n)
        yield from (requests, tokens, finish)
        for name, text, attribute, edges, every in (
            ("sluice_ttft_seconds", "Time to the first token, streamed answers.", "ttft", LATENCY_EDGES, COARSE),
            ("sluice_latency_seconds", "Time to the last byte.", "latency", LATENCY_EDGES, COARSE),
            (
                "sluice_inter_token_seconds",
                "Mean time between an answer's tokens.",
                "inter_token",
                LATENCY_EDGES,
                COARSE,
            ),
            ("sluice_output_tokens", "Tokens of an answer.", "output_tokens", TOKEN_EDGES, 1),
        ):
            family = HistogramMetricFamily(name, text, labels=["version"])
            for version, total in seen.totals.items():
                histogram: Histogram = getattr(total.counts, attribute)
                family.add_metric([version], _buckets(histogram, edges, every), histogram.total)
            yield family
        rejected = CounterMetricFamily("sluice_rejected", "Requests turned away by the gateway.", labels=["reason"])
        for reason, n in seen.rejected.items():
            rejected.add_metric([reason], n)
        yield rejected
        yield CounterMetricFamily("sluice_fallback_answers", "Answers from the template.", seen.fallbacks)
        yield CounterMetricFamily("sluice_upstream_retries", "Requests asked again of an engine.", seen.retries)
        yield from self._state()

    def _state(self) -> Iterator[Metric]:
        for name, text, values in (
            ("sluice_in_flight", "Requests an engine works on.", self.gauges.in_flight),
            ("sluice_waiting", "Requests in the queue.", self.gauges.waiting),
            ("sluice_weight", "Share of people routed to a version, per cent.", self.gauges.weights),
        ):
            family = GaugeMetricFamily(name, text, labels=["version"])
            for version, value in values.items():
                family.add_metric([version], value)
            yield family
        yield GaugeMetricFamily("sluice_ready", "1 if requests are accepted.", int(self.gauges.ready))
        yield GaugeMetricFamily(
            "sluice_interactions_waiting", "Records not yet written.", self.gauges.interactions_waiting
        )
        yield CounterMetricFamily(
            "sluice_interactions_dropped", "Records lost to a full buffer.", self.gauges.interactions_dropped
        )


def _buckets(histogram: Histogram, edges: tuple[float, ...], every: int) -> list[tuple[str, float]]:
    """Cumulative counts at every so many edges, as Prometheus has them."""
    below = list(accumulate(histogram.counts))
    buckets = [(repr(float(edge)), float(n)) for edge, n in zip(edges[::every], below[::every], strict=False)]
    return [*buckets, ("+Inf", float(below[-1]))]
