"""The decision for a ModelVersion: a pure function of its spec, what was observed, and the time.

Three facts in a row: Verified (its files are what its manifest says), Promoted (a pool let it through its canary),
Published (devices can have it). Ready says that it may be used; publishing has a condition of its own.
"""

from dataclasses import replace
from datetime import datetime

from sluice_contracts.manifest import Manifest
from sluice_contracts.model_version import ArtifactStatus, BuildsOn, ModelVersionSpec, ModelVersionStatus
from sluice_contracts.names import ConditionType

from sluice_operator.artifacts import Problem
from sluice_operator.conditions import ConditionSet, find, is_true
from sluice_operator.model_version import retention
from sluice_operator.model_version.deletion import hold_or_release, plan_deletion
from sluice_operator.model_version.observe import Observed
from sluice_operator.model_version.publishing import LOOK_AGAIN_SECONDS, Publishing, publish
from sluice_operator.model_version.withdrawal import is_being_undone, undo, withdraw
from sluice_operator.plan import Event, EventType, Meta, Plan, bounded
from sluice_operator.settings import Settings
from sluice_operator.verification import Checking

SHOWN_ARTIFACTS = 64
VERIFYING_SECONDS = 10.0
SILENT = {
    *("NotWanted", "NotVerified", "Publishing", "Verifying", "Yanking"),
    *("Retired", "InUse", "WithinPolicy", "Deleting"),
}
"""Reasons that are no event: nothing happened yet, or it is told with more words elsewhere."""
BAD = {"PublishFailed", "PromotionRequired", "YankFailed", "HealthHalted", "Retiring", "RetireFailed"}


def plan(meta: Meta, spec: ModelVersionSpec, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """What to do about this version now."""
    status = observed.status.model_copy(deep=True)
    status.observed_generation = meta.generation
    conditions = ConditionSet(observed.status.conditions, meta.generation, now)
    if meta.deleting:
        return plan_deletion(meta, observed.status, status, conditions, observed.pools)
    made = _decide(meta, spec, observed, status, conditions, settings, now)
    return replace(made, apply=[*hold_or_release(meta, observed.pools), *made.apply])


def _decide(
    meta: Meta,
    spec: ModelVersionSpec,
    observed: Observed,
    status: ModelVersionStatus,
    conditions: ConditionSet,
    settings: Settings,
    now: datetime,
) -> Plan:
    if status.retention is not None and status.retention.retired_at is not None:
        step = retention.go_on(meta, spec, observed, status, conditions, settings, now)
        return _finish(observed.status, status, conditions, step)
    if isinstance(observed.manifest, Checking):
        return _verifying(observed.status, status, conditions, observed.manifest)
    if isinstance(observed.manifest, Problem) and not is_true(observed.status.conditions, ConditionType.VERIFIED):
        return _unverified(observed.status, status, conditions, observed.manifest)

    if isinstance(observed.manifest, Manifest):
        _describe(status, observed.manifest)
    size = sum(a.size for a in status.artifacts)
    conditions.set(
        ConditionType.VERIFIED, True, "ArtifactsPresent", f"{len(status.artifacts)} files, {size} bytes, lineage agrees"
    )
    status.promotion = observed.promotion
    if status.promotion is not None:
        by = f"by InferencePool {status.promotion.pool} at {status.promotion.at}"
        on = f": {status.promotion.evidence}" if status.promotion.evidence else ""
        conditions.set(ConditionType.PROMOTED, True, "PromotedByPool", by + on)
    else:
        conditions.set(ConditionType.PROMOTED, False, "NotPromoted", "no InferencePool has promoted it yet")
    publishing = _publishing(meta, spec, observed, status, conditions, settings, now)
    if spec.retention is None:
        status.retention = None
        return _finish(observed.status, status, conditions, publishing)
    again = retention.keep_or_retire(spec.retention, spec, observed, status, conditions, now)
    if again is not None:
        publishing.requeue_after = min(again, publishing.requeue_after or again)
    return _finish(observed.status, status, conditions, publishing)


def _publishing(
    meta: Meta,
    spec: ModelVersionSpec,
    observed: Observed,
    status: ModelVersionStatus,
    conditions: ConditionSet,
    settings: Settings,
    now: datetime,
) -> Publishing:
    wanted = spec.publish
    if wanted is None:
        conditions.ready("Verified", "its files are what its manifest says")
        conditions.set(ConditionType.PUBLISHED, False, "NotWanted", "spec.publish is not set")
        return Publishing()
    publishing = undo(meta, observed, status, conditions, now) if is_being_undone(wanted, observed) else None
    if publishing is None:
        do = withdraw if wanted.yanked else publish
        publishing = do(meta, spec, wanted, observed, status, conditions, settings, now)
    return publishing


def _describe(status: ModelVersionStatus, manifest: Manifest) -> None:
    status.lineage = manifest.lineage
    lora = manifest.recipe.lora
    status.builds_on = BuildsOn(
        digest=manifest.base_digest,
        adapter=not manifest.served(),
        rank=lora.rank if lora is not None and manifest.adapter() else None,
    )
    device_first = sorted(manifest.artifacts, key=lambda a: a.role != "device")
    status.artifacts = [
        ArtifactStatus(path=a.path, size=a.size, quantization=a.quantization.value if a.quantization else None)
        for a in device_first[:SHOWN_ARTIFACTS]
    ]


def _verifying(
    before: ModelVersionStatus, status: ModelVersionStatus, conditions: ConditionSet, checking: Checking
) -> Plan:
    text = f"its files are compared with their digests: {checking}"
    conditions.set(ConditionType.VERIFIED, None, "Verifying", text)
    conditions.reconciling("Verifying", text)
    for type_ in (ConditionType.PROMOTED, ConditionType.PUBLISHED):
        conditions.set(type_, False, "NotVerified", "its files must be verified first")
    conditions.keep(ConditionType.RETAINED)
    return _finish(before, status, conditions, Publishing(requeue_after=VERIFYING_SECONDS))


def _unverified(
    before: ModelVersionStatus, status: ModelVersionStatus, conditions: ConditionSet, problem: Problem
) -> Plan:
    text = problem.about("spec.manifest").message
    conditions.set(ConditionType.VERIFIED, False if problem.lasting else None, problem.reason, text)
    if problem.lasting:
        conditions.stalled(problem.reason, text)
    else:
        conditions.reconciling(problem.reason, text)
    for type_ in (ConditionType.PROMOTED, ConditionType.PUBLISHED):
        conditions.set(type_, False, "NotVerified", "its files must be verified first")
    conditions.keep(ConditionType.RETAINED)
    return _finish(before, status, conditions, Publishing(requeue_after=LOOK_AGAIN_SECONDS))


def _finish(
    before: ModelVersionStatus, status: ModelVersionStatus, conditions: ConditionSet, publishing: Publishing
) -> Plan:
    status.conditions = conditions.list()
    events = list(publishing.events)
    for type_ in (ConditionType.VERIFIED, ConditionType.PROMOTED, ConditionType.PUBLISHED, ConditionType.RETAINED):
        old, new = find(before.conditions, type_), find(status.conditions, type_)
        if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
            continue
        if type_ is ConditionType.PROMOTED and new.status != "True":
            continue
        if new.reason in SILENT:
            continue
        bad = new.reason in BAD or (type_ is ConditionType.VERIFIED and new.status != "True")
        events.append(Event(new.reason, bounded(new.message, 1000), EventType.WARNING if bad else EventType.NORMAL))
    return Plan(
        apply=publishing.apply,
        delete=publishing.delete,
        status=status.wire(),
        events=events,
        requeue_after=publishing.requeue_after,
    )
