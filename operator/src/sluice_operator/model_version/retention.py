"""Letting a version's files go, in steps of which each is written down before the next begins. Pure.

    kept -> due -> retired (nobody may begin to use it) -> a pause -> deleting (a Job) -> deleted

A look that began before the version was retired may still see it verified, and make a pool try it. So the files stay
for longer than any look can last, and then everything that could use them is asked once more. What is found in use
comes back, whole. Only weights and checkpoints go: manifest, reports and card stay, so the lineage keeps its evidence.
"""

from datetime import datetime, timedelta

from sluice_contracts.base import parse_timestamp, seconds, timestamp
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus, RetentionSpec, RetentionStatus
from sluice_contracts.names import ConditionType

from sluice_operator.children.publish_job import retire_job, retire_job_name
from sluice_operator.conditions import ConditionSet
from sluice_operator.kube.resources import JOB
from sluice_operator.model_version.observe import Observed
from sluice_operator.model_version.publishing import LOOK_AGAIN_SECONDS, Publishing
from sluice_operator.plan import Apply, Event, Meta, bounded
from sluice_operator.settings import Settings

PAUSE_SECONDS = 300.0
"""Between retiring and deleting: longer than the deadline of a look."""
SOON_SECONDS = 1.0


def keep_or_retire(
    wanted: RetentionSpec,
    spec: ModelVersionSpec,
    observed: Observed,
    status: ModelVersionStatus,
    conditions: ConditionSet,
    now: datetime,
) -> float | None:
    """Say in `conditions` why a verified version's files are kept, or that they are not any more. Returns the seconds
    until that is to be looked at again, if time alone changes it."""
    uses = observed.uses
    if uses is None or uses.by:
        status.retention = None
        text = f"in use by {', '.join(uses.by)}" if uses is not None else "its uses are not known yet"
        conditions.set(ConditionType.RETAINED, True, "InUse", text)
        return None
    since = status.retention.unused_since if status.retention is not None else None
    status.retention = RetentionStatus(unused_since=since or timestamp(now))
    assert status.retention.unused_since is not None, "it was just set"
    if wanted.keep_last is not None and uses.newer < wanted.keep_last:
        text = f"{uses.newer} versions are newer, and retention.keepLast is {wanted.keep_last}"
        conditions.set(ConditionType.RETAINED, True, "WithinPolicy", text)
        return None
    if wanted.ttl is not None:
        until = parse_timestamp(status.retention.unused_since) + timedelta(seconds=seconds(wanted.ttl))
        if now < until:
            text = f"unused since {status.retention.unused_since}, and kept until {timestamp(until)}"
            conditions.set(ConditionType.RETAINED, True, "WithinPolicy", text)
            return (until - now).total_seconds()
    what = _what(spec, status)
    if wanted.dry_run:
        text = f"retention.dryRun is true; without it these would be deleted: {what}"
        conditions.set(ConditionType.RETAINED, True, "WouldDelete", text)
        return None
    status.retention.retired_at = timestamp(now)
    _retiring(status, conditions, f"{what}; nobody may begin to use it")
    return PAUSE_SECONDS


def go_on(
    meta: Meta,
    spec: ModelVersionSpec,
    observed: Observed,
    status: ModelVersionStatus,
    conditions: ConditionSet,
    settings: Settings,
    now: datetime,
) -> Publishing:
    """The next step of a version that is retired."""
    assert status.retention is not None, "it is retired"
    assert status.retention.retired_at is not None, "it is retired"
    what = _what(spec, status)
    if not status.retention.deleting:
        if spec.retention is None or spec.retention.dry_run or observed.uses is None or observed.uses.by:
            return _come_back(observed, status, conditions)
        left = parse_timestamp(status.retention.retired_at) + timedelta(seconds=PAUSE_SECONDS) - now
        # After a clock was set back the pause is longer, which harms nobody.
        if left > timedelta(0):
            _retiring(status, conditions, f"{what}; nobody may begin to use it")
            return Publishing(requeue_after=left.total_seconds())
        if observed.uses.shared_with:
            others = ", ".join(observed.uses.shared_with)
            _retiring(status, conditions, f"{what}; they wait for ModelVersion {others}, which has the same files")
            return Publishing(requeue_after=LOOK_AGAIN_SECONDS)
        status.retention.deleting = True
        _deleting(conditions, what)
        return Publishing(requeue_after=SOON_SECONDS)  # the Job begins when this is written down
    job = observed.retire
    if status.retention.deleted_at is not None or (job is not None and job.succeeded):
        status.retention.deleted_at = status.retention.deleted_at or timestamp(now)
        text = f"deleted by its retention policy at {status.retention.deleted_at}: {what}; its reports are kept"
        _out_of_use(conditions, "FilesDeleted", text)
        return Publishing()
    _deleting(conditions, what)
    if job is None:
        return Publishing(apply=[Apply(JOB, retire_job(meta, spec, status.lineage, settings))])
    if job.failed:
        why = (job.message or "its container left no message").strip()
        name = retire_job_name(meta.name)
        text = bounded(f"Job {name} failed: {why}; mend the cause, then delete the Job to try again", 2000)
        conditions.set(ConditionType.RETAINED, False, "RetireFailed", text)
        conditions.stalled("RetireFailed", text)
    return Publishing()


def _come_back(observed: Observed, status: ModelVersionStatus, conditions: ConditionSet) -> Publishing:
    """Nothing was deleted yet: it is verified anew, and then of use again."""
    status.retention = None
    who = ", ".join(observed.uses.by) if observed.uses is not None and observed.uses.by else "spec.retention"
    text = f"its files stay: {who} speaks against deleting them; they are verified anew"
    conditions.set(ConditionType.RETAINED, True, "InUse" if who != "spec.retention" else "WithinPolicy", text)
    conditions.set(ConditionType.VERIFIED, None, "Verifying", text)
    conditions.reconciling("Verifying", text)
    _carry(conditions)
    return Publishing(requeue_after=SOON_SECONDS, events=[Event("FilesKept", text)])


def _retiring(status: ModelVersionStatus, conditions: ConditionSet, what: str) -> None:
    assert status.retention is not None, "it is retired"
    assert status.retention.retired_at is not None, "it is retired"
    at = timestamp(parse_timestamp(status.retention.retired_at) + timedelta(seconds=PAUSE_SECONDS))
    text = f"unused, and to be deleted after {at}: {what}; a pool that names it, or no spec.retention, keeps them"
    _out_of_use(conditions, "Retiring", text)


def _deleting(conditions: ConditionSet, what: str) -> None:
    _out_of_use(conditions, "Deleting", f"a Job deletes {what}")
    conditions.set(ConditionType.RECONCILING, True, "Deleting", f"a Job deletes {what}")


def _out_of_use(conditions: ConditionSet, reason: str, text: str) -> None:
    conditions.waiting(reason, text)
    conditions.set(ConditionType.VERIFIED, False, "Retired", text)
    conditions.set(ConditionType.RETAINED, False, reason, text)
    _carry(conditions)


def _carry(conditions: ConditionSet) -> None:
    """What was, was: a promotion and a publication are history."""
    for type_ in (ConditionType.PROMOTED, ConditionType.PUBLISHED):
        conditions.keep(type_)


def _what(spec: ModelVersionSpec, status: ModelVersionStatus) -> str:
    """What goes, in words: the listed files, and the checkpoints beside them."""
    folder = spec.manifest.uri.rpartition("/")[0]
    return (
        f"{len(status.artifacts)} files of {sum(a.size for a in status.artifacts)} bytes (reports apart) and the "
        f"checkpoints in {folder}"
    )
