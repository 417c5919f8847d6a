"""What is known of a run right now: its attempts, its inputs, what the job wrote into its folder."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import ValidationError
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.job import JOB_FILE, MANIFEST_FILE, OUTCOME_FILE, PROGRESS_FILE, JobConfig, JobOutcome, JobResult
from sluice_contracts.lineage import SCRATCH, LineageInputs, lineage_id
from sluice_contracts.manifest import Manifest
from sluice_contracts.names import ConditionType
from sluice_contracts.training_run import ManifestReference, Progress, TrainingRunSpec, TrainingRunStatus
from sluice_storage import join

from sluice_operator.artifacts import Artifacts, Problem
from sluice_operator.children.disruption_budget import budget_name
from sluice_operator.children.job_config import config_map_name
from sluice_operator.engine.cache import Cache
from sluice_operator.kube.resources import (
    CONFIG_MAP,
    INFERENCE_POOL,
    MODEL_VERSION,
    POD_DISRUPTION_BUDGET,
    RAY_JOB,
    TRAINING_RUN,
)
from sluice_operator.plan import Meta, Object
from sluice_operator.settings import Settings
from sluice_operator.training_run.ray_job_state import JobPhase, RayJobState, read_ray_job

OWN_DIGITS = 16
"""Hexadecimal digits by which the folders of one lineage differ."""


@dataclass(frozen=True)
class Inputs:
    """What the run is made from, resolved."""

    lineage: str
    git_sha: str
    base_manifest: ManifestReference | None = None
    baseline_manifest: ManifestReference | None = None
    run_uri: str | None = None
    """The folder its job was told; None before that: see `run_uri`."""


@dataclass(frozen=True)
class Observed:
    """All that a plan for a run is made from."""

    status: TrainingRunStatus
    inputs: Inputs | Problem | None = None
    """None once the run has ended: they are not asked for again."""
    ray_jobs: tuple[RayJobState, ...] = ()
    progress: Progress | None = None
    outcome: JobOutcome | Problem | None = None
    """Read when the newest attempt has succeeded."""
    manifest: Manifest | Problem | None = None
    """Read when the outcome is a success."""
    version_manifest: ManifestReference | None = None
    """Manifest of the ModelVersion that already has the run's name."""
    budget: bool = False
    """Whether the run's pods are held back from eviction."""


def run_uri(meta: Meta, spec: TrainingRunSpec, inputs: Inputs, settings: Settings) -> str:
    """The run's folder: its own, below that of its lineage.

    Runs with equal inputs have one lineage, and would otherwise write over each other's reports and manifest, whose
    digests others hold. It is the object's and not its name's, for the same reason: a run that is applied again may be
    judged by other gates, while a version of the first one is served.
    """
    if inputs.run_uri is not None:
        return inputs.run_uri
    own = hashlib.sha256(meta.uid.encode()).hexdigest()[:OWN_DIGITS]
    return join(spec.storage_uri or settings.storage_uri, "runs", inputs.lineage, own)


async def observe(
    meta: Meta, spec: TrainingRunSpec, status: TrainingRunStatus, cache: Cache, artifacts: Artifacts, settings: Settings
) -> Observed:
    """Look at the run's children, its inputs and its folder. Reads from storage only what the run's state calls for."""
    jobs = _ray_jobs(meta, cache.children(TRAINING_RUN, meta.namespace, meta.name, RAY_JOB))
    version = cache.get(MODEL_VERSION, meta.namespace, meta.name)
    held = ManifestReference.model_validate(version["spec"]["manifest"]) if version is not None else None
    budget = cache.get(POD_DISRUPTION_BUDGET, meta.namespace, budget_name(meta.name)) is not None
    if status.finished_at is not None and status.observed_generation == meta.generation:
        return Observed(status=status, ray_jobs=jobs, version_manifest=held, budget=budget)

    inputs = await _inputs(meta, spec, status, cache, artifacts, settings)
    observed = Observed(status=status, inputs=inputs, ray_jobs=jobs, version_manifest=held, budget=budget)
    if isinstance(inputs, Problem) or not jobs:
        return observed

    folder = run_uri(meta, spec, inputs, settings)
    newest = jobs[-1]
    progress, outcome, manifest = None, None, None
    if newest.phase is JobPhase.RUNNING:
        found = await artifacts.parsed(Progress, join(folder, PROGRESS_FILE))
        progress = None if isinstance(found, Problem) else found
    if newest.phase is JobPhase.SUCCEEDED:
        outcome = await artifacts.parsed(JobOutcome, join(folder, OUTCOME_FILE))
    if isinstance(outcome, JobOutcome) and outcome.result is JobResult.SUCCEEDED:
        manifest = await _manifest(outcome, folder, inputs.lineage, spec.model, artifacts)
    return replace(observed, progress=progress, outcome=outcome, manifest=manifest)


def _ray_jobs(meta: Meta, objects: Iterable[Object]) -> tuple[RayJobState, ...]:
    states = (read_ray_job(meta.name, obj) for obj in objects)
    return tuple(sorted((s for s in states if s is not None), key=lambda s: s.attempt))


