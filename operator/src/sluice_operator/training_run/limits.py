"""When a run has had enough: failures, preemptions, time, money."""

from datetime import datetime
from decimal import Decimal

from sluice_contracts.base import seconds
from sluice_contracts.training_run import RunLimits, TrainingRunSpec, TrainingRunStatus, Usage

from sluice_operator.training_run.usage import cost, used

LIMIT_REASONS = {"FailuresExceeded", "PreemptionsExceeded", "DurationExceeded", "CostExceeded"}
"""Ends that a higher limit in the spec takes back; every other end is final."""
PRICE_UNKNOWN = "PriceUnknown"


def limit_reached(
    limits: RunLimits,
    status: TrainingRunStatus,
    last_failure: str | None,
    price: Decimal | None,
    currency: str,
    now: datetime,
) -> tuple[str, str] | None:
    """The reason and the words of the first limit that is passed, or None. `price` is of one worker pod and hour."""
    if status.failures > limits.max_failures:
        return "FailuresExceeded", (
            f"{status.failures} attempts failed (limits.maxFailures {limits.max_failures}); "
            f"the last: {last_failure or status.message or 'unknown'}"
        )
    if status.preemptions > limits.max_preemptions:
        text = f"preempted {status.preemptions} times (limits.maxPreemptions {limits.max_preemptions})"
        return "PreemptionsExceeded", text
    if status.usage is None:
        return None
    running, worker_seconds = used(status.usage, now)
    if limits.max_duration is not None and running >= seconds(limits.max_duration):
        return "DurationExceeded", f"still running after limits.maxDuration {limits.max_duration}"
    if limits.max_cost is None or price is None or worker_seconds * price / 3600 < Decimal(limits.max_cost):
        return None
    found = cost(status.usage, price, currency, now)
    return "CostExceeded", (
        f"cost {found.total} {currency} (limits.maxCost {limits.max_cost}): "
        f"{worker_seconds / 3600:.2f} hours of workers at {found.per_worker_hour} {currency} an hour"
    )


def seconds_left(limits: RunLimits, usage: Usage, price: Decimal | None, now: datetime) -> float | None:
    """How long the run may go on as it is until its time or its money is used up; None: for ever."""
    running, worker_seconds = used(usage, now)
    left: list[float] = []
    if limits.max_duration is not None and usage.running:
        left.append(seconds(limits.max_duration) - running)
    if limits.max_cost is not None and price and usage.workers:
        affordable = Decimal(limits.max_cost) * 3600 / price
        left.append((float(affordable) - worker_seconds) / usage.workers)
    return min(left, default=None)


def price_unknown(spec: TrainingRunSpec, price: Decimal | None) -> str | None:
    """Why a limit on the cost cannot be kept, or None if it can or there is none."""
    if spec.limits.max_cost is None or price is not None:
        return None
    column = "spot" if spec.hardware.spot else "onDemand"
    return (
        f"limits.maxCost cannot be kept without a price: set prices.{column}.{spec.hardware.accelerator.value} in the "
        "Helm chart's values, or remove limits.maxCost"
    )
