"""What a run has used and what that costs: a meter that moves only when what the run holds changes.

The meter keeps facts (worker-seconds), the table keeps prices, and the cost is their product: a price that is mended
mends the cost of every running run. Counted are the worker pods that KubeRay reports as running, not those that wait
for a node, which cost nothing; a head that only coordinates is left out. While nobody looks, the last known number of
workers stands.
"""

from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

from sluice_contracts.base import parse_timestamp, timestamp
from sluice_contracts.training_run import Cost, TrainingRunSpec, Usage

from sluice_operator.children.hardware import HardwareError
from sluice_operator.prices import Prices
from sluice_operator.training_run.ray_job_state import JobPhase, RayJobState

HOLDING = {JobPhase.STARTING, JobPhase.RUNNING}
"""Phases in which an attempt has its machines, or waits for them."""
CENT, MICRO = Decimal("0.01"), Decimal("0.000001")
MOST = Decimal("999999999.99")


def begin(before: Usage | None, now: datetime) -> Usage:
    """The meter when an attempt is created."""
    seconds, worker_seconds = used(before, now) if before is not None else (0, 0)
    return Usage(since=timestamp(now), running=True, seconds=seconds, worker_seconds=worker_seconds)


def advance(before: Usage, job: RayJobState | None, now: datetime) -> Usage:
    """The meter after a look at the attempt that counts (None: it is gone). Equal to `before` while nothing changed.

    What began or ended while the operator was away is counted by the job's own times.
    """
    holds = job is not None and not job.deleting and job.phase in HOLDING
    workers = job.workers if job is not None and holds else 0
    began = job.started_at if job is not None and (job.started_at or "") > before.since else None
    missed = began is not None and not before.running
    if (before.running, before.workers) == (holds, workers) and not missed:
        return before
    ended = job.ended_at if job is not None and job.phase.over else None
    end = min(now, parse_timestamp(ended)) if ended is not None else now
    seconds, worker_seconds = used(before, end)
    if job is not None and began is not None:
        if not before.running:
            seconds += _between(began, end)
        if before.workers == 0:
            worker_seconds += _between(began, end) * job.workers
    since = max(before.since, timestamp(now))
    return Usage(since=since, running=holds, workers=workers, seconds=seconds, worker_seconds=worker_seconds)


def used(usage: Usage, now: datetime) -> tuple[int, int]:
    """Running seconds, and worker-seconds, up to `now`."""
    passed = _between(usage.since, now)
    return usage.seconds + passed * usage.running, usage.worker_seconds + passed * usage.workers


def per_worker_hour(spec: TrainingRunSpec, prices: Prices, known: Cost | None) -> Decimal | None:
    """The price of one worker pod for one hour: the table's, or what it was when the table still knew the accelerator.
    None where it never did."""
    try:
        price = prices.worker_hour(spec.hardware)
    except HardwareError:  # said elsewhere: nothing starts on such hardware
        return None
    return Decimal(known.per_worker_hour) if price is None and known is not None else price


def cost(usage: Usage, price: Decimal, currency: str, now: datetime) -> Cost:
    """What a run has cost up to `now`, to the cent, with one worker pod at `price` an hour."""
    _, worker_seconds = used(usage, now)
    total = min(worker_seconds * price / 3600, MOST)
    return Cost(
        total=str(total.quantize(CENT, ROUND_HALF_UP)),
        currency=currency,
        per_worker_hour=format(price.quantize(MICRO).normalize(), "f"),
        as_of=timestamp(now),
    )


def _between(start: str, end: datetime) -> int:
    """Whole seconds; none where clocks disagree about which came first."""
    return max(0, int((end - parse_timestamp(start)).total_seconds()))
