"""A version's counts as named numbers, for systems that know nothing but those: what Prometheus carries.

Only counts that are not 0 become rows, so that fine histograms cost little. Rows of several gateways may be added up
before they are read: every row is a sum.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sluice_contracts.analysis import (
    COST_EDGES,
    LATENCY_EDGES,
    REQUEST_BYTES_EDGES,
    TOKEN_EDGES,
    Histogram,
    Shape,
    VersionCounts,
)

HISTOGRAMS: dict[str, tuple[float, ...]] = {
    "ttft": LATENCY_EDGES,
    "latency": LATENCY_EDGES,
    "inter_token": LATENCY_EDGES,
    "output_tokens": TOKEN_EDGES,
    "cost": COST_EDGES,
}
"""Those of `Shape`, kept apart by request length."""
NUMBERS = ("requests", "errors", "schema_checked", "schema_invalid", "mirror_scored", "mirror_score")
FINISH = "finish"
QUEUE = "queue"
TOTAL = "_total"


class Row(NamedTuple):
    """One number: which count, of which bucket of request lengths (its place; empty for all), of which bucket of the
    histogram (its place) or finish reason."""

    name: str
    length: str
    bin: str
    value: float


def to_rows(counts: VersionCounts) -> Iterator[Row]:
    """The counts as rows. Requests are there even if there were none: the version is known then."""
    for name in NUMBERS:
        value = getattr(counts, name)
        if value or name == "requests":
            yield Row(name, "", "", value)
    for reason, n in counts.finish_reasons.items():
        yield Row(FINISH, "", reason, n)
    yield from _bins(QUEUE, "", counts.queue)
    for name in HISTOGRAMS:
        whole: Histogram = getattr(counts, name)
        if whole.total:
            yield Row(name + TOTAL, "", "", whole.total)
        if not counts.by_length:
            yield from _bins(name, "", whole)
        for i, shape in enumerate(counts.by_length):
            yield from _bins(name, str(i), getattr(shape, name))


def from_rows(rows: Iterable[Row]) -> VersionCounts:
    """The counts that the rows, of one version, are of. Rows with unknown names come from a newer gateway and are left
    out. Raises ValueError for places that no histogram has and for counts that contradict each other."""
    found = VersionCounts()
    by_length = [Shape() for _ in range(len(REQUEST_BYTES_EDGES) + 1)]
    apart = False
    for row in rows:
        if row.name in NUMBERS:
            whole = row.name != "mirror_score"
            setattr(found, row.name, getattr(found, row.name) + (round(row.value) if whole else row.value))
        elif row.name == FINISH:
            found.finish_reasons[row.bin] = found.finish_reasons.get(row.bin, 0) + round(row.value)
        elif row.name == QUEUE:
            _add(found.queue, row)
        elif row.name in HISTOGRAMS:
            _add(getattr(found, row.name), row)
            if row.length:
                apart = True
                _add(getattr(by_length[_place(row.length, len(by_length))], row.name), row)
        elif row.name.endswith(TOTAL) and row.name.removesuffix(TOTAL) in HISTOGRAMS:
            getattr(found, row.name.removesuffix(TOTAL)).total += row.value
    found.by_length = by_length if apart else []
    return VersionCounts.model_validate(found.model_dump())


def _bins(name: str, length: str, histogram: Histogram) -> Iterator[Row]:
    for i, n in enumerate(histogram.counts):
        if n:
            yield Row(name, length, str(i), n)


def _add(histogram: Histogram, row: Row) -> None:
    histogram.counts[_place(row.bin, len(histogram.counts))] += round(row.value)


def _place(text: str, many: int) -> int:
    if not text.isdecimal() or int(text) >= many:
        raise ValueError(f"there is no bucket {text[:20]!r}: gateway and operator are of different versions")
    return int(text)
