"""What status shows of a run while it runs: stage, steps, time left, cost. Written every ten seconds at the most, or
when the job enters another stage: each write wakes everyone who watches the run."""

from datetime import datetime, timedelta
from decimal import Decimal

from sluice_contracts.base import parse_timestamp
from sluice_contracts.training_run import Cost, Progress, Stage, TrainingRunStatus

from sluice_operator.training_run import usage

SHOWN_EVERY = timedelta(seconds=10)


def progress(before: TrainingRunStatus, found: Progress | None, now: datetime) -> Progress | None:
    """The progress to show, given what the job says and what is shown now."""
    shown = before.progress
    if found is None or found == shown or _is_older(before, found):
        return shown
    if shown is None or shown.stage is not found.stage or shown.updated_at is None or found.updated_at is None:
        return found
    if before.cost is not None and _is_young(before.cost.as_of, now):
        return shown
    moved = parse_timestamp(found.updated_at) - parse_timestamp(shown.updated_at)
    return shown if timedelta(0) <= moved < SHOWN_EVERY else found


def _is_older(before: TrainingRunStatus, found: Progress) -> bool:
    """Left behind in the folder by another run with the same lineage, before this job began."""
    began = before.started_at
    return found.updated_at is not None and began is not None and found.updated_at < began


def at_stage(shown: Progress | None, stage: Stage) -> Progress:
    """A stage that the job itself cannot report, with the steps that are already known."""
    if shown is None:
        return Progress(stage=stage)
    return shown if shown.stage is stage else shown.model_copy(update={"stage": stage, "eta_seconds": None})


def cost(
    before: TrainingRunStatus, after: TrainingRunStatus, price: Decimal | None, currency: str, now: datetime
) -> Cost | None:
    """The cost to show: brought up to date with anything else that changes, and otherwise now and then."""
    if after.usage is None or price is None:
        return before.cost
    found = usage.cost(after.usage, price, currency, now)
    shown = before.cost
    if shown is None or after.finished_at is not None:
        return found
    if found.model_copy(update={"as_of": shown.as_of}) == shown:
        return shown
    if after.usage != before.usage or after.progress != before.progress:
        return found
    quiet = before.progress is None or not _is_young(before.progress.updated_at, now)
    return found if quiet and not _is_young(shown.as_of, now) else shown


def _is_young(moment: str | None, now: datetime) -> bool:
    return moment is not None and timedelta(0) <= now - parse_timestamp(moment) < SHOWN_EVERY


def eta(shown: Progress | None) -> str | None:
    """The time a run still expects, in its two largest units: `45s`, `4m30s`, `2h5m`, `3d4h`."""
    if shown is None or shown.eta_seconds is None:
        return None
    left = shown.eta_seconds
    for unit, name, smaller, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if left >= unit:
            rest = left % unit // smaller
            return f"{left // unit}{name}" + (f"{rest}{small}" if rest else "")
    return f"{left}s"
