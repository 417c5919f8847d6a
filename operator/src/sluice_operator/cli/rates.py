"""Requests a second of each version, from two looks at its gateways' counts.

The gateways are asked at their internal port through the API server's proxy, so that nothing needs to be exposed. Two
looks a known time apart give a rate of now; the counts alone would only give a mean since the rollout's window began.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic import ValidationError
from sluice_contracts.analysis import LATENCY_EDGES, AnalysisSnapshot, Histogram, VersionCounts

from sluice_operator.children.boundaries import INTERNAL_PORT
from sluice_operator.cli.cluster import Cluster
from sluice_operator.cli.errors import CliError
from sluice_operator.cli.objects import Pool
from sluice_operator.cli.pods import MOST, Part, selector, sorted_pods

AT_ONCE = 8


@dataclass(frozen=True)
class Traffic:
    """What a pool's gateways had counted at one moment, by gateway process."""

    at: float = 0.0
    """Seconds on a monotonic clock."""
    snapshots: Mapping[str, AnalysisSnapshot] = field(default_factory=dict)
    problem: str = ""
    """Why some or all gateways gave nothing."""


@dataclass(frozen=True)
class Rate:
    """One version between two looks."""

    requests: float
    """A second."""
    errors: float | None
    """Share of the requests that failed; None if there were none."""
    ttft_p95: float | None
    """Seconds; None if no first token was seen."""
    tokens: float
    """Output tokens a second."""


def read_traffic(cluster: Cluster, pool: Pool) -> Traffic:
    """Ask the pool's gateways. A gateway that does not answer is a problem to tell, not a failure."""
    try:
        pods = sorted_pods(cluster.pods(pool.namespace, selector(pool)))
    except CliError as error:
        return Traffic(time.monotonic(), {}, str(error))
    gateways = [p.name for p in pods if p.part == Part.GATEWAY and p.ready]
    if not gateways:
        return Traffic(time.monotonic(), {}, "no gateway pod is ready")
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda name: _ask(cluster, pool.namespace, name), gateways[:MOST]))
    found = {a.instance: a for a in answers if isinstance(a, AnalysisSnapshot)}
    problems = [a for a in answers if isinstance(a, str)]
    if len(gateways) > MOST:
        problems.append(f"only {MOST} of {len(gateways)} gateways were asked")
    return Traffic(time.monotonic(), found, problems[0] if problems else "")


def rates(before: Traffic, now: Traffic) -> dict[str, Rate]:
    """By version. Only gateways seen in both looks, in the same window: a restart counts anew."""
    seconds = now.at - before.at
    if seconds <= 0:
        return {}
    found: dict[str, VersionCounts] = {}
    for instance, late in now.snapshots.items():
        early = before.snapshots.get(instance)
        if early is None or (early.window, early.since) != (late.window, late.since):
            continue
        for version, counts in late.versions.items():
            grown = _less(counts, early.versions.get(version, VersionCounts()))
            found[version] = found[version].plus(grown) if version in found else grown
    return {version: _rate(counts, seconds) for version, counts in found.items()}


def quantile(counts: Sequence[int], edges: Sequence[float], q: float) -> float | None:
    """The upper edge of the bucket that holds the quantile; None without values, or where it lies beyond the edges."""
    total = sum(counts)
    seen = 0
    for count, edge in zip(counts, edges, strict=False):
        seen += count
        if total and seen >= q * total:
            return edge
    return None


def _ask(cluster: Cluster, namespace: str, pod: str) -> AnalysisSnapshot | str:
    try:
        return AnalysisSnapshot.model_validate_json(cluster.ask(namespace, pod, INTERNAL_PORT, "analysis"))
    except CliError as error:
        return str(error)
    except ValidationError:
        return f"pod {pod} gave counts of another version of Sluice"


def _rate(counts: VersionCounts, seconds: float) -> Rate:
    return Rate(
        requests=counts.requests / seconds,
        errors=counts.errors / counts.requests if counts.requests else None,
        ttft_p95=quantile(counts.ttft.counts, LATENCY_EDGES, 0.95),
        tokens=counts.output_tokens.total / seconds,
    )


def _less(late: VersionCounts, early: VersionCounts) -> VersionCounts:
    """What was counted in between. Counts of one process in one window never fall."""
    return VersionCounts(
        requests=late.requests - early.requests,
        errors=late.errors - early.errors,
        ttft=_minus(late.ttft, early.ttft),
        output_tokens=_minus(late.output_tokens, early.output_tokens),
    )


def _minus(late: Histogram, early: Histogram) -> Histogram:
    counts = [a - b for a, b in zip(late.counts, early.counts, strict=True)]
    return Histogram(counts=counts, total=max(0.0, late.total - early.total))
