"""Each metric's verdict: harmful, equivalent within the tolerance, or undecided.

harmful: the evidence rejects "the candidate is within the tolerance". equivalent: it rejects "the candidate is at or
beyond the tolerance". Anything else, and no data above all, is undecided: it never passes. `low` and `high` are the
tolerances at which the one and the other verdict would just have been given.

One harmful verdict on a harmless candidate must be rare over all metrics together, so each takes an equal share of
1 - confidence (Bonferroni). A promotion needs every metric to be equivalent, so a bad candidate must fool the very
metric in which it is bad: each takes 1 - confidence whole (intersection-union test; R. L. Berger, Technometrics 24,
1982).

Assumed: outcomes of different requests are independent given the version and the request's length, and the gateway's
split has nothing to do with how a request will end. Both versions are counted in the same window, so a change of load
meets both. Rates are compared over all requests; latencies and lengths among requests of like length (see `strata`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import expm1, log

from sluice_contracts.analysis import (
    CLIENT_CLOSED,
    COST_EDGES,
    LATENCY_EDGES,
    TOKEN_EDGES,
    Histogram,
    Shape,
    VersionCounts,
)
from sluice_contracts.inference_pool import MetricName, MetricVerdict, RolloutMetric, Verdict

from sluice_operator.analysis.e_process import Stream, largest, log_evidence, log_sum
from sluice_operator.analysis.quantiles import STEP, Survival, log_evidence_above, log_evidence_below, quantile
from sluice_operator.analysis.shapes import are_close, distance, log_evidence_apart
from sluice_operator.analysis.strata import log_harm, mix_evidence, standardised

P = 0.95
"""The quantile of the latency metrics."""
ABORTS = ("abort", CLIENT_CLOSED)
"""Reasons of answers that were broken off from outside: by the engine's abort, or by a client that did not wait."""
REASONS = ("stop", "length", "tool_calls", "function_call", "content_filter", *ABORTS)
"""The API's words for why an answer ended, and ours; any other counts as `other`."""

LATENCIES: dict[MetricName, Callable[[Shape], Histogram]] = {
    MetricName.TTFT_P95: lambda shape: shape.ttft,
    MetricName.LATENCY_P95: lambda shape: shape.latency,
    MetricName.INTER_TOKEN_P95: lambda shape: shape.inter_token,
}
LACKING: dict[MetricName, str] = {
    MetricName.SCHEMA_INVALID_RATE: "answers that owed a JSON shape and could be checked",
    MetricName.COST_P95: "answers whose cost is known (it needs spec.costs.tokens, or a price of the hardware in the "
    "chart's `prices`)",
    MetricName.MIRROR_SCORE: "scored answers to mirrored requests",
    MetricName.QUEUE_TIME_P95: "requests that came to the queue",
}
"""What a version without data has not; the others have no answers at all."""


@dataclass(frozen=True)
class Levels:
    """The log evidence that a verdict takes."""

    harm: float
    pass_: float


def judge(
    metrics: Sequence[RolloutMetric], stable: VersionCounts, candidate: VersionCounts, confidence: float
) -> list[MetricVerdict]:
    """A verdict for each metric, from what both versions' requests did since the window began."""
    alpha = 1 - confidence
    deciding = sum(1 for metric in metrics if not metric.dry_run)
    levels = Levels(harm=log(max(1, deciding) / alpha), pass_=log(1 / alpha))
    return [_verdict(metric, stable, candidate, levels) for metric in metrics]


def any_harmful(verdicts: Iterable[MetricVerdict]) -> bool:
    """Whether a metric that decides is harmful."""
    return any(v.verdict is Verdict.HARMFUL and not v.dry_run for v in verdicts)


def all_equivalent(verdicts: Iterable[MetricVerdict]) -> bool:
    """Whether every metric that decides is equivalent; False without any."""
    deciding = [v for v in verdicts if not v.dry_run]
    return bool(deciding) and all(v.verdict is Verdict.EQUIVALENT for v in deciding)


