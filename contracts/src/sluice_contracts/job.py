"""What the operator tells a training job, and what the job answers through its run folder."""

from enum import StrEnum
from typing import Literal

from sluice_contracts.base import Contract, ShortText, Text, Timestamp, Uri
from sluice_contracts.training_run import GateResult, ManifestReference, TrainingRunSpec

JOB_FILE = "run.json"
"""Key of the job's ConfigMap, and the file's name where it is mounted."""
PROGRESS_FILE = "progress.json"
OUTCOME_FILE = "outcome.json"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "eval/report.json"
SAMPLES_FILE = "eval/samples.jsonl"
PARITY_FILE = "parity.json"
HISTORY_FILE = "history.jsonl"
"""One line a logged step: step, loss, tokensPerSecond; for loss curves."""


class JobConfig(Contract):
    """run.json: everything the job needs, resolved. Written by the operator into a ConfigMap."""

    name: ShortText
    namespace: ShortText
    lineage: ShortText
    git_sha: ShortText
    run_uri: Uri
    """`…/runs/<lineage>/<digits of the run>`, without a trailing slash."""
    base_manifest: ManifestReference | None = None
    """Manifest of the version to fine-tune, when the base is a ModelVersion."""
    baseline_manifest: ManifestReference | None = None
    """Manifest of the pool's stable version, for gates with nonInferiorTo; None: they are skipped, and say so."""
    spec: TrainingRunSpec


class JobResult(StrEnum):
    """How the job ended. A failed gate is a finished job: trying again would not change it."""

    SUCCEEDED = "Succeeded"
    GATE_FAILED = "GateFailed"
    PARITY_FAILED = "ParityFailed"
    INVALID_INPUT = "InvalidInput"
    """The dataset, base or recipe is wrong: trying again would not change it."""


class JobOutcome(Contract):
    """outcome.json, written last: if it is there, the job is over for good."""

    schema_version: Literal[1] = 1
    result: JobResult
    lineage: ShortText
    message: Text
    gates: list[GateResult] = []
    report_uri: Uri | None = None
    manifest: ManifestReference | None = None
    finished_at: Timestamp
