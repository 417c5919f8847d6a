"""What is known of a version: whether its files are what its manifest says, who promoted it, how far publishing is."""

from dataclasses import dataclass
from typing import Any

from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.health import HealthReport
from sluice_contracts.inference_pool import RolloutOutcome
from sluice_contracts.manifest import Manifest
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus, PromotionStatus
from sluice_contracts.names import ANNOTATION_LINEAGE, ConditionType

from sluice_operator.artifacts import Artifacts, Problem
from sluice_operator.children.publish_job import (
    channel_of,
    publish_job_name,
    publisher_labels,
    retire_job_name,
    termination_message,
    yank_job_name,
)
from sluice_operator.conditions import is_true
from sluice_operator.engine.cache import Cache
from sluice_operator.kube.client import KubeClient
from sluice_operator.kube.resources import INFERENCE_POOL, JOB, MODEL_VERSION, POD
from sluice_operator.model_version.uses import Uses, named_in, uses
from sluice_operator.plan import Meta, Object
from sluice_operator.verification import Checking, Verification


@dataclass(frozen=True)
class PublishJobState:
    """The Job of one stage. `message` is its container's last word, read when it is over."""

    stage: int
    succeeded: bool = False
    failed: bool = False
    message: str | None = None
    channel: str | None = None
    """Where it publishes: the spec may have changed since it began."""


@dataclass(frozen=True)
class Observed:
    """All that a plan for a version is made from."""

    status: ModelVersionStatus
    manifest: Manifest | Problem | Checking | None = None
    """None where the version was verified before and nothing needs the manifest now."""
    gated: bool | None = None
    """Whether a gate without a waiver let the version through; None where it was not asked."""
    promotion: PromotionStatus | None = None
    """By a pool, now or earlier."""
    proven: bool = False
    """Whether a pool has promoted it on evidence: not as the first version of an empty pool."""
    job: PublishJobState | None = None
    """The Job of the stage that is next."""
    yank: PublishJobState | None = None
    """The Job that withdraws it."""
    publish_jobs: frozenset[str] = frozenset()
    """All its publishing Jobs, by name."""
    publishers: bool = False
    """Whether a pod of it that signs still runs; looked for only where it matters."""
    pools: frozenset[str] = frozenset()
    """InferencePools whose status names it."""
    health: HealthReport | Problem | None = None
    """Read while a stage is open and another is to come."""
    uses: Uses | None = None
    """What speaks for keeping its files; asked where it has a retention policy."""
    retire: PublishJobState | None = None
    """The Job that deletes its files."""


async def observe(
    meta: Meta,
    spec: ModelVersionSpec,
    status: ModelVersionStatus,
    cache: Cache,
    artifacts: Artifacts,
    verification: Verification,
    kube: KubeClient,
) -> Observed:
    """Look at the version's files, at the pools of its namespace, and at its publisher."""
    pools = users(meta, cache)
    if meta.deleting:
        return Observed(status=status, pools=pools)
    found = uses(meta, spec, status, cache) if spec.retention is not None else None
    if status.retention is not None and status.retention.retired_at is not None:
        return Observed(status=status, pools=pools, uses=found, retire=await _retire(meta, status, cache, kube))
    verified = is_true(status.conditions, ConditionType.VERIFIED)
    manifest: Manifest | Problem | Checking | None = None
    gated = None
    if not verified or spec.publish is not None or status.builds_on is None:
        manifest = await artifacts.parsed(Manifest, spec.manifest.uri, spec.manifest.digest)
    if isinstance(manifest, Manifest) and not verified:
        manifest = await _verify(meta, spec, manifest, artifacts, verification) or manifest
    if isinstance(manifest, Manifest) and spec.publish is not None:
        gated = await _gated(manifest, artifacts)
    return Observed(
        status=status,
        manifest=manifest,
        gated=gated,
        promotion=promotion(meta, spec, cache) or status.promotion,
        proven=proven(meta, spec, cache),
        job=await _job(meta, spec, status, cache, kube),
        yank=await _yank(meta, spec, cache, kube),
        publish_jobs=_publish_jobs(meta, cache),
        publishers=verified and await _publishers(meta, spec, status, kube),
        pools=pools,
        health=await _health(spec, status, artifacts),
        uses=found,
    )