def _verdict(metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, levels: Levels) -> MetricVerdict:
    match metric.name:
        case MetricName.ERROR_RATE:
            mine, theirs = (Stream(v.errors, v.requests) for v in (candidate, stable))
            return _rate(metric, mine, theirs, levels, "failed")
        case MetricName.ABORT_RATE:
            mine, theirs = (Stream(_aborts(v), v.requests) for v in (candidate, stable))
            return _rate(metric, mine, theirs, levels, "were broken off")
        case MetricName.FINISH_REASONS:
            return _finish_reasons(metric, stable, candidate, levels)
        case MetricName.SCHEMA_INVALID_RATE:
            mine, theirs = (Stream(v.schema_invalid, v.schema_checked) for v in (candidate, stable))
            return _rate(metric, mine, theirs, levels, "broke their schema")
        case MetricName.MIRROR_SCORE:
            return _mirror_score(metric, stable, candidate, levels)
        case MetricName.QUEUE_TIME_P95:
            return _growth(metric, [(candidate.queue.counts, stable.queue.counts)], LATENCY_EDGES, levels, " s")
        case MetricName.COST_P95:
            return _cost(metric, stable, candidate, levels)
        case MetricName.OUTPUT_LENGTH:
            return _output_length(metric, stable, candidate, levels)
        case MetricName.TTFT_P95 | MetricName.LATENCY_P95 | MetricName.INTER_TOKEN_P95:
            return _latency(metric, stable, candidate, levels)


# -- rates -------------------------------------------------------------------------------------------------------------


def _rate(metric: RolloutMetric, mine: Stream, theirs: Stream, levels: Levels, what: str) -> MetricVerdict:
    """Absolute difference of two rates."""
    text = f"{mine.k:.0f} of {mine.n} {what}, stable {theirs.k:.0f} of {theirs.n}"
    return _difference(metric, mine, theirs, levels, text)


def _mirror_score(
    metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, levels: Levels
) -> MetricVerdict:
    """How far the candidate's mean score lies below that of stable's own second answers: the difference of what the
    scores lack of 1."""
    mine, theirs = (
        Stream(min(v.mirror_score, v.mirror_scored), v.mirror_scored).flipped() for v in (candidate, stable)
    )
    text = f"mean score {1 - mine.mean:.3f}, stable's own second answers {1 - theirs.mean:.3f}"
    return _difference(metric, mine, theirs, levels, text)


def _difference(metric: RolloutMetric, mine: Stream, theirs: Stream, levels: Levels, text: str) -> MetricVerdict:
    if mine.n == 0 or theirs.n == 0:
        return _no_data(metric, mine.n, theirs.n)

    def harmful(margin: float) -> bool:
        return log_evidence(mine, theirs, margin, minority_up=True, enough=levels.harm) >= levels.harm

    def equivalent(margin: float) -> bool:
        return log_evidence(theirs, mine, -margin, minority_up=False, enough=levels.pass_) >= levels.pass_

    effect = mine.mean - theirs.mean
    low = largest(harmful, -1.0, effect)
    high = -largest(lambda margin: equivalent(-margin), -1.0, -effect)
    return _decide(metric, effect, low, high, harmful, equivalent, (mine.n, theirs.n), text)


def _aborts(counts: VersionCounts) -> int:
    return min(counts.requests, sum(counts.finish_reasons.get(reason, 0) for reason in ABORTS))


