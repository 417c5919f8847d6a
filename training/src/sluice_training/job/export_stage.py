"""The export and parity stages: files for devices, and the proof that each is as good as what it came from."""

from datetime import UTC, datetime

from sluice_contracts.base import canonical_json, sha256, timestamp
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.evaluation import ParityReport
from sluice_contracts.job import PARITY_FILE, JobConfig

from sluice_training.dataset.read import read_rows
from sluice_training.dataset.split import SplitName
from sluice_training.errors import InvalidInputError
from sluice_training.export import engine, gguf_file, parity
from sluice_training.job.stages import Marker, Markers
from sluice_training.job.train_stage import SERVED_FOLDER, cpus_of
from sluice_training.job.workspace import Workspace
from sluice_training.learn.device import use_cpus
from sluice_training.model.chat import ChatTokenizer
from sluice_training.model.llama import Llama

EXPORT, PARITY = "export", "parity"


def gguf_path(config: JobConfig, quantization: str) -> str:
    """Where a device file lies below the run folder."""
    return f"export/gguf/{config.spec.model}-{quantization}.gguf"


def export_identity(config: JobConfig, trained: Marker) -> str:
    """Digest of all that the device files depend on."""
    served = [f.wire() for f in trained.files if f.path.startswith(SERVED_FOLDER)]
    kinds = [q.value for q in config.spec.export.quantizations]
    return sha256(canonical_json({"served": served, "quantizations": kinds, "model": config.spec.model}))


def export(config: JobConfig, trained: Marker, workspace: Workspace) -> Marker:
    """Make one file for each quantisation. Raises ExportError, StorageError."""
    made = []
    for quantization in config.spec.export.quantizations:
        path = gguf_path(config, quantization.value)
        gguf_file.write(workspace.path(SERVED_FOLDER), quantization, workspace.path(path))
        made.append(workspace.upload(path))
    return Markers(config.run_uri).write(EXPORT, export_identity(config, trained), made)


def parity_identity(config: JobConfig, exported: Marker) -> str:
    """Digest of all that the parity report depends on."""
    return sha256(
        canonical_json(
            {
                "files": [f.wire() for f in exported.files],
                "limits": config.spec.export.parity.wire(),
                "suites": [s.value for s in config.spec.evaluation.suites],
                "dataset": config.spec.dataset.digest,
            }
        )
    )


def prove_parity(
    config: JobConfig,
    dataset: DatasetManifest,
    exported: Marker,
    workspace: Workspace,
    model: Llama,
    tokenizer: ChatTokenizer,
) -> Marker:
    """Run each device file in the real engine beside its parent, and write the report. Raises ExportError."""
    splits: tuple[SplitName, ...] = ("test", "val", "train")
    rows = next((r for name in splits if (r := read_rows(config.spec.dataset.uri, dataset, name))), [])
    if not rows:
        raise InvalidInputError("dataset: there is not one row to compare answers on")
    parent = parity.ask_parent(model, tokenizer, rows, config.spec.evaluation.suites)
    limits = config.spec.export.parity
    results = []
    for quantization, file in zip(config.spec.export.quantizations, exported.files, strict=True):
        found = parity.measure(parent, workspace.fetch(file), use_cpus(cpus_of(config)))
        results.append(parity.judge(found, limits, quantization, file.path, file.size))
    report = ParityReport(
        lineage=config.lineage,
        limits=limits,
        engine=engine.name(),
        results=results,
        passed=all(r.passed for r in results),
        created_at=timestamp(datetime.now(UTC)),
    )
    markers = Markers(config.run_uri)
    return markers.write(PARITY, parity_identity(config, exported), [markers.put(PARITY_FILE, report.canonical())])
