"""How far apart two distributions are, at a histogram's edges: the largest difference of their distribution functions
(Kolmogorov and Smirnov's distance).

At each edge, "at or below" is an outcome with a rate in each version, so `e_process` judges each edge and direction.
Harm at any of them is harm: the stake is split evenly over all. Equivalence must hold at every one of them, so a bad
candidate would have to fool the very edge where it is bad: no correction is due (intersection-union test).
"""

from collections.abc import Sequence
from itertools import accumulate
from math import inf, log

from sluice_operator.analysis.e_process import Stream, log_evidence, log_sum

Counts = Sequence[float]


def distance(a: Counts, b: Counts) -> float:
    """The largest difference of the two distribution functions; 0 where one has no values."""
    return max((abs(x.mean - y.mean) for x, y in _cuts(a, b) if x.n and y.n), default=0.0)


def log_evidence_apart(candidate: Counts, stable: Counts, margin: float) -> float:
    """The log of the e-process against "the distributions are at most `margin` apart"."""
    cuts = _cuts(candidate, stable)
    found = []
    for mine, theirs in cuts:
        up, low = (mine, theirs) if mine.mean > theirs.mean else (mine.flipped(), theirs.flipped())
        if up.mean - low.mean <= margin or log_evidence(up, low, margin, minority_up=True, enough=0.0) < 0:
            continue  # less than the stake: leaving it out only makes the sum a little smaller
        found.append(log_evidence(up, low, margin, minority_up=True))
    return log_sum(found) - log(2 * len(cuts)) if found else -inf


def are_close(candidate: Counts, stable: Counts, margin: float, bound: float) -> bool:
    """Whether "they are `margin` or more apart" is rejected at every edge and in both directions with log evidence of
    at least `bound`."""
    cuts = sorted(set(_cuts(candidate, stable)), key=lambda pair: -abs(pair[0].mean - pair[1].mean))
    return all(
        log_evidence(low, high, -margin, minority_up=False, enough=bound) >= bound
        for mine, theirs in cuts
        for high, low in ((mine, theirs), (mine.flipped(), theirs.flipped()))
    )


def _cuts(a: Counts, b: Counts) -> list[tuple[Stream, Stream]]:
    """How many values of each lie at or below each edge. The last count holds all the others and says nothing more."""
    n, m = round(sum(a)), round(sum(b))
    below = zip(list(accumulate(a))[:-1], list(accumulate(b))[:-1], strict=True)
    return [(Stream(x, n), Stream(y, m)) for x, y in below]
