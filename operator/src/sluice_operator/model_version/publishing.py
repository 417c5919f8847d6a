"""Opening a version to devices, stage by stage, and saying why not where it may not be opened.

A stage is a Job that signs. What has come of it is in the Job; what devices can see is in `status.release`.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sluice_contracts.base import parse_timestamp, seconds, timestamp
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus, PublishSpec, ReleaseStatus
from sluice_contracts.names import ConditionType

from sluice_operator.artifacts import Problem
from sluice_operator.children.publish_job import publish_job, publish_job_name, tuf_version
from sluice_operator.conditions import ConditionSet
from sluice_operator.kube.resources import JOB
from sluice_operator.model_version import health
from sluice_operator.model_version.observe import Observed, PublishJobState
from sluice_operator.plan import Apply, Delete, Event, Meta, bounded
from sluice_operator.settings import Settings

LOOK_AGAIN_SECONDS = 30.0
HEALTH_SECONDS = 60.0
"""How often the health report is read while a stage is open: a bad one is told before the next stage is due."""


@dataclass
class Publishing:
    """What publishing adds to the plan."""

    apply: list[Apply] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    requeue_after: float | None = None


def publish(
    meta: Meta,
    spec: ModelVersionSpec,
    wanted: PublishSpec,
    observed: Observed,
    status: ModelVersionStatus,
    conditions: ConditionSet,
    settings: Settings,
    now: datetime,
) -> Publishing:
    """Open the next stage when it may be opened, and say why not when it may not."""
    found = Publishing()
    absorb(observed.job, wanted, status, found, now)
    stage = status.release.published_stage if status.release is not None else 0
    conditions.ready("Verified", "its files are what its manifest says")
    other = status.release.channel if status.release is not None else None
    if other is not None and other != wanted.channel:
        text = f"it was published in channel {other}; set channel back, or yank it there before it goes elsewhere"
        conditions.set(ConditionType.PUBLISHED, False, "OtherChannel", text)
        return found
    held = _held_back(wanted, observed, status)
    if stage >= len(wanted.stages):
        assert status.release is not None, "a stage was published"
        text = (
            f"{status.release.percent} % of devices, channel {wanted.channel}, TUF version {status.release.tuf_version}"
        )
        conditions.set(ConditionType.PUBLISHED, True, "AllStagesOpen", text)
        return found
    wait = _soak_left(wanted, status, stage, now)
    if held is None:
        held = health.judge(wanted, observed.health, status, meta.generation)
        found.requeue_after = HEALTH_SECONDS if held is not None else None
        if held is not None and held[0] == health.UNKNOWN and wait > 0:
            held = None  # nothing waits for it yet
    if held is not None:
        conditions.set(ConditionType.PUBLISHED, False, *held)
        if isinstance(observed.manifest, Problem):
            found.requeue_after = LOOK_AGAIN_SECONDS
        return found
    job = observed.job if observed.job is not None and observed.job.stage == stage else None
    if job is not None and (job.failed or job.succeeded):
        name = publish_job_name(meta.name, stage)
        why = (job.message or "its container left no message").strip()
        text = bounded(f"Job {name} failed: {why}; mend the cause, then delete the Job to try again", 2000)
        conditions.set(ConditionType.PUBLISHED, False, "PublishFailed", text)
        conditions.stalled("PublishFailed", text)
        return found
    if job is not None:
        text = (
            f"Job {publish_job_name(meta.name, stage)} is signing stage {stage + 1} of {len(wanted.stages)}, "
            f"with the keys of Secret {settings.signing_secret}"
        )
        conditions.set(ConditionType.PUBLISHED, False, "Publishing", text)
        conditions.set(ConditionType.RECONCILING, True, "Publishing", text)
        return found
    if wait > 0:
        assert status.release is not None, "only an open stage soaks"
        next_ = timestamp(now + timedelta(seconds=wait))
        text = f"{status.release.percent} % of devices; the next stage opens at {next_}"
        conditions.set(ConditionType.PUBLISHED, True, "StageOpen", text)
        found.requeue_after = wait if wanted.health is None else min(wait, HEALTH_SECONDS)
        return found
    lineage = status.lineage
    if lineage is None:  # it was verified by an operator that did not note it; the manifest comes with the next look
        found.requeue_after = LOOK_AGAIN_SECONDS
        conditions.set(ConditionType.PUBLISHED, None, "ReadingManifest", "its manifest cannot be read now")
        return found
    percent = wanted.stages[stage].percent
    found.apply.append(Apply(JOB, publish_job(meta, spec, lineage, stage, wanted.stages[stage], settings)))
    text = f"stage {stage + 1} of {len(wanted.stages)}: {percent} % of devices, channel {wanted.channel}"
    found.events.append(Event("Publishing", text))
    conditions.set(ConditionType.PUBLISHED, False, "Publishing", text)
    conditions.set(ConditionType.RECONCILING, True, "Publishing", text)
    return found


def absorb(
    job: PublishJobState | None, wanted: PublishSpec, status: ModelVersionStatus, found: Publishing, now: datetime
) -> None:
    """Take a finished stage into the status."""
    if job is None or not job.succeeded or job.stage >= len(wanted.stages):
        return
    version = tuf_version(job.message or "")
    if version is None:
        return
    percent = wanted.stages[job.stage].percent
    status.release = ReleaseStatus(
        tuf_version=version,
        published_stage=job.stage + 1,
        percent=percent,
        published_at=timestamp(now),
        channel=job.channel or wanted.channel,
    )
    found.events.append(Event("StagePublished", f"{percent} % of devices, TUF version {version}"))


def _held_back(wanted: PublishSpec, observed: Observed, status: ModelVersionStatus) -> tuple[str, str] | None:
    """Why nothing may be published now: a reason and a message, or None."""
    promotion = status.promotion
    if wanted.after is not None and (promotion is None or promotion.pool != wanted.after.promoted_in):
        return "WaitingForPromotion", f"InferencePool {wanted.after.promoted_in} has not promoted it yet"
    if observed.gated is False and not observed.proven:
        text = (
            "no gate has let this version through (waived, failed or none), so only a canary can; being the first "
            "version of an empty pool is none: name an InferencePool in spec.publish.after.promotedIn"
        )
        return "PromotionRequired", text
    if isinstance(observed.manifest, Problem):
        return observed.manifest.reason, observed.manifest.about("spec.manifest").message
    if wanted.paused:
        stage = status.release.published_stage if status.release is not None else 0
        return "Paused", f"spec.publish.paused is true; {stage} of {len(wanted.stages)} stages are open"
    return None


def _soak_left(wanted: PublishSpec, status: ModelVersionStatus, stage: int, now: datetime) -> float:
    """Seconds the open stage must still run before the next."""
    if stage == 0 or status.release is None or status.release.published_at is None:
        return 0.0
    soak = timedelta(seconds=seconds(wanted.stages[stage - 1].soak))
    return (parse_timestamp(status.release.published_at) + soak - now).total_seconds()
