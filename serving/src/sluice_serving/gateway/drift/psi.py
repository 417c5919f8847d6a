"""The population stability index: how far one set of counts has moved from another. Pure.

PSI = sum over bins of (p - q) ln(p / q), p and q being the bin's shares on either side. It is Jeffreys' divergence (H.
Jeffreys, Proc. R. Soc. A 186, 1946; S. Kullback, Information Theory and Statistics, 1959, chapter 1), by this name in
credit scoring, whose thresholds of 0.1 and 0.25 are a rule of thumb (E. M. Lewis, An Introduction to Credit Scoring,
1994; N. Siddiqi, Credit Risk Scorecards, 2006, chapter 9). They know nothing of sample sizes, so what chance alone
gives is told beside it: of two samples of n and m from one population, PSI is about (1/n + 1/m) chi-squared with bins
- 1 degrees of freedom (B. Yurdakul and J. Naranjo, Statistical properties of the population stability index, J. Risk
Model Validation 14(4), 2020)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sluice_contracts.drift import RARE, DriftThresholds

Counts = Mapping[str, float]
Z_99 = 2.3263478740408408
"""The normal distribution's 99th percentile."""
HALF_AN_OBSERVATION = 0.5
BISECTIONS = 60


class Level(StrEnum):
    """How much a feature has moved."""

    UNDECIDED = "undecided"
    """Too few requests to tell."""
    STABLE = "stable"
    MODERATE = "moderate"
    MAJOR = "major"


@dataclass(frozen=True)
class Moved:
    """One bin's part in a PSI. Shares are as counted."""

    bin: str
    reference: float
    now: float
    part: float


@dataclass(frozen=True)
class Comparison:
    """One feature in two windows."""

    level: Level
    n: float
    reference_n: float
    psi: float | None = None
    chance: float | None = None
    """What one sample in a hundred reaches where nothing has changed."""
    moved: tuple[Moved, ...] = ()
    """The bins, those with the largest part first."""


def parts(reference: Counts, now: Counts) -> dict[str, tuple[float, float, float]]:
    """Each bin's share in the reference, share now, and part of the PSI, over all bins that some side has.

    An empty bin has no logarithm. Every share is therefore raised by that of half an observation of the smaller side:
    the same on both, so that equal shares give 0 whatever the sizes, and an empty bin says no more than the sample
    can. Raises ValueError where a side has no count at all, or a negative one."""
    n, m = sum(reference.values()), sum(now.values())
    if n <= 0 or m <= 0 or min(*reference.values(), *now.values()) < 0:
        raise ValueError("both sides need counts, and none below 0")
    bins = sorted(b for b in {*reference, *now} if reference.get(b, 0) or now.get(b, 0))
    little = HALF_AN_OBSERVATION / min(n, m)
    whole = 1 + little * len(bins)
    found = {}
    for name in bins:
        raw_q, raw_p = reference.get(name, 0) / n, now.get(name, 0) / m
        q, p = (raw_q + little) / whole, (raw_p + little) / whole
        found[name] = raw_q, raw_p, (p - q) * math.log(p / q)
    return found


def psi(reference: Counts, now: Counts) -> float:
    """The index; 0 where the shares are equal, the same in either direction. Raises ValueError as `parts`."""
    return math.fsum(part for _, _, part in parts(reference, now).values())


def chance(n: float, m: float, bins: int) -> float:
    """The 99th percentile of the PSI of two samples from one population, by Wilson and Hilferty's approximation of
    chi-squared (PNAS 17, 1931)."""
    if bins < 2:
        return 0.0
    degrees = bins - 1
    spread = 2 / (9 * degrees)
    return (1 / n + 1 / m) * degrees * (1 - spread + Z_99 * math.sqrt(spread)) ** 3


def place_rare(counts: Counts, beside: Counts, hidden: Collection[str]) -> dict[str, float]:
    """`counts` with its merged small cells put back where they make it most like `beside`.

    Which cells of a day were small is not kept, so nobody knows. Putting them where they speak least for drift makes
    the index a lower bound: what is reported has moved wherever they were. Only bins in `hidden`, which some day of
    the window lacks, can have been merged; what fits nowhere stays. The part of a bin in the PSI falls with its ratio
    to `beside`, so the least of all is where the ratios that are raised are equal: the level of water poured into
    vessels."""
    loose, total, other = counts.get(RARE, 0), sum(counts.values()), sum(beside.values())
    wanted = {b: beside.get(b, 0) * total / other for b in {*hidden, RARE} if beside.get(b, 0)} if other else {}
    if not loose or not wanted:
        return dict(counts)
    fixed = {b: 0.0 if b == RARE else counts.get(b, 0) for b in wanted}

    def poured(level: float) -> float:
        return sum(max(0.0, level * wanted[b] - fixed[b]) for b in wanted)

    low, high = 0.0, (loose + sum(fixed.values())) / min(wanted.values())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if poured(middle) < loose else (low, middle)
    placed = {b: n for b, n in counts.items() if b != RARE}
    for name in wanted:
        placed[name] = fixed[name] + max(0.0, high * wanted[name] - fixed[name])
    return {b: n for b, n in placed.items() if n}


@dataclass(frozen=True)
class Sample:
    """One feature's counts in one window."""

    counts: Counts
    hidden: frozenset[str] = frozenset()
    """Bins that some day of the window may have had, merged into RARE."""


def compare(reference: Sample, now: Sample, thresholds: DriftThresholds, min_samples: int) -> Comparison:
    """How far `now` is from `reference`. What chance alone gives is never called drift."""
    m, n = sum(reference.counts.values()), sum(now.counts.values())
    if min(n, m) < max(1, min_samples):
        return Comparison(Level.UNDECIDED, n, m)
    current = place_rare(now.counts, reference.counts, now.hidden)
    former = place_rare(reference.counts, current, reference.hidden)
    found = parts(former, current)
    value = math.fsum(part for _, _, part in found.values())
    noise = chance(n, m, len(found))
    level = Level.STABLE
    if value > noise and value >= thresholds.moderate:
        level = Level.MAJOR if value >= thresholds.major else Level.MODERATE
    moved = sorted((Moved(b, q, p, part) for b, (q, p, part) in found.items()), key=lambda one: (-one.part, one.bin))
    return Comparison(level, n, m, value, noise, tuple(moved))
