"""Confidence sequences for a quantile, and for the distance of two distributions, from histograms.

Quantile: the true p-quantile q splits the values so that each lies at or below q with probability p, so the count of
values below q is binomial, and every q whose count the beta-binomial martingale does not reject stays in the interval.
No union over thresholds is needed, because only the one true quantile must be covered. Source: S. R. Howard, A. Ramdas,
"Sequential estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli 28 (2022),
section on a fixed quantile; with the mixture of `rates` in place of their stitched boundary.

Distance: a time-uniform band around a distribution function in the manner of Dvoretzky, Kiefer and Wolfowitz, as in the
same paper; here it need hold only at a histogram's edges, so it is the union of one confidence sequence an edge, which
is narrower than their closed form below some ten thousand values. Netflix judges canaries by such bands: M. Lindon,
C. Sanden, V. Shirikian, "Rapid regression detection in software deployments through sequential testing", arXiv
2205.14762.
"""

from itertools import accumulate
from math import exp, inf, log

from sluice_contracts.analysis import Histogram

from sluice_operator.analysis.rates import interval, log_martingale

WEIGHT = 20.0
"""Values that the prior of a quantile's martingale counts for. Any prior that was fixed beforehand is valid; unlike a
rate, the p of a p-quantile is known, so the prior may sit around it. This weight is sharpest at some hundred values."""


def quantile(histogram: Histogram, edges: tuple[float, ...], p: float) -> float:
    """The p-quantile's estimate. Raises ValueError for an empty histogram."""
    if histogram.n == 0:
        raise ValueError("a histogram without values has no quantile")
    return _value_at(histogram, edges, p * histogram.n, overflow=edges[-1])


def quantile_interval(histogram: Histogram, edges: tuple[float, ...], p: float, alpha: float) -> tuple[float, float]:
    """The confidence sequence's interval for the p-quantile, at level 1 - `alpha`; (0, infinity) where there is no
    evidence. Its ends are interpolated inside a bucket (evenly on a log scale, as the edges are), so they are exact to
    a bucket and good to a fraction of one."""
    n = histogram.n
    if n == 0:
        return 0.0, inf
    fewest, most = _accepted_counts(n, p, alpha)
    low = 0.0 if fewest == 0 else _value_at(histogram, edges, fewest, overflow=edges[-1])
    high = inf if most >= n else _value_at(histogram, edges, most + 1, overflow=inf)
    return low, high


def distance(a: Histogram, b: Histogram) -> float:
    """The largest difference of the two distribution functions at the edges (Kolmogorov and Smirnov's distance)."""
    if a.n == 0 or b.n == 0:
        return 0.0
    return max(abs(x / a.n - y / b.n) for x, y in zip(_below(a), _below(b), strict=True))


def distance_interval(a: Histogram, b: Histogram, alpha: float) -> tuple[float, float]:
    """The confidence sequence's interval for `distance` of the true distributions, at level 1 - `alpha`."""
    if a.n == 0 or b.n == 0:
        return 0.0, 1.0
    pairs = list(zip(_below(a), _below(b), strict=True))
    each = alpha / (2 * len(pairs))
    low, high = 0.0, 0.0
    for x, y in pairs:
        x_low, x_high = interval(x, a.n, each)
        y_low, y_high = interval(y, b.n, each)
        low = max(low, x_low - y_high, y_low - x_high)
        high = max(high, x_high - y_low, y_high - x_low)
    return low, min(high, 1.0)


def _below(histogram: Histogram) -> list[int]:
    """How many values lie at or below each edge. The last, all of them, says nothing and is left out."""
    return list(accumulate(histogram.counts))[:-1]


def _accepted_counts(n: int, p: float, alpha: float) -> tuple[int, int]:
    """The fewest and the most of n values below the p-quantile that the martingale does not reject."""
    bound = -log(alpha)
    centre = min(n, max(0, round(p * n)))

    def accepted(count: int) -> bool:
        return log_martingale(count, n, p, WEIGHT * p, WEIGHT * (1 - p)) < bound

    if not accepted(centre):  # n is so small that rounding alone looks strange
        return 0, n
    below, above = -1, centre  # accepted(above), and nothing at or beneath `below` is
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if accepted(middle) else (middle, above)
    fewest = above
    below, above = centre, n + 1
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (middle, above) if accepted(middle) else (below, middle)
    return fewest, below


def _value_at(histogram: Histogram, edges: tuple[float, ...], rank: float, overflow: float) -> float:
    """The value below which `rank` of the values lie; `overflow` where that is past the last edge."""
    seen = 0
    for i, count in enumerate(histogram.counts):
        if count and seen + count >= rank:
            if i >= len(edges):
                return overflow
            bottom = edges[i - 1] if i else edges[0] ** 2 / edges[1]
            share = (rank - seen) / count
            return exp(log(bottom) + share * (log(edges[i]) - log(bottom)))
        seen += count
    return overflow
