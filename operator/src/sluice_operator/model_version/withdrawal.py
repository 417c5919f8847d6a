"""Taking a published version back (`publish.yanked`), and publishing it anew when that is taken back.

Order is everything: a publisher that ends after the withdrawal would undo it. So publishers go first, their pods too,
and only then a Job withdraws. It runs whether or not a release is known: a publisher that was stopped may have signed.
"""

from datetime import datetime

from sluice_contracts.base import timestamp
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus, PublishSpec
from sluice_contracts.names import ConditionType

from sluice_operator.children.publish_job import yank_job, yank_job_name
from sluice_operator.conditions import ConditionSet
from sluice_operator.kube.resources import JOB
from sluice_operator.model_version.observe import Observed
from sluice_operator.model_version.publishing import Publishing, absorb
from sluice_operator.plan import Apply, Delete, Event, EventType, Meta, bounded
from sluice_operator.settings import Settings

SOON_SECONDS = 2.0


def is_being_undone(wanted: PublishSpec, observed: Observed) -> bool:
    """Whether a withdrawal that is no longer wanted has left something behind."""
    release = observed.status.release
    return not wanted.yanked and (observed.yank is not None or (release is not None and release.yanked_at is not None))


def withdraw(
    meta: Meta,
    spec: ModelVersionSpec,
    wanted: PublishSpec,
    observed: Observed,
    status: ModelVersionStatus,
    conditions: ConditionSet,
    settings: Settings,
    now: datetime,
) -> Publishing:
    """Stop publishers, then run the Job that withdraws, and say how far that is."""
    found = Publishing()
    absorb(observed.job, wanted, status, found, now)
    conditions.ready("Verified", "its files are what its manifest says")
    channel = status.release.channel if status.release is not None and status.release.channel else wanted.channel
    name, job = yank_job_name(meta.name), observed.yank
    if job is not None and job.succeeded:
        if status.release is not None and status.release.yanked_at is None:
            status.release.yanked_at, status.release.percent = timestamp(now), 0
        when = f" at {status.release.yanked_at}" if status.release is not None else ""
        text = f"withdrawn from channel {channel}{when}: no further device updates to it"
        conditions.set(ConditionType.PUBLISHED, False, "Yanked", text)
        return found
    if job is not None and job.failed:
        why = (job.message or "its container left no message").strip()
        text = bounded(f"Job {name} failed: {why}; mend the cause, then delete the Job to try again", 2000)
        conditions.set(ConditionType.PUBLISHED, False, "YankFailed", text)
        conditions.stalled("YankFailed", text)
        return found
    if job is None and (observed.publish_jobs or observed.publishers):
        found.delete += [Delete(JOB, meta.namespace, other) for other in sorted(observed.publish_jobs)]
        found.requeue_after = SOON_SECONDS
        text = "its publishers are stopped first"
    elif job is None:
        found.apply.append(Apply(JOB, yank_job(meta, spec, status.lineage, channel, settings)))
        text = f"Job {name} withdraws it from channel {channel}"
        found.events.append(Event("Yanking", text, EventType.WARNING))
    else:
        text = f"Job {name} withdraws it from channel {channel}"
    conditions.set(ConditionType.PUBLISHED, False, "Yanking", text)
    conditions.set(ConditionType.RECONCILING, True, "Yanking", text)
    return found


def undo(
    meta: Meta, observed: Observed, status: ModelVersionStatus, conditions: ConditionSet, now: datetime
) -> Publishing | None:
    """Clear what a withdrawal left, so that stages open from the first again. None: nothing is left.

    A withdrawal under way ends first. Whether it failed or not, what devices see is then unknown: publishing anew is
    right in both cases."""
    if observed.yank is None:
        status.release = None
        return None
    found = Publishing(requeue_after=SOON_SECONDS)
    text = "the withdrawal under way ends first; then stages open from the first again"
    if observed.yank.succeeded or observed.yank.failed:
        if status.release is not None and status.release.yanked_at is None:
            status.release.yanked_at, status.release.percent = timestamp(now), 0
        found.delete.append(Delete(JOB, meta.namespace, yank_job_name(meta.name)))
        text = "the withdrawal is undone; stages open from the first again"
    conditions.ready("Verified", "its files are what its manifest says")
    conditions.set(ConditionType.PUBLISHED, False, "Publishing", text)
    conditions.set(ConditionType.RECONCILING, True, "Publishing", text)
    return found
