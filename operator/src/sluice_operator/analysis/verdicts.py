"""Each metric's verdict: harmful, equivalent within the tolerance, or undecided.

harmful: the whole interval of the effect lies beyond the tolerance. equivalent: none of it does. Anything else, and no
data above all, is undecided: it never passes.

Error rates. One harmful verdict on a harmless candidate must be rare over all metrics together, so its bound takes an
equal share of 1 - confidence (Bonferroni). A promotion needs every metric to be equivalent, so a bad candidate must
fool each of them: the upper bounds take 1 - confidence whole (intersection-union test; R. L. Berger, Technometrics 24,
1982). Each bound combines one confidence sequence of the candidate and one of stable, half of the level each.

Assumed: outcomes of different requests are independent given the version, and the gateway splits at random. Both
versions are counted in the same window, so a change of load or of the day's questions meets both.
"""

from collections.abc import Callable, Iterable, Sequence
from math import isfinite

from sluice_contracts.analysis import LATENCY_EDGES, TOKEN_EDGES, Histogram, VersionCounts
from sluice_contracts.inference_pool import MetricName, MetricVerdict, RolloutMetric, Verdict

from sluice_operator.analysis.distributions import distance, distance_interval, quantile, quantile_interval
from sluice_operator.analysis.rates import interval

P = 0.95
"""The quantile of the latency metrics."""

LATENCIES: dict[MetricName, Callable[[VersionCounts], Histogram]] = {
    MetricName.TTFT_P95: lambda counts: counts.ttft,
    MetricName.LATENCY_P95: lambda counts: counts.latency,
    MetricName.INTER_TOKEN_P95: lambda counts: counts.inter_token,
}


def judge(
    metrics: Sequence[RolloutMetric], stable: VersionCounts, candidate: VersionCounts, confidence: float
) -> list[MetricVerdict]:
    """A verdict for each metric, from what both versions' requests did since the window began."""
    alpha = 1 - confidence
    deciding = sum(1 for metric in metrics if not metric.dry_run)
    share = alpha / max(1, deciding)
    return [_verdict(metric, stable, candidate, harm=share, pass_=alpha) for metric in metrics]


def any_harmful(verdicts: Iterable[MetricVerdict]) -> bool:
    """Whether a metric that decides is harmful."""
    return any(v.verdict is Verdict.HARMFUL and not v.dry_run for v in verdicts)


def all_equivalent(verdicts: Iterable[MetricVerdict]) -> bool:
    """Whether every metric that decides is equivalent; False without any."""
    deciding = [v for v in verdicts if not v.dry_run]
    return bool(deciding) and all(v.verdict is Verdict.EQUIVALENT for v in deciding)


def _verdict(
    metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, *, harm: float, pass_: float
) -> MetricVerdict:
    if metric.name is MetricName.ERROR_RATE:
        return _error_rate(metric, stable, candidate, harm, pass_)
    if metric.name is MetricName.OUTPUT_LENGTH:
        return _output_length(metric, stable.output_tokens, candidate.output_tokens, harm, pass_)
    of = LATENCIES[metric.name]
    return _latency(metric, of(stable), of(candidate), harm, pass_)


def _error_rate(
    metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, harm: float, pass_: float
) -> MetricVerdict:
    """Absolute difference of the rates."""
    n, m = candidate.requests, stable.requests
    if n == 0 or m == 0:
        return _no_data(metric, n, m)
    effect = candidate.errors / n - stable.errors / m
    low = interval(candidate.errors, n, harm / 2)[0] - interval(stable.errors, m, harm / 2)[1]
    high = interval(candidate.errors, n, pass_ / 2)[1] - interval(stable.errors, m, pass_ / 2)[0]
    text = f"{candidate.errors} of {n} failed, stable {stable.errors} of {m}"
    return _decide(metric, effect, low, high, n, m, text)


def _latency(
    metric: RolloutMetric, stable: Histogram, candidate: Histogram, harm: float, pass_: float
) -> MetricVerdict:
    """Relative growth of the 95th percentile."""
    n, m = candidate.n, stable.n
    if n == 0 or m == 0:
        return _no_data(metric, n, m)
    mine, theirs = (quantile(h, LATENCY_EDGES, P) for h in (candidate, stable))
    low_c = quantile_interval(candidate, LATENCY_EDGES, P, harm / 2)[0]
    high_s = quantile_interval(stable, LATENCY_EDGES, P, harm / 2)[1]
    high_c = quantile_interval(candidate, LATENCY_EDGES, P, pass_ / 2)[1]
    low_s = quantile_interval(stable, LATENCY_EDGES, P, pass_ / 2)[0]
    low = low_c / high_s - 1
    high = high_c / low_s - 1 if low_s > 0 and isfinite(high_c) else None
    text = f"p95 {mine:.3f} s, stable {theirs:.3f} s"
    return _decide(metric, mine / theirs - 1, low, high, n, m, text)


def _output_length(
    metric: RolloutMetric, stable: Histogram, candidate: Histogram, harm: float, pass_: float
) -> MetricVerdict:
    """Distance of the two distributions of output lengths."""
    n, m = candidate.n, stable.n
    if n == 0 or m == 0:
        return _no_data(metric, n, m)
    low = distance_interval(candidate, stable, harm)[0]
    high = distance_interval(candidate, stable, pass_)[1]
    middle, theirs = (quantile(h, TOKEN_EDGES, 0.5) for h in (candidate, stable))
    text = f"median about {middle:.0f} tokens, stable {theirs:.0f}"
    return _decide(metric, distance(candidate, stable), low, high, n, m, text)


def _decide(
    metric: RolloutMetric, effect: float, low: float, high: float | None, n: int, m: int, text: str
) -> MetricVerdict:
    verdict = Verdict.UNDECIDED
    if low > metric.tolerance:
        verdict = Verdict.HARMFUL
    elif high is not None and high <= metric.tolerance:
        verdict = Verdict.EQUIVALENT
    return MetricVerdict(
        name=metric.name,
        verdict=verdict,
        effect=round(effect, 5),
        low=round(low, 5),
        high=None if high is None else round(high, 5),
        samples=n,
        baseline_samples=m,
        dry_run=metric.dry_run,
        message=text,
    )


def _no_data(metric: RolloutMetric, n: int, m: int) -> MetricVerdict:
    who = "neither version" if n == m == 0 else "the candidate" if n == 0 else "stable"
    verb = "answered anything yet" if who == "neither version" else "has answered nothing yet"
    if who == "neither version":
        verb = "has " + verb
    return MetricVerdict(
        name=metric.name,
        verdict=Verdict.UNDECIDED,
        samples=n,
        baseline_samples=m,
        dry_run=metric.dry_run,
        message=f"no data: {who} {verb}",
    )
