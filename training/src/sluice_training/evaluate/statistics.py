"""Intervals for shares and for paired differences of shares. Pure functions."""

import math
from dataclasses import dataclass

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927). (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class PairedDifference:
    """How much more often the new model does something than the old one, on the same examples."""

    difference: float
    low: float
    high: float
    n: int
    gained: int
    """Examples where only the new model does."""
    lost: int
    """Examples where only the old model does."""


def paired_difference(new: list[bool], old: list[bool], z: float = Z95) -> PairedDifference:
    """The difference of two shares on paired data, with Bonett and Price's adjusted Wald interval (2012): one is added
    to each discordant count and two to n, which keeps its coverage where few pairs or none disagree.

    Raises ValueError if the lists differ in length or are empty.
    """
    if len(new) != len(old) or not new:
        raise ValueError("paired data need two lists of the same length with something in them")
    n = len(new)
    gained = sum(a and not b for a, b in zip(new, old, strict=True))
    lost = sum(b and not a for a, b in zip(new, old, strict=True))
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return PairedDifference(
        difference=(gained - lost) / n,
        low=max(-1.0, p - q - half),
        high=min(1.0, p - q + half),
        n=n,
        gained=gained,
        lost=lost,
    )
