"""Evidence that one stream of outcomes has a higher rate than another: an e-process, so valid at every look at once.

Two streams of outcomes in [0, 1], such as failed or not, with means p_up and p_low. A bet that tilts the upper stream
up by a and the lower down by b, in log odds, multiplies its stake with each outcome y by

    exp(a y) / (1 + p_up (e^a - 1))      or      exp(-b y) / (1 + p_low (e^-b - 1)).

By convexity the mean factor is at most 1 at the true means, so the stake is a non-negative supermartingale that starts
at 1, as is any mixture of bets fixed beforehand, and by Ville's inequality the mixture ever exceeds 1/alpha with
probability at most alpha. The means are not known: the hypothesis "p_up is at most p_low + margin" falls once the
mixture exceeds 1/alpha at every pair of means that obeys it. The mixture falls in p_up, so only pairs with p_up =
p_low + margin need be looked at, and along these it is convex: one minimum, found by golden section.

The bets are the likelihood ratios that grow fastest against the nearest pair of equal streams, so no price is paid for
not knowing the rates themselves, only for not knowing how far apart they are. Sources: R. J. Turner, P. D. Grünwald,
"Exact anytime-valid confidence intervals for contingency tables and beyond", Statistics & Probability Letters 198
(2023), whose optimal bets these are; A. Ramdas, P. Grünwald, V. Vovk, G. Shafer, "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38 (2023), for composite hypotheses by the infimum over their points.

Only totals matter, no order and no state: any look can be computed afresh. How many requests each stream had may depend
on anything but the outcomes to come.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import exp, expm1, inf, isfinite, log

EFFECTS = ((0.2, 3), (0.7, 34), (2.0, 3), (5.0, 1))
"""Differences in log odds that are bet on, with the shares of the stake. Most of it lies on a doubled rate, which is
what rollouts are there to find. A bet with a share s finds its difference later by log(1/s) of log evidence at most, so
the small shares of the others cost little: 10 % against 12 % and 0 against 1 need a few per cent and one request more
than if the stake were spread evenly (benchmarks/canary.py)."""
SPLITS = ((0.03, 1), (0.1, 16), (0.3, 24), (0.58, 28), (0.95, 1))
"""How a difference is split between the streams. The best split for a doubled rate is a little more than the upper
stream's share of all requests (0.07, 0.14, 0.32 and 0.58 for 5, 10, 25 and 50 %), which moves with a rollout's steps.
Both ends must be there: where all bets lie on one side of the best split, some pair of rates defeats them all."""
GAP = 1e-3
"""How far the minimum may be from its lower bound, in log evidence; the bound is what counts, so rounding never helps a
rejection."""
ROUNDS = 60
HALVINGS = 12
"""Of the search for an interval's end, which is shown to people; no verdict depends on it."""


@dataclass(frozen=True)
class Stream:
    """Outcomes so far: their sum, which may be fractional, and their number."""

    k: float
    n: int

    @property
    def mean(self) -> float:
        """Their mean; 0 for none."""
        return self.k / self.n if self.n else 0.0

    def flipped(self) -> "Stream":
        """The complements: what did not happen."""
        return Stream(self.n - self.k, self.n)


@dataclass(frozen=True)
class Bet:
    """One tilt of both streams and the log of its share of the stake."""

    log_share: float
    up: float
    """a."""
    low: float
    """b."""


@cache
def bets(minority_up: bool) -> tuple[Bet, ...]:
    """The mixture. `minority_up`: the upper stream is the candidate's, which has the smaller share of the requests."""
    total = sum(w for _, w in EFFECTS) * sum(w for _, w in SPLITS)
    return tuple(
        Bet(log(we * ws / total), (1 - share) * effect, share * effect)
        for effect, we in EFFECTS
        for split, ws in SPLITS
        for share in [split if minority_up else 1 - split]
    )


def log_evidence(up: Stream, low: Stream, margin: float, *, minority_up: bool, enough: float = inf) -> float:
    """The log of the e-process against "the upper mean is at most the lower mean plus `margin`".

    At or above -log(alpha) at any look, the hypothesis is rejected at level alpha. A search that only wants to know
    whether it is at least `enough` ends early with a value on the same side.
    """
    tilts = [
        (bet.log_share + up.k * bet.up - low.k * bet.low, expm1(bet.up), expm1(-bet.low)) for bet in bets(minority_up)
    ]

    def stake(p: float) -> tuple[float, float]:
        """The log stake where the lower mean is p, and its slope."""
        logs, slopes = [], []
        for won, a, b in tilts:
            x, y = 1 + (p + margin) * a, 1 + p * b
            logs.append(won - up.n * log(x) - low.n * log(y))
            slopes.append(-up.n * a / x - low.n * b / y)
        top = max(logs)
        shares = [exp(one - top) for one in logs]
        total = sum(shares)
        return top + log(total), sum(s * slope for s, slope in zip(shares, slopes, strict=True)) / total

    bottom, top = max(0.0, -margin), min(1.0, 1.0 - margin)
    if top < bottom:  # no two means are that far apart, so all obey
        return -inf
    return _minimum(stake, bottom, top, enough)


def difference_low(up: Stream, low: Stream, alpha: float, *, minority_up: bool) -> float:
    """A lower bound of "upper mean less lower mean" that holds at all looks together with probability 1 - `alpha`."""
    if up.n == 0 or low.n == 0:
        return -1.0
    bound = -log(alpha)
    return largest(
        lambda margin: log_evidence(up, low, margin, minority_up=minority_up, enough=bound) >= bound,
        -1.0,
        up.mean - low.mean,
    )


def largest(rejected: Callable[[float], bool], bottom: float, top: float) -> float:
    """The largest margin known to be rejected, between one that always is and one that never is. Errs downwards."""
    for _ in range(HALVINGS):
        middle = (bottom + top) / 2
        if rejected(middle):
            bottom = middle
        else:
            top = middle
    return bottom


def _minimum(f: Callable[[float], tuple[float, float]], bottom: float, top: float, enough: float) -> float:
    """A lower bound, within GAP, of the minimum of a convex function that gives value and slope; or, as soon as it is
    clear on which side of `enough` the minimum lies, a value on that side. Cuts by tangents (J. E. Kelley, 1960)."""
    (f_left, down), (f_right, rise) = f(bottom), f(top)
    if down >= 0:
        return f_left
    if rise <= 0:
        return f_right
    left, right = bottom, top
    least = min(f_left, f_right)
    floor = -inf
    for turn in range(ROUNDS):
        meet = (f_left - f_right + rise * right - down * left) / (rise - down)
        floor = f_left + down * (meet - left)
        if least < enough < inf or floor >= enough or least - floor < GAP:
            break
        at = meet if turn % 3 else (left + right) / 2
        value, slope = f(at)
        least = min(least, value)
        if slope == 0:
            return value
        if slope < 0:
            left, f_left, down = at, value, slope
        else:
            right, f_right, rise = at, value, slope
    return min(least, floor)


def log_sum(logs: list[float]) -> float:
    """The log of the sum of what these are the logs of; minus infinity for none."""
    top = max(logs, default=-inf)
    if not isfinite(top):
        return top
    return top + log(sum(exp(x - top) for x in logs))
