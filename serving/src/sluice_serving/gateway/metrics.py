"""/metrics: Prometheus's view of what is counted in `observations` and of the moment. One table, `FAMILIES`; docs/
gateway-metrics.md lists the same, and a test compares them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from sluice_contracts.analysis import COARSE, COST_EDGES, LATENCY_EDGES, TOKEN_EDGES, Histogram
from sluice_contracts.analysis_rows import to_rows

from sluice_serving.gateway.cache import ResponseCache
from sluice_serving.gateway.forgetting import Forgetting
from sluice_serving.gateway.observations import Observations, Sum, Totals
from sluice_serving.gateway.shared_cache import SharedCache


@dataclass
class Gauges:
    """The state of things at the moment of a scrape."""

    in_flight: dict[str, int]
    waiting: dict[str, int]
    weights: dict[str, int]
    interactions_waiting: int
    interactions_dropped: int
    ready: bool
    cache: ResponseCache = field(default_factory=ResponseCache)
    forgetting: Forgetting | None = None


Values = Iterable[tuple[tuple[str, ...], float]]
"""Label values and the number."""


@dataclass(frozen=True)
class Counted:
    """A counter or gauge, and where its numbers come from."""

    name: str
    text: str
    labels: tuple[str, ...]
    of: Callable[[Observations, Gauges], Values]
    gauge: bool = False


@dataclass(frozen=True)
class Distribution:
    """A histogram by version. Of the edges every so many are shown."""

    name: str
    text: str
    of: Callable[[Totals], Histogram]
    edges: tuple[float, ...] = LATENCY_EDGES
    every: int = COARSE


@dataclass(frozen=True)
class Mean:
    """A sum and a count by version."""

    name: str
    text: str
    of: Callable[[Totals], Sum]


def _by_version(of: Callable[[Totals], float]) -> Callable[[Observations, Gauges], Values]:
    return lambda seen, _: (((version,), of(total)) for version, total in seen.totals.items())


def _by_word(of: Callable[[Totals], dict[str, int]]) -> Callable[[Observations, Gauges], Values]:
    return lambda seen, _: (
        ((version, word), n) for version, total in seen.totals.items() for word, n in of(total).items()
    )


def _present(of: Callable[[Gauges], dict[str, int]]) -> Callable[[Observations, Gauges], Values]:
    return lambda _, gauges: (((version,), n) for version, n in of(gauges).items())


def _analysis(seen: Observations, _: Gauges) -> Values:
    if not seen.window:
        return
    for version, counts in seen.versions.items():
        for row in to_rows(counts):
            yield (seen.pool, seen.window, seen.instance, version, row.name, row.length, row.bin), row.value


def _shared(of: Callable[[SharedCache], Mapping[str, int]]) -> Callable[[Observations, Gauges], Values]:
    """Nothing where gateways share no answers."""
    return lambda _, gauges: (
        ((word,), n) for word, n in (of(gauges.cache.shared) if gauges.cache.shared else {}).items()
    )


VERSION = ("version",)
FAMILIES: tuple[Counted | Distribution | Mean, ...] = (
    Counted("sluice_requests", "Requests by outcome.", ("version", "outcome"), _by_word(lambda t: t.outcomes)),
    Counted("sluice_errors", "Requests that the version failed.", VERSION, _by_version(lambda t: t.counts.errors)),
    Counted(
        "sluice_tokens",
        "Tokens by kind.",
        ("version", "kind"),
        _by_word(lambda t: {"prompt": t.prompt_tokens, "output": t.output_tokens}),
    ),
    Counted(
        "sluice_finish_reasons",
        "Why answers ended.",
        ("version", "reason"),
        _by_word(lambda t: t.counts.finish_reasons),
    ),
    Counted("sluice_cost", "What answers cost, in the price table's currency.", VERSION, _by_version(lambda t: t.cost)),
    Counted(
        "sluice_schema_answers",
        "Answers to requests with tools or a JSON format: valid, invalid, unchecked.",
        ("version", "result"),
        _by_word(lambda t: t.schema),
    ),
    Distribution("sluice_ttft_seconds", "Time to the first token, streamed answers.", lambda t: t.counts.ttft),
    Distribution("sluice_latency_seconds", "Time to the last byte.", lambda t: t.counts.latency),
    Distribution("sluice_inter_token_seconds", "Mean time between an answer's tokens.", lambda t: t.counts.inter_token),
    Distribution("sluice_queue_seconds", "Time in the gateway's queue.", lambda t: t.queue),
    Distribution("sluice_output_tokens", "Tokens of an answer.", lambda t: t.counts.output_tokens, TOKEN_EDGES, 1),
    Distribution("sluice_request_cost", "Cost of an answer.", lambda t: t.counts.cost, COST_EDGES),
    Counted(
        "sluice_mirror_requests",
        "Copies of requests by outcome.",
        ("version", "outcome"),
        _by_word(lambda t: t.mirrored),
    ),
    Counted(
        "sluice_mirror_schema_answers",
        "Copies that were checked: valid, invalid.",
        ("version", "result"),
        _by_word(lambda t: t.mirror_schema),
    ),
    Mean("sluice_mirror_score", "The judge's score of copies, 0 to 1.", lambda t: t.mirror_score),
    Mean("sluice_mirror_similarity", "Likeness of copies to stable's answers, 0 to 1.", lambda t: t.mirror_similarity),
    Mean("sluice_mirror_length_ratio", "Shorter answer's length over the longer one's.", lambda t: t.mirror_length),
    Counted(
        "sluice_rejected",
        "Requests turned away by the gateway.",
        ("reason",),
        lambda seen, _: (((reason,), n) for reason, n in seen.rejected.items()),
    ),
    Counted(
        "sluice_fallback_answers",
        "Answers of another model, or from a template.",
        ("kind", "name"),
        lambda seen, _: seen.fallbacks.items(),
    ),
    Counted(
        "sluice_fallback_model",
        "Requests for another pool's model by what came of them.",
        ("result",),
        lambda seen, _: (((result,), n) for result, n in seen.fallback_model.items()),
    ),
    Counted(
        "sluice_cache",
        "Requests whose answer could be kept: hit, miss, bypass.",
        ("result",),
        lambda _, gauges: [
            (("hit",), gauges.cache.hits),
            (("miss",), gauges.cache.misses),
            (("bypass",), gauges.cache.bypassed),
        ],
    ),
    Counted("sluice_cache_evicted", "Kept answers that went to make room.", (), lambda _, g: [((), g.cache.evicted)]),
    Counted("sluice_cache_entries", "Answers kept.", (), lambda _, g: [((), len(g.cache))], gauge=True),
    Counted("sluice_cache_bytes", "Memory of the answers kept.", (), lambda _, g: [((), g.cache.bytes)], gauge=True),
    Counted(
        "sluice_cache_current",
        "1 while the gateway knows who was forgotten; else nothing kept is given.",
        (),
        lambda _, g: [((), int(g.forgetting.known))] if g.forgetting and g.cache.on else [],
        gauge=True,
    ),
    Counted(
        "sluice_cache_shared_reads", "Look-ups in Redis by what came of them.", ("result",), _shared(lambda s: s.reads)
    ),
    Counted(
        "sluice_cache_shared_writes",
        "Answers for Redis by what came of them.",
        ("result",),
        _shared(lambda s: s.writes),
    ),
    Counted(
        "sluice_cache_shared_up",
        "1 while Redis is asked; 0 while it rests after failures.",
        (),
        lambda _, g: [((), int(g.cache.shared.up))] if g.cache.shared else [],
        gauge=True,
    ),
    Counted("sluice_upstream_retries", "Requests asked again of an engine.", (), lambda seen, _: [((), seen.retries)]),
    Counted("sluice_in_flight", "Requests an engine works on.", VERSION, _present(lambda g: g.in_flight), gauge=True),
    Counted("sluice_waiting", "Requests in the queue.", VERSION, _present(lambda g: g.waiting), gauge=True),
    Counted(
        "sluice_weight",
        "Share of people routed to a version, per cent.",
        VERSION,
        _present(lambda g: g.weights),
        gauge=True,
    ),
    Counted("sluice_ready", "1 if requests are accepted.", (), lambda _, gauges: [((), int(gauges.ready))], gauge=True),
    Counted(
        "sluice_interactions_waiting",
        "Records not yet written.",
        (),
        lambda _, gauges: [((), gauges.interactions_waiting)],
        gauge=True,
    ),
    Counted(
        "sluice_interactions_dropped",
        "Records lost to a full buffer.",
        (),
        lambda _, gauges: [((), gauges.interactions_dropped)],
    ),
    Counted(
        "sluice_analysis_counts",
        "The analysis's counts of its present window, for an analysis that reads Prometheus.",
        ("pool", "window", "process", "version", "count", "length", "bin"),
        _analysis,
        gauge=True,
    ),
)


class MetricsCollector(Collector):
    """All of FAMILIES, computed when Prometheus asks."""

    def __init__(self, observations: Observations) -> None:
        self.observations = observations
        self.gauges = Gauges({}, {}, {}, 0, 0, False)

    def collect(self) -> Iterator[Metric]:
        """All metrics, computed now."""
        for family in FAMILIES:
            match family:
                case Counted():
                    yield self._counted(family)
                case Distribution():
                    yield self._distribution(family)
                case Mean():
                    yield self._mean(family)

    def _counted(self, family: Counted) -> Metric:
        make = GaugeMetricFamily if family.gauge else CounterMetricFamily
        found = make(family.name, family.text, labels=family.labels)
        for labels, value in family.of(self.observations, self.gauges):
            found.add_metric(labels, value)
        return found

    def _distribution(self, family: Distribution) -> Metric:
        found = HistogramMetricFamily(family.name, family.text, labels=VERSION)
        for version, total in self.observations.totals.items():
            histogram = family.of(total)
            found.add_metric([version], _buckets(histogram, family.edges, family.every), histogram.total)
        return found

    def _mean(self, family: Mean) -> Metric:
        found = SummaryMetricFamily(family.name, family.text, labels=VERSION)
        for version, total in self.observations.totals.items():
            value = family.of(total)
            found.add_metric([version], value.n, value.total)
        return found


def _buckets(histogram: Histogram, edges: tuple[float, ...], every: int) -> list[tuple[str, float]]:
    """Cumulative counts at every so many edges, as Prometheus has them."""
    below = list(accumulate(histogram.counts))
    buckets = [(repr(float(edge)), float(n)) for edge, n in zip(edges[::every], below[::every], strict=False)]
    return [*buckets, ("+Inf", float(below[-1]))]
