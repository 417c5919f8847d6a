"""A confidence sequence for a rate, by the beta-binomial mixture.

Source: H. Robbins, "Statistical methods related to the law of the iterated logarithm", Ann. Math. Statist. 41 (1970);
S. R. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences",
Ann. Statist. 49 (2021), on conjugate mixtures. For independent Bernoulli(p) outcomes the likelihood ratio of a
Beta(a, b) mixture against p,

    M_n(p) = B(a + k, b + n - k) / (B(a, b) p^k (1 - p)^(n - k)),

is a non-negative martingale that starts at 1; by Ville's inequality it ever exceeds 1/alpha with probability at most
alpha. So {p : M_n(p) < 1/alpha} covers the true p at all n together with probability at least 1 - alpha.
"""

from math import inf, lgamma, log, log1p

A = B = 0.5
"""Jeffreys' prior: good near 0, where error rates lie."""
STEPS = 40
"""Halvings of the search for an end: to one part in a million million."""


def interval(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """The confidence sequence's interval for the rate after `successes` of `trials`, at level 1 - `alpha`.

    Valid at every number of trials at once. No trials: (0, 1). Raises ValueError for impossible counts.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials are impossible")
    if trials == 0:
        return 0.0, 1.0
    failures = trials - successes
    reach = _log_beta(A + successes, B + failures) - _log_beta(A, B) + log(alpha)
    """A rate is rejected where the log-likelihood is at most this."""
    mean = successes / trials
    low = 0.0 if successes == 0 else _search(successes, failures, reach, outside=0.0, inside=mean)
    high = 1.0 if failures == 0 else _search(successes, failures, reach, outside=1.0, inside=mean)
    return low, high


def log_martingale(successes: int, trials: int, p: float, a: float = A, b: float = B) -> float:
    """log M_n(p) with the prior Beta(`a`, `b`). Infinite where p makes the outcomes impossible."""
    failures = trials - successes
    return _log_beta(a + successes, b + failures) - _log_beta(a, b) - _log_likelihood(successes, failures, p)


def _log_likelihood(successes: int, failures: int, p: float) -> float:
    if (p <= 0 and successes) or (p >= 1 and failures):
        return -inf
    return (successes * log(p) if successes else 0.0) + (failures * log1p(-p) if failures else 0.0)


def _search(successes: int, failures: int, reach: float, *, outside: float, inside: float) -> float:
    """Where the log-likelihood, which is concave with its maximum at the mean, crosses `reach`. Returns the rejected
    side, so that rounding only widens the interval."""
    for _ in range(STEPS):
        middle = (outside + inside) / 2
        if _log_likelihood(successes, failures, middle) <= reach:
            outside = middle
        else:
            inside = middle
    return outside


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