async def _health(
    spec: ModelVersionSpec, status: ModelVersionStatus, artifacts: Artifacts
) -> HealthReport | Problem | None:
    wanted, release = spec.publish, status.release
    if wanted is None or wanted.health is None or wanted.yanked or release is None:
        return None
    if not 0 < release.published_stage < len(wanted.stages):
        return None
    report = await artifacts.parsed(HealthReport, wanted.health.report)
    if isinstance(report, HealthReport) and report.model != spec.model:
        return Problem("HealthUnknown", f"{wanted.health.report} is of model {report.model}, not of {spec.model}")
    return report


def users(meta: Meta, cache: Cache) -> frozenset[str]:
    """The pools whose status names the version: as stable, as candidate, as the one to go back to, or as the base of
    one of these."""
    pools = {pool["metadata"]["name"]: pool.get("status") or {} for pool in cache.list(INFERENCE_POOL, meta.namespace)}
    return frozenset(name for name, status in pools.items() if meta.name in named_in(status))


async def _verify(
    meta: Meta, spec: ModelVersionSpec, manifest: Manifest, artifacts: Artifacts, verification: Verification
) -> Problem | Checking | None:
    """That the manifest is this model's, that every artefact and report lies where it says and is what it was, and
    that all of them are of one lineage."""
    if manifest.model != spec.model:
        return Problem("ManifestMismatch", f"spec.model is {spec.model}, the manifest is of {manifest.model}")
    told = meta.annotations.get(ANNOTATION_LINEAGE, manifest.lineage)
    if told != manifest.lineage:
        return Problem(
            "LineageMismatch", f"the manifest is of lineage {manifest.lineage[:16]}, its TrainingRun of {told[:16]}"
        )
    folder = spec.manifest.uri.rpartition("/")[0]
    if manifest.run_uri.rstrip("/") != folder:
        return Problem(
            "ManifestMismatch", f"the manifest lies in {folder}, but says its files are in {manifest.run_uri}"
        )
    missing = await artifacts.check_sizes(folder, manifest.artifacts)
    if missing is not None:
        return Problem(
            "ArtifactMissing" if missing.reason == "NotFound" else missing.reason, missing.message, missing.lasting
        )
    report = await artifacts.parsed(EvaluationReport, manifest.evaluation.uri, manifest.evaluation.digest)
    if isinstance(report, Problem):
        return Problem(f"Report{report.reason}", report.message, report.lasting)
    if report.lineage != manifest.lineage:
        return Problem("ReportMismatch", f"{manifest.evaluation.uri} is of lineage {report.lineage[:16]}")
    parity = await artifacts.parsed(ParityReport, manifest.parity_uri, manifest.parity_digest)
    if isinstance(parity, Problem):
        return Problem(f"Report{parity.reason}", parity.message, parity.lasting)
    if parity.lineage != manifest.lineage:
        return Problem("ReportMismatch", f"{manifest.parity_uri} is of lineage {parity.lineage[:16]}")
    return await verification.check(spec.manifest.digest, folder, manifest.artifacts)


async def _gated(manifest: Manifest, artifacts: Artifacts) -> bool:
    """A waived gate, a failed one, and none at all are alike: nobody but a canary has judged this version."""
    if manifest.evaluation.waiver is not None or not manifest.evaluation.passed:
        return False
    report = await artifacts.parsed(EvaluationReport, manifest.evaluation.uri, manifest.evaluation.digest)
    return isinstance(report, EvaluationReport) and bool(report.gates)


def promotion(meta: Meta, spec: ModelVersionSpec, cache: Cache) -> PromotionStatus | None:
    """The pool that promoted exactly this manifest, by its own history. Read here and nowhere else. The pool that
    `publish.after` names comes first, then the one that did it first."""
    wanted = spec.publish.after.promoted_in if spec.publish is not None and spec.publish.after is not None else None
    found: list[tuple[bool, str, str, PromotionStatus]] = []
    for pool in cache.list(INFERENCE_POOL, meta.namespace):
        name = pool["metadata"]["name"]
        for record in _promotions(meta, pool, spec.manifest.digest):
            status = PromotionStatus(pool=name, at=record["endedAt"], evidence=record.get("message", ""))
            found.append((name != wanted, record["endedAt"], name, status))
    return min(found, key=lambda entry: entry[:3])[3] if found else None