async def _inputs(
    meta: Meta, spec: TrainingRunSpec, status: TrainingRunStatus, cache: Cache, artifacts: Artifacts, settings: Settings
) -> Inputs | Problem:
    """The lineage and the manifests to build on. What a job was once told stays: a newer operator, or a promotion in
    the meantime, must not turn a running job into another one."""
    told = _job_config(cache.get(CONFIG_MAP, meta.namespace, config_map_name(meta.name)))
    if told is not None and status.lineage in (None, told.lineage):
        return Inputs(told.lineage, told.git_sha, told.base_manifest, told.baseline_manifest, told.run_uri)
    base = _base(spec, meta.namespace, cache)
    if isinstance(base, Problem):
        return base
    digest, base_manifest = base
    baseline = _baseline(spec, meta.namespace, cache)
    if status.lineage is not None:
        return Inputs(status.lineage, settings.git_sha, base_manifest, baseline, status.run_uri)
    dataset = await artifacts.parsed(DatasetManifest, join(spec.dataset.uri, MANIFEST_FILE), spec.dataset.digest)
    if isinstance(dataset, Problem):
        field_ = "spec.dataset.digest" if dataset.reason == "DigestMismatch" else "spec.dataset.uri"
        return Problem(f"Dataset{dataset.reason}", dataset.message, dataset.lasting).about(field_)
    lineage = lineage_id(
        LineageInputs(
            dataset_run_id=dataset.run_id,
            base_digest=digest,
            recipe_digest=spec.recipe.content_digest(),
            git_sha=settings.git_sha,
        )
    )
    return Inputs(lineage, settings.git_sha, base_manifest, baseline)


def _job_config(config_map: Object | None) -> JobConfig | None:
    text = ((config_map or {}).get("data") or {}).get(JOB_FILE)
    if not isinstance(text, str):
        return None
    try:
        return JobConfig.model_validate_json(text)
    except ValidationError:
        return None


def _base(spec: TrainingRunSpec, namespace: str, cache: Cache) -> tuple[str, ManifestReference | None] | Problem:
    """Digest of the base, and its manifest where it is a ModelVersion."""
    if spec.base is None:
        return SCRATCH, None
    if spec.base.model_version is None:
        if spec.base.digest is None:  # the CRD's rule refuses it, where that rule is in force
            return Problem("InvalidBase", "spec.base takes either modelVersion alone, or uri together with digest")
        return spec.base.digest, None
    name = spec.base.model_version
    version = cache.get(MODEL_VERSION, namespace, name)
    if version is None:
        return Problem(
            "WaitingForBase",
            f"spec.base.modelVersion: there is no ModelVersion {name} in namespace {namespace} yet",
            False,
        )
    conditions = {c["type"]: c for c in (version.get("status") or {}).get("conditions") or []}
    verified = conditions.get(ConditionType.VERIFIED)
    if verified is None or verified["status"] != "True":
        why = f": {verified['message']}" if verified is not None and verified.get("message") else ""
        return Problem("WaitingForBase", f"spec.base.modelVersion: ModelVersion {name} is not verified{why}", False)
    manifest = ManifestReference.model_validate(version["spec"]["manifest"])
    return manifest.digest, manifest


def _baseline(spec: TrainingRunSpec, namespace: str, cache: Cache) -> ManifestReference | None:
    """Manifest of what the namespace's pool for this model serves as stable now, if a gate compares with it."""
    if not any(gate.non_inferior_to for gate in spec.evaluation.gates):
        return None
    pools = sorted(cache.list(INFERENCE_POOL, namespace), key=lambda p: str(p["metadata"]["name"]))
    for pool in pools:
        stable = (pool.get("status") or {}).get("stable")
        if pool["spec"].get("model") != spec.model or not stable:
            continue
        version = cache.get(MODEL_VERSION, namespace, stable["modelVersion"])
        if version is not None and version["spec"]["manifest"]["digest"] == stable["manifestDigest"]:
            return ManifestReference.model_validate(version["spec"]["manifest"])
    return None


async def _manifest(
    outcome: JobOutcome, folder: str, lineage: str, model: str, artifacts: Artifacts
) -> Manifest | Problem:
    """The manifest the outcome names, checked: its digest, its schema, its place, and whose it is."""
    if outcome.manifest is None:
        return Problem("NoManifest", f"{folder}/{OUTCOME_FILE} says Succeeded but names no manifest")
    if outcome.manifest.uri != join(folder, MANIFEST_FILE):
        return Problem("NoManifest", f"the manifest lies at {outcome.manifest.uri}, not in the run's folder {folder}")
    manifest = await artifacts.parsed(Manifest, outcome.manifest.uri, outcome.manifest.digest)
    if isinstance(manifest, Problem):
        return Problem(f"Manifest{manifest.reason}", manifest.message, manifest.lasting)
    if manifest.lineage != lineage or manifest.model != model:
        return Problem(
            "ManifestMismatch",
            f"{outcome.manifest.uri} is of model {manifest.model}, lineage {manifest.lineage[:16]}; "
            f"expected {model}, {lineage[:16]}",
        )
    return manifest