def _finish_reasons(
    metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, levels: Levels
) -> MetricVerdict:
    """The largest difference of any reason's share. Each reason is judged as a rate, in both directions: harm bets an
    equal part of the stake on each, equivalence must hold for every one."""
    shares = {"other": 0, **dict.fromkeys(REASONS, 0)}
    mine, theirs = (dict(shares), dict(shares))
    for found, counts in ((mine, candidate), (theirs, stable)):
        for reason, k in counts.finish_reasons.items():
            found[reason if reason in REASONS else "other"] += k
    n, m = sum(mine.values()), sum(theirs.values())
    if n == 0 or m == 0:
        return _no_data(metric, n, m)
    pairs = {reason: (Stream(mine[reason], n), Stream(theirs[reason], m)) for reason in mine}
    sides = [*pairs.values(), *((a.flipped(), b.flipped()) for a, b in pairs.values())]

    def harmful(margin: float) -> bool:
        worse = [log_evidence(a, b, margin, minority_up=True) for a, b in sides if a.mean - b.mean > margin]
        return log_sum(worse) - log(len(sides)) >= levels.harm

    def equivalent(margin: float) -> bool:
        return all(
            log_evidence(b, a, -margin, minority_up=False, enough=levels.pass_) >= levels.pass_ for a, b in sides
        )

    widest = max(pairs, key=lambda reason: abs(pairs[reason][0].mean - pairs[reason][1].mean))
    a, b = pairs[widest]
    effect = abs(a.mean - b.mean)
    low = largest(harmful, 0.0, effect)
    high = -largest(lambda margin: equivalent(-margin), -1.0, -effect)
    text = f"{widest}: {a.mean:.1%} of the answers, stable {b.mean:.1%}"
    return _decide(metric, effect, low, high, harmful, equivalent, (n, m), text)


# -- among requests of like length -------------------------------------------------------------------------------------


def _buckets(
    of: Callable[[Shape], Histogram], stable: VersionCounts, candidate: VersionCounts
) -> list[tuple[list[int], list[int]]]:
    """The histograms' counts of candidate and stable in each bucket of request length that has any; as one bucket where
    the two are not told apart alike."""
    mine, theirs = candidate.strata(), stable.strata()
    if len(mine) != len(theirs):
        mine, theirs = [candidate], [stable]
    pairs = [(of(a).counts, of(b).counts) for a, b in zip(mine, theirs, strict=True)]
    return [(a, b) for a, b in pairs if any(a) or any(b)]


def _latency(metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, levels: Levels) -> MetricVerdict:
    """Relative growth of the 95th percentile."""
    return _growth(metric, _buckets(LATENCIES[metric.name], stable, candidate), LATENCY_EDGES, levels, " s")


def _cost(metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, levels: Levels) -> MetricVerdict:
    """The same of what an answer costs. The means are told beside it: a few very dear answers make a mean, so it takes
    far more of them to judge one."""
    found = _growth(metric, _buckets(lambda shape: shape.cost, stable, candidate), COST_EDGES, levels, "")
    if candidate.cost.n and stable.cost.n:
        means = [v.cost.total / v.cost.n for v in (candidate, stable)]
        found.message = f"{found.message}; mean {means[0]:.3g}, stable {means[1]:.3g}"
    return found


def _growth(
    metric: RolloutMetric,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    edges: Sequence[float],
    levels: Levels,
    unit: str,
) -> MetricVerdict:
    """Relative growth of the 95th percentile, from both versions' histograms in each bucket of request length."""
    both = tuple([sum(column) for column in zip(*side, strict=True)] for side in zip(*pairs, strict=True)) or ([0], [0])
    n, m = sum(both[0]), sum(both[1])
    if n == 0 or m == 0:
        return _no_data(metric, n, m)
    mix = mix_evidence([(sum(a), sum(b)) for a, b in pairs])
    pooled = (Survival(both[0]), Survival(both[1]))
    apart = [(Survival(a), Survival(b)) for a, b in pairs if any(a) and any(b)]

    def harmful(growth: float) -> bool:
        enough = levels.harm + log(2) + mix  # half the stake is on the pooled counts
        together = log_evidence_above(*pooled, 1 + growth, P, futile=FUTILE, enough=enough)
        if together >= enough:
            return True
        every = [log_evidence_above(a, b, 1 + growth, P, futile=FUTILE) for a, b in apart]
        return log_harm(together, every, mix) >= levels.harm

    def equivalent(growth: float) -> bool:
        bound = levels.pass_ + mix
        return log_evidence_below(*pooled, 1 + growth, P, enough=bound) >= bound

    mine, theirs = (quantile(c, edges, P) for c in standardised([a for a, _ in pairs], [b for _, b in pairs]))
    effect = mine / theirs - 1
    text = f"p95 {mine:.3g}{unit}, stable {theirs:.3g}{unit}"
    widest = max([log(1 + effect), *((a.quantile(P) - b.quantile(P)) * STEP for a, b in apart)])
    low = expm1(largest(lambda x: harmful(expm1(x)), -REACH, widest))
    slow = -largest(lambda x: equivalent(expm1(-x)), -REACH, -log(1 + effect))
    high = expm1(slow) if slow < REACH else None
    return _decide(metric, effect, max(-1.0, low), high, harmful, equivalent, (n, m), text)


