"""The last stage: manifest.json, which ties everything together, and the model card."""

import json
from datetime import UTC, datetime
from importlib.metadata import version

from sluice_contracts.base import sha256, timestamp
from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.job import MANIFEST_FILE, PARITY_FILE, REPORT_FILE, JobConfig
from sluice_contracts.manifest import Artifact, CodeProvenance, DatasetProvenance, EvaluationProvenance, Manifest
from sluice_contracts.training_run import ManifestReference
from sluice_storage import join, open_store, read_bytes

from sluice_training.job.card import model_card
from sluice_training.job.inputs import Inputs
from sluice_training.job.stages import Marker, Markers, StageFile
from sluice_training.job.train_stage import ADAPTER_FOLDER, SERVED_FOLDER, SUMMARY_FILE

CARD_FILE = "model_card.md"
LIBRARIES = ("torch", "peft", "ray", "tokenizers", "gguf", "xllamacpp")


def adapter_is_faithful(config: JobConfig, trained: Marker) -> bool:
    """Whether the adapter on its base comes as near to the merged weights, which were evaluated, as a quantised file
    must. One that does not is not offered: the version is then served from its merged weights alone."""
    summary = json.loads(read_bytes(join(config.run_uri, SUMMARY_FILE), _digest_of(trained, SUMMARY_FILE)))
    found, limits = summary["adapter"], config.spec.export.parity
    return bool(found["mean_kld"] <= limits.max_mean_kld and found["same_top"] >= limits.min_same_top)


def _digest_of(marker: Marker, path: str) -> str:
    return next(f.sha256 for f in marker.files if f.path == path)


def write_manifest(
    config: JobConfig,
    inputs: Inputs,
    trained: Marker,
    exported: Marker,
    report: EvaluationReport,
    report_file: StageFile,
    parity: ParityReport,
    parity_file: StageFile,
) -> ManifestReference:
    """Write card and manifest, the manifest last; returns where it is and its digest. Raises StorageError."""
    served = [
        Artifact(path=f.path, role="served", size=f.size, sha256=f.sha256)
        for f in trained.files
        if f.path.startswith(f"{SERVED_FOLDER}/")
    ]
    adapter = [
        Artifact(path=f.path, role="adapter", size=f.size, sha256=f.sha256)
        for f in trained.files
        if f.path.startswith(f"{ADAPTER_FOLDER}/") and adapter_is_faithful(config, trained)
    ]
    device = [
        Artifact(path=f.path, role="device", quantization=q, size=f.size, sha256=f.sha256)
        for q, f in zip(config.spec.export.quantizations, exported.files, strict=True)
    ]
    manifest = Manifest(
        model=config.spec.model,
        lineage=config.lineage,
        training_run=config.name,
        run_uri=config.run_uri,
        dataset=DatasetProvenance(
            run_id=inputs.manifest.run_id,
            uri=config.spec.dataset.uri,
            digest=config.spec.dataset.digest,
            signals_digest=inputs.manifest.signals_digest,
        ),
        base_lineage=inputs.base.lineage if inputs.base else None,
        base_digest=inputs.base_digest,
        code=CodeProvenance(git_sha=config.git_sha, versions={name: version(name) for name in LIBRARIES}),
        recipe=config.spec.recipe,
        evaluation=EvaluationProvenance(
            uri=join(config.run_uri, REPORT_FILE),
            digest=report_file.sha256,
            passed=report.passed,
            waiver=report.waiver,
        ),
        parity_uri=join(config.run_uri, PARITY_FILE),
        parity_digest=parity_file.sha256,
        artifacts=[*served, *adapter, *device],
        created_at=timestamp(datetime.now(UTC)),
    )
    card = Markers(config.run_uri).put(CARD_FILE, model_card(manifest, report, parity).encode())
    listed = Artifact(path=card.path, role="report", size=card.size, sha256=card.sha256)
    manifest = manifest.model_copy(update={"artifacts": [*manifest.artifacts, listed]})
    data = manifest.canonical()
    open_store(config.run_uri).write(MANIFEST_FILE, data)
    return ManifestReference(uri=join(config.run_uri, MANIFEST_FILE), digest=sha256(data))
