"""From device signals to a health report: how often requests fail on devices, by version.

Counts are added up over whole batches. Requests of one device resemble each other, so beside the counts stands by how
much the share scatters more than independent requests would: the design effect, from the variance between batches
(the ratio estimator's, Cochran, Sampling Techniques, 3rd ed., 6.3), never below 1.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from sluice_contracts.base import timestamp
from sluice_contracts.health import HealthReport, VersionHealth
from sluice_contracts.signal import Outcome, SignalBatch, SignalCell

MAX_VERSIONS = 200


def summarise(batches: Iterable[SignalBatch], model: str, now: datetime) -> HealthReport:
    """The report on `model`. Batches of other models are left out; each batch must be there once."""
    mine = [batch for batch in batches if batch.model == model]
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for batch in mine:
        for lineage, pair in _by_version(batch).items():
            counts[lineage].append(pair)
    found = [_version(lineage, pairs) for lineage, pairs in counts.items()]
    found.sort(key=lambda v: (-v.requests, v.lineage))
    return HealthReport(
        model=model,
        made_at=timestamp(now),
        last_day=max((batch.day for batch in mine), default=None),
        batches=len(mine),
        versions=found[:MAX_VERSIONS],
    )


def _by_version(batch: SignalBatch) -> dict[str, tuple[int, int]]:
    """Requests and failures of each version in one batch."""
    found: dict[str, tuple[int, int]] = {}
    for cell in batch.cells:
        requests, failures = found.get(cell.lineage, (0, 0))
        found[cell.lineage] = requests + cell.count, failures + (cell.count if _failed(cell) else 0)
    return found


def _failed(cell: SignalCell) -> bool:
    return cell.outcome is Outcome.FAILURE or cell.feedback < 0


def _version(lineage: str, pairs: list[tuple[int, int]]) -> VersionHealth:
    requests, failures = sum(n for n, _ in pairs), sum(f for _, f in pairs)
    return VersionHealth(
        lineage=lineage,
        batches=len(pairs),
        requests=requests,
        failures=failures,
        design_effect=round(design_effect(pairs), 3),
    )


def design_effect(pairs: list[tuple[int, int]]) -> float:
    """Variance of the failure share between batches over the variance of independent requests; at least 1.

    `pairs`: requests and failures of each batch. One batch alone says nothing of the scatter between devices: it counts
    as one observation, so that a single device can never stop a release.
    """
    requests, failures = sum(n for n, _ in pairs), sum(f for _, f in pairs)
    if len(pairs) < 2:
        return float(max(1, requests))
    share = failures / requests
    if failures == requests:  # no scatter to measure: a few broken devices are as many observations, not more
        return requests / len(pairs)
    if failures == 0:
        return 1.0
    between = sum((f - share * n) ** 2 for n, f in pairs) / requests**2 * len(pairs) / (len(pairs) - 1)
    return max(1.0, between / (share * (1 - share) / requests))
