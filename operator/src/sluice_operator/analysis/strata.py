"""Comparing like with like: the two versions' answers in buckets of request length.

Long requests take longer and are answered at other lengths, so if one version gets more of them, because its share
grew while people's questions changed, it looks worse or better than it is. The lengths are known before the answers and
are no version's doing; so everything here holds given them.

Two ways to say "nothing is wrong in like traffic", each with an e-process:

- *Bucket by bucket*: in every bucket the candidate is within the tolerance. The buckets' evidence multiplies. A fifth
  of each bucket's stake is not bet, so that buckets in which nothing is wrong take away little.
- *At one mix*: had both versions had the mix of lengths of all requests together, the candidate would be within the
  tolerance. Minimising the likelihood ratio of `e_process` over all rates inside the buckets that average to given ones
  (a Lagrange multiplier does it) leaves the ratio of the pooled counts, less the evidence that the two versions' mixes
  differ at all: half the G statistic of the table of versions by buckets. So pooled evidence counts as far as it
  outweighs that.

The first sees harm in one bucket, the second harm spread thinly over all; a harmful verdict bets half on each, since
both suppositions hold if every bucket is within the tolerance. Equivalence is the second's alone: a bucket with three
requests a day must not hold up a promotion for ever.
"""

from collections.abc import Sequence
from math import exp, log

from sluice_operator.analysis.e_process import log_sum

HELD_BACK = 0.2
"""The part of a bucket's stake that is not bet."""


def mix_evidence(counts: Sequence[tuple[int, int]]) -> float:
    """Half the G statistic: the log likelihood ratio that the two versions' shares of the buckets differ, from how many
    answers each had in each bucket. At least 0; about (buckets - 1) / 2 while they do not differ."""
    mine, theirs = sum(a for a, _ in counts), sum(b for _, b in counts)
    both = mine + theirs
    found = 0.0
    for a, b in counts:
        if a:
            found += a * log(a * both / (mine * (a + b)))
        if b:
            found += b * log(b * both / (theirs * (a + b)))
    return max(0.0, found)


def log_harm(pooled: float, buckets: Sequence[float], mix: float) -> float:
    """The log of the e-process against "the candidate is within the tolerance in every bucket", from the log evidence
    in the pooled counts and in each bucket that has some, and from `mix_evidence`."""
    apart = sum(log(HELD_BACK + (1 - HELD_BACK) * exp(min(one, 700.0))) for one in buckets)
    return log_sum([pooled - mix, apart]) - log(2)


def standardised(mine: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Both versions' histograms as if both had had the mix of buckets of all answers together, from their counts in
    each bucket of request length. Buckets that only one of them has are left out, unless there are no others."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if sum(a) and sum(b)] or list(
        zip(mine, theirs, strict=True)
    )
    if len(pairs) == 1:
        return list(pairs[0][0]), list(pairs[0][1])
    return _at_mix([a for a, _ in pairs], pairs), _at_mix([b for _, b in pairs], pairs)


def _at_mix(
    histograms: Sequence[Sequence[float]], pairs: Sequence[tuple[Sequence[float], Sequence[float]]]
) -> list[float]:
    found = [0.0] * len(histograms[0])
    for counts, (a, b) in zip(histograms, pairs, strict=True):
        own = sum(counts)
        for i, n in enumerate(counts):
            if n:
                found[i] += n * (sum(a) + sum(b)) / own
    return found
