"""Whether devices fare so badly with a version that no further stage may open. Pure.

The report's counts grow and are looked at again and again, so a plain binomial test would halt a good release in the
end. The bound here holds at every look at once: requests are bets against "the failure share is p" with a uniform
prior over what it is instead, and a p is ruled out when the bets have won 100 to 1 (Ville's inequality; the mixture is
Robbins', Annals of Mathematical Statistics 41, 1970). For a smaller p the same evidence is stronger, so all smaller
shares are ruled out with it.

Requests of one device resemble each other. The report says by how much (its design effect), and the counts are divided
by that before they are believed.
"""

from math import lgamma, log

from sluice_contracts.base import parse_timestamp
from sluice_contracts.health import HealthReport, VersionHealth
from sluice_contracts.model_version import HealthStatus, ModelVersionStatus, PublishSpec

from sluice_operator.artifacts import Problem

CONFIDENCE = 0.99
UNKNOWN = "HealthUnknown"
HALTED = "HealthHalted"
_STEPS = 40
"""Halvings of the interval that the bound is searched in: far beyond the digits that are shown."""


def failure_share_at_least(found: VersionHealth) -> float:
    """The lower bound of the failure share at 99 % confidence, valid at every look."""
    n = found.requests / found.design_effect
    failed = min(found.failures, found.requests) / found.design_effect
    share = failed / n
    if share == 0:
        return 0.0
    enough = -log(1 - CONFIDENCE)
    low, high = 0.0, share
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _evidence(failed, n, middle) >= enough else (low, middle)
    return low


def _evidence(failed: float, n: float, p: float) -> float:
    """Logarithm of what bets against the share `p` have won."""
    well = n - failed
    mixture = lgamma(failed + 1) + lgamma(well + 1) - lgamma(n + 2)
    return mixture - failed * log(p) - (well * log(1 - p) if well else 0.0)


def judge(
    wanted: PublishSpec, report: HealthReport | Problem | None, status: ModelVersionStatus, generation: int
) -> tuple[str, str] | None:
    """Why the next stage may not open, a reason and a message; None if it may. What was found is put into `status`.

    A halt holds until a person changes the spec: a rate that was surely too high once is not mended by later requests.
    """
    gate = wanted.health
    if gate is None or status.release is None or status.release.published_stage == 0:
        status.health = None
        return None
    if isinstance(report, Problem):
        return UNKNOWN, report.about("spec.publish.health.report").message
    if report is None:
        return UNKNOWN, "the health report has not been read yet"
    opened = status.release.published_at
    if opened is not None and parse_timestamp(report.made_at) < parse_timestamp(opened):
        text = (
            f"the health report of {report.made_at} is older than the open stage, of {opened}: it says nothing of it; "
            "have it made anew (sluice-train publish health)"
        )
        return UNKNOWN, text
    found = report.of(status.lineage or "")
    before = status.health
    halted = before.halted_generation if before is not None and before.halted_generation == generation else None
    requests, failures, low = 0, 0, 0.0
    if found is not None:
        requests, failures, low = found.requests, min(found.failures, found.requests), failure_share_at_least(found)
    if low > gate.max_failure_share:
        halted = generation
    status.health = HealthStatus(
        requests=requests, failures=failures, at_least=round(low, 6), made_at=report.made_at, halted_generation=halted
    )
    seen = f"{failures} of {requests} requests failed on devices"
    if halted is not None:
        text = (
            f"{seen} ({failures / max(requests, 1):.1%}, surely at least {low:.1%}); the limit is "
            f"{gate.max_failure_share:.1%}: no further stage opens. Yank the version (publish.yanked), or change "
            "publish.health to let it go on"
        )
        return HALTED, text
    if requests < gate.min_requests:
        return UNKNOWN, f"{seen}; publish.health.minRequests wants {gate.min_requests} before the next stage"
    return None