def proven(meta: Meta, spec: ModelVersionSpec, cache: Cache) -> bool:
    """Whether any promotion of this manifest rests on verdicts."""
    pools = cache.list(INFERENCE_POOL, meta.namespace)
    return any(record.get("verdicts") for pool in pools for record in _promotions(meta, pool, spec.manifest.digest))


def _promotions(meta: Meta, pool: Object, digest: str) -> list[dict[str, Any]]:
    status = pool.get("status") or {}
    served = [status.get(key) for key in ("stable", "previous")]
    digests = {s["modelVersion"]: s["manifestDigest"] for s in served if s}
    return [
        record
        for record in status.get("history") or []
        if record["modelVersion"] == meta.name
        and record["outcome"] == RolloutOutcome.PROMOTED
        and digests.get(meta.name, digest) == digest
    ]


async def _job(
    meta: Meta, spec: ModelVersionSpec, status: ModelVersionStatus, cache: Cache, kube: KubeClient
) -> PublishJobState | None:
    if spec.publish is None:
        return None
    stage = status.release.published_stage if status.release is not None else 0
    return await _read_job(cache.get(JOB, meta.namespace, publish_job_name(meta.name, stage)), stage, meta, kube)


async def _yank(meta: Meta, spec: ModelVersionSpec, cache: Cache, kube: KubeClient) -> PublishJobState | None:
    if spec.publish is None:
        return None
    return await _read_job(cache.get(JOB, meta.namespace, yank_job_name(meta.name)), 0, meta, kube)


async def _retire(meta: Meta, status: ModelVersionStatus, cache: Cache, kube: KubeClient) -> PublishJobState | None:
    if status.retention is None or not status.retention.deleting or status.retention.deleted_at is not None:
        return None
    return await _read_job(cache.get(JOB, meta.namespace, retire_job_name(meta.name)), 0, meta, kube)


def _publish_jobs(meta: Meta, cache: Cache) -> frozenset[str]:
    jobs = cache.children(MODEL_VERSION, meta.namespace, meta.name, JOB)
    return frozenset(job["metadata"]["name"] for job in jobs) - {yank_job_name(meta.name), retire_job_name(meta.name)}


async def _publishers(meta: Meta, spec: ModelVersionSpec, status: ModelVersionStatus, kube: KubeClient) -> bool:
    """Whether a pod that signs still runs, asked where a withdrawal may begin: a Job that is deleted leaves its pods a
    grace period."""
    withdrawn = status.release is not None and status.release.yanked_at is not None
    if spec.publish is None or not spec.publish.yanked or withdrawn:
        return False
    selector = ",".join(f"{name}={value}" for name, value in publisher_labels(meta.name).items())
    pods = [pod async for pod in kube.list(POD, meta.namespace, labels=selector)]
    return any((pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"} for pod in pods)


async def _read_job(job: Object | None, stage: int, meta: Meta, kube: KubeClient) -> PublishJobState | None:
    if job is None:
        return None
    conditions = {c["type"]: c["status"] for c in (job.get("status") or {}).get("conditions") or []}
    succeeded, failed = conditions.get("Complete") == "True", conditions.get("Failed") == "True"
    message = None
    if succeeded or failed:
        message = await _last_word(kube, meta.namespace, job["metadata"]["name"])
    return PublishJobState(stage, succeeded, failed, message, channel_of(job))


async def _last_word(kube: KubeClient, namespace: str, job: str) -> str | None:
    """The termination message of the Job's newest pod."""
    pods = [pod async for pod in kube.list(POD, namespace, labels=f"batch.kubernetes.io/job-name={job}")]
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)
    for pod in pods:
        message = termination_message(pod)
        if message is not None:
            return message
    return None
