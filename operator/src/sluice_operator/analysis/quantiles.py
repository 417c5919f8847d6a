"""Evidence that one version's quantile is a factor above another's, from two histograms with the same edges.

The p-quantile q of a version is where a share 1 - p of its values lies above. Suppose the candidate's quantile were at
most f times stable's, and stable's were x: then of stable's values a share 1 - p lies above x, and of the candidate's
at most as many above f x. An e-process (see `e_process`) bets against that; nobody knows x, so the supposition falls
when the evidence is there at every x. The rates being known, the bets' expected parts are constants.

The histograms' edges are a constant factor apart, and a value counts as spread evenly, on a log scale, over its bucket.
So counts above x are sums of values in [0, 1], for which `e_process` holds, and what is tested is the quantile of the
distribution smoothed in that way: at most one bucket (4.6 %) from the true one, for both versions alike.

Idea: S. R. Howard, A. Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm
identification", Bernoulli 28 (2022); M. Lindon, C. Sanden, V. Shirikian, arXiv 2205.14762, for canaries.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import accumulate
from math import expm1, inf, log, log1p

from sluice_contracts.analysis import LATENCY_EDGES

from sluice_operator.analysis.e_process import Bet, bets, log_sum

STEP = log(LATENCY_EDGES[1] / LATENCY_EDGES[0])
"""The log of the factor between two edges."""
GOLDEN = (5**0.5 - 1) / 2
ROUNDS = 5
"""Of golden section inside a bucket: to a tenth of it, where the evidence hardly changes any more."""


class Survival:
    """How many values lie above a place, by the counts of a histogram over LATENCY_EDGES. Places are counted in edges
    from the first one, with fractions between them."""

    def __init__(self, counts: Sequence[float]) -> None:
        seen = list(accumulate(counts))
        self.n = seen[-1]
        self.above = [self.n, *(self.n - s for s in seen[:-1])]
        """Above places -1, 0, 1, …: the first bucket is taken to be as wide as the others."""
        filled = [i for i, n in enumerate(counts) if n]
        self.first, self.last = (filled[0] - 1, filled[-1]) if filled else (0, 0)
        """Nothing changes left of the first place and right of the last."""

    def __call__(self, place: float) -> float:
        at = place + 1
        if at <= 0:
            return self.n
        i = int(at)
        if i + 1 >= len(self.above):
            return self.above[-1]
        return self.above[i] + (at - i) * (self.above[i + 1] - self.above[i])

    def quantile(self, p: float) -> float:
        """The place of the p-quantile; past the last edge, the last edge."""
        wanted = (1 - p) * self.n
        i = bisect_left(self.above, -wanted, key=lambda x: -x)
        if i == 0 or i == len(self.above):
            return len(self.above) - 2.0 if i else -1.0
        before, after = self.above[i - 1], self.above[i]
        return i - 2 + (before - wanted) / (before - after)


def quantile(counts: Sequence[float], edges: Sequence[float], p: float) -> float:
    """The p-quantile's estimate from a histogram's counts; the last edge for one past it. Raises ValueError if there
    are no values."""
    n = sum(counts)
    if n <= 0:
        raise ValueError("a histogram without values has no quantile")
    rank, seen = p * n, 0.0
    for i, (count, edge) in enumerate(zip(counts, edges, strict=False)):
        if count and seen + count >= rank:
            bottom = edges[i - 1] if i else edges[0] ** 2 / edges[1]
            return float(bottom * (edge / bottom) ** ((rank - seen) / count))
        seen += count
    return float(edges[-1])


def log_evidence_above(
    candidate: Survival, stable: Survival, factor: float, p: float, futile: float = -inf, enough: float = inf
) -> float:
    """The log of the e-process against "the candidate's p-quantile is at most `factor` times stable's".

    Less than `futile` counts as none at all, and `enough` is as good as more: both are found sooner."""
    found = _log_evidence(candidate, stable, log(factor) / STEP, 0.0, p, bets(minority_up=True), futile, enough)
    return found if found >= futile else -inf


def log_evidence_below(candidate: Survival, stable: Survival, factor: float, p: float, enough: float = inf) -> float:
    """The log of the e-process against "the candidate's p-quantile is at least `factor` times stable's".

    Ends early, with some value on the same side of `enough`, once the side is known."""
    futile = enough if enough < inf else -inf
    return _log_evidence(stable, candidate, 0.0, log(factor) / STEP, p, bets(minority_up=False), futile, enough)


def _log_evidence(
    up: Survival,
    low: Survival,
    up_at: float,
    low_at: float,
    p: float,
    tilts: tuple[Bet, ...],
    futile: float,
    enough: float,
) -> float:
    """The least evidence over all places x that more of `up` lies above x + up_at than of `low` above x + low_at."""
    rate = 1 - p
    constants = [
        (bet.log_share - up.n * log1p(rate * expm1(bet.up)) - low.n * log1p(rate * expm1(-bet.low)), bet.up, bet.low)
        for bet in tilts
    ]

    def stake(k_up: float, k_low: float) -> float:
        return log_sum([c + k_up * a - k_low * b for c, a, b in constants])

    def at(x: float) -> float:
        return stake(up(x + up_at), low(x + low_at))

    least = min(at(up.quantile(p) - up_at), at(low.quantile(p) - low_at))  # where the least is to be expected
    places = sorted(
        {i - up_at for i in range(up.first, up.last + 1)} | {i - low_at for i in range(low.first, low.last + 1)}
    )
    # Branch and bound: both counts fall with x, so between two places there is at least the evidence of the upper
    # stream's count at the right one and the lower's at the left. Between neighbours both counts are linear.
    ranges = [(-inf, 0, len(places) - 1)]
    while ranges and least >= futile:
        floor, left, right = heappop(ranges)
        if floor >= min(least, enough):
            return min(least, floor)
        if right - left <= 1:
            least = min(least, _between(at, places[left], places[right]))
            continue
        middle = (left + right) // 2
        for a, b in ((left, middle), (middle, right)):
            heappush(ranges, (stake(up(places[b] + up_at), low(places[a] + low_at)), a, b))
    return least


def _between(f: Callable[[float], float], left: float, right: float) -> float:
    """The minimum of a convex function, by golden section."""
    least = min(f(left), f(right))
    for _ in range(ROUNDS):
        a, b = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
        at_a, at_b = f(a), f(b)
        least = min(least, at_a, at_b)
        left, right = (left, b) if at_a < at_b else (a, right)
    return least