FUTILE = -3.0
"""Log evidence in one bucket below which it counts as none: nearly all of the stake is lost."""
REACH = 4.0
"""Growth of a latency is looked for up to a factor of exp(4)."""


def _output_length(
    metric: RolloutMetric, stable: VersionCounts, candidate: VersionCounts, levels: Levels
) -> MetricVerdict:
    """Distance of the two distributions of output lengths."""
    n, m = candidate.output_tokens.n, stable.output_tokens.n
    if n == 0 or m == 0:
        return _no_data(metric, n, m)
    pairs = _buckets(lambda shape: shape.output_tokens, stable, candidate)
    mix = mix_evidence([(sum(a), sum(b)) for a, b in pairs])
    apart = [(a, b) for a, b in pairs if any(a) and any(b)]
    pooled = (candidate.output_tokens.counts, stable.output_tokens.counts)

    def harmful(margin: float) -> bool:
        together = log_evidence_apart(*pooled, margin)
        if together >= levels.harm + log(2) + mix:  # half the stake is on the pooled counts
            return True
        every = [log_evidence_apart(a, b, margin) for a, b in apart]
        return log_harm(together, every, mix) >= levels.harm

    def equivalent(margin: float) -> bool:
        return are_close(*pooled, margin, levels.pass_ + mix)

    mine, theirs = standardised([a for a, _ in pairs], [b for _, b in pairs])
    effect = distance(mine, theirs)
    widest = max([effect, *(distance(a, b) for a, b in apart)])
    low = largest(harmful, 0.0, widest)
    high = -largest(lambda margin: equivalent(-margin), -1.0, -effect)
    half, before = (quantile(c, TOKEN_EDGES, 0.5) for c in (mine, theirs))
    text = f"median about {half:.0f} tokens, stable {before:.0f}"
    return _decide(metric, effect, low, high, harmful, equivalent, (n, m), text)


# -- the verdict -------------------------------------------------------------------------------------------------------


def _decide(
    metric: RolloutMetric,
    effect: float,
    low: float,
    high: float | None,
    harmful: Callable[[float], bool],
    equivalent: Callable[[float], bool],
    samples: tuple[int, int],
    text: str,
) -> MetricVerdict:
    verdict = Verdict.UNDECIDED
    if harmful(metric.tolerance):
        verdict = Verdict.HARMFUL
        low = max(low, metric.tolerance)
    elif equivalent(metric.tolerance):
        verdict = Verdict.EQUIVALENT
        high = metric.tolerance if high is None else min(high, metric.tolerance)
    return MetricVerdict(
        name=metric.name,
        verdict=verdict,
        effect=round(effect, 5),
        low=round(low, 5),
        high=None if high is None else round(high, 5),
        samples=samples[0],
        baseline_samples=samples[1],
        dry_run=metric.dry_run,
        message=text,
    )


def _no_data(metric: RolloutMetric, n: int, m: int) -> MetricVerdict:
    who = "neither version" if n == m == 0 else "the candidate" if n == 0 else "stable"
    some = "" if n == m == 0 else "no "
    return MetricVerdict(
        name=metric.name,
        verdict=Verdict.UNDECIDED,
        samples=n,
        baseline_samples=m,
        dry_run=metric.dry_run,
        message=f"no data: {who} has {some}{LACKING.get(metric.name, 'answers')} yet",
    )
