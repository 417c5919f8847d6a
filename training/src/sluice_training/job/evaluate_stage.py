"""The evaluate stage: the served files are loaded again, asked everything, and judged."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError
from sluice_contracts.base import canonical_json, sha256, timestamp
from sluice_contracts.evaluation import Baseline, EvaluationReport, SampleOutcome
from sluice_contracts.job import REPORT_FILE, SAMPLES_FILE, JobConfig
from sluice_contracts.manifest import Manifest
from sluice_storage import ChecksumError, NotFoundError, join, read_bytes

from sluice_training.dataset.config import describe
from sluice_training.errors import InvalidInputError
from sluice_training.evaluate import gates
from sluice_training.evaluate.gates import Stable
from sluice_training.evaluate.run import evaluate
from sluice_training.job.inputs import load_manifest
from sluice_training.job.stages import Marker, Markers
from sluice_training.model.chat import ChatTokenizer
from sluice_training.model.llama import Llama

STAGE = "evaluate"


@dataclass(frozen=True)
class StableVersion:
    """The version to compare with: what it was measured at, and where that is written."""

    evidence: Stable
    baseline: Baseline


def find_stable(config: JobConfig) -> StableVersion | None:
    """The report and samples of the stable version. Raises InvalidInputError if they are gone or were changed."""
    if config.baseline_manifest is None or not any(g.non_inferior_to for g in config.spec.evaluation.gates):
        return None
    manifest = load_manifest(config.baseline_manifest, "the stable version")
    return read_evidence(manifest)


def read_evidence(manifest: Manifest) -> StableVersion:
    """What a version was measured at. Raises InvalidInputError."""
    try:
        report = EvaluationReport.model_validate_json(read_bytes(manifest.evaluation.uri, manifest.evaluation.digest))
        data = read_bytes(join(manifest.run_uri, report.samples_path), report.samples_digest)
        samples = [SampleOutcome.model_validate(json.loads(line)) for line in data.splitlines()]
    except (NotFoundError, ChecksumError) as error:
        raise InvalidInputError(f"the stable version's evaluation: {error}") from None
    except ValidationError as error:
        raise InvalidInputError(f"the stable version's evaluation cannot be read: {describe(error)}") from None
    baseline = Baseline(lineage=manifest.lineage, report_digest=manifest.evaluation.digest)
    return StableVersion(Stable(report.suites, samples), baseline)


def identity(config: JobConfig, trained: Marker, stable: StableVersion | None) -> str:
    """Digest of all that the report depends on."""
    weights = [f.sha256 for f in trained.files if f.path.endswith(".safetensors")]
    baseline = stable.baseline.wire() if stable else None
    spec = config.spec.evaluation.wire()
    return sha256(canonical_json({"weights": weights, "evaluation": spec, "baseline": baseline}))


def evaluate_and_judge(
    config: JobConfig, trained: Marker, stable: StableVersion | None, model: Llama, tokenizer: ChatTokenizer
) -> Marker:
    """Write samples and report. Raises InvalidInputError if a gate cannot be judged."""
    spec = config.spec.evaluation
    found = evaluate(model, tokenizer, spec.suites, spec.examples)
    results = gates.judge(spec.gates, found.suites, found.samples, stable.evidence if stable else None)
    samples = found.samples_file()
    passed = all(r.passed for r in results)
    report = EvaluationReport(
        lineage=config.lineage,
        suites=found.suites,
        gates=results,
        passed=passed,
        waiver=None if passed else spec.waiver,
        baseline=stable.baseline if stable else None,
        samples_path=SAMPLES_FILE,
        samples_digest=sha256(samples),
        created_at=timestamp(datetime.now(UTC)),
    )
    markers = Markers(config.run_uri)
    made = [markers.put(SAMPLES_FILE, samples), markers.put(REPORT_FILE, report.canonical())]
    return markers.write(STAGE, identity(config, trained, stable), made)
