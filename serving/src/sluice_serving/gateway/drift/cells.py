"""Counts of days: small ones merged, days put together into windows. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from sluice_contracts.drift import RARE, DriftReference

from sluice_serving.gateway.drift.psi import Sample

NEXT_TO_NOTHING = 0.01
"""Of a day: what a share may be off by, for a day of one large count and a tiny one to stay readable at all."""


@dataclass(frozen=True)
class Cell:
    """How often one bin of one feature was seen in requests of one day that one version answered."""

    day: str
    version: str
    feature: str
    bin: str
    count: int


def merged(counts: Mapping[str, int], least: int) -> dict[str, int]:
    """`counts` without any below `least`. Empty where all of them together are too few.

    Small ones are put together as RARE. Where that is still too few it goes to the largest, if it is next to nothing
    there, and else takes the next smallest in. The sum stays: what is missing cannot be had by subtraction.
    """
    total = sum(counts.values())
    if total < least:
        return {}
    kept = {b: n for b, n in counts.items() if n >= least and b != RARE}
    rare = total - sum(kept.values())
    if 0 < rare < min(least, NEXT_TO_NOTHING * total):
        kept[max(kept, key=lambda b: (kept[b], b))] += rare
        return kept
    while 0 < rare < least:
        rare += kept.pop(min(kept, key=lambda b: (kept[b], b)))
    return kept | {RARE: rare} if rare else kept


def publishable(cells: Iterable[Cell], least: int) -> list[Cell]:
    """The cells of whole days as they may be kept: of each day, version and feature the counts that `merged` leaves."""
    groups: defaultdict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for cell in cells:
        groups[cell.day, cell.version, cell.feature][cell.bin] += cell.count
    return [
        Cell(*group, name, n)
        for group, counts in sorted(groups.items())
        for name, n in sorted(merged(counts, least).items())
    ]


def day_before(day: str, days: int = 1) -> str:
    """The day so many before."""
    return (date.fromisoformat(day) - timedelta(days=days)).isoformat()


def is_day(text: str) -> bool:
    """Whether the text is a day as the counts have it."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True)
class Window:
    """Days, both ends included, and the version that is meant; None: all."""

    first: str
    last: str
    version: str | None = None


def windows(last: str, version: str | None, days: int, reference: DriftReference) -> tuple[Window, Window]:
    """The window of `version` that ends with the day `last`, and what it is compared with."""
    now = Window(day_before(last, days - 1), last, version)
    if reference.first_day is not None and reference.last_day is not None:
        return now, Window(reference.first_day, reference.last_day, reference.model_version)
    before = day_before(now.first)
    return now, Window(day_before(before, reference.days - 1), before, reference.model_version)


@dataclass
class History:
    """The kept cells, by feature and day."""

    by_feature: dict[str, dict[str, dict[str, Counter[str]]]] = field(default_factory=dict)
    """Feature, day, version, bin."""
    bins: dict[str, set[str]] = field(default_factory=dict)
    """Of each feature, on any day."""

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> "History":
        """From cells in any order."""
        found = cls()
        for cell in cells:
            days = found.by_feature.setdefault(cell.feature, {})
            found.bins.setdefault(cell.feature, set()).add(cell.bin)
            days.setdefault(cell.day, {}).setdefault(cell.version, Counter())[cell.bin] += cell.count
        return found

    def days(self) -> list[str]:
        """All days, oldest first."""
        return sorted({day for days in self.by_feature.values() for day in days})

    def versions(self, window: Window) -> list[str]:
        """Those that answered in the window."""
        return sorted({v for feature in self.by_feature for group in self._in(feature, window) for v in group})

    def sample(self, feature: str, window: Window) -> Sample:
        """The feature's counts in the window."""
        chosen = [
            counts
            for group in self._in(feature, window)
            for version, counts in group.items()
            if window.version in (None, version)
        ]
        total: Counter[str] = Counter()
        for counts in chosen:
            total.update(counts)
        everywhere = set.intersection(*(set(c) for c in chosen)) if chosen else set()
        hidden = self.bins.get(feature, set()) - everywhere - {RARE} if total[RARE] else set()
        return Sample(total, frozenset(hidden))

    def _in(self, feature: str, window: Window) -> list[dict[str, Counter[str]]]:
        days = self.by_feature.get(feature, {})
        return [group for day, group in days.items() if window.first <= day <= window.last]
