"""The whole job: each stage is done if its marker does not say it is, and outcome.json ends it.

A wrong input, a failed gate and failed parity are outcomes: trying again would change nothing. Everything else raises,
and the job may be started again; it goes on where it was.
"""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from sluice_contracts.base import sha256, timestamp
from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.job import OUTCOME_FILE, PARITY_FILE, REPORT_FILE, JobConfig, JobOutcome, JobResult
from sluice_contracts.training_run import GateResult, ManifestReference, Stage
from sluice_storage import NotFoundError, join, open_store

from sluice_training.errors import InvalidInputError
from sluice_training.evaluate import gates
from sluice_training.job import evaluate_stage, export_stage, train_stage
from sluice_training.job.inputs import Inputs, find_inputs, rows_of, training_identity
from sluice_training.job.manifest_stage import write_manifest
from sluice_training.job.progress import ProgressWriter
from sluice_training.job.stages import Marker, Markers, StageFile
from sluice_training.job.workspace import Workspace
from sluice_training.learn.worker import Worker
from sluice_training.model import files

OUTCOME = "outcome"


def run_job(config: JobConfig, *, on_ray: bool) -> JobOutcome:
    """Do the job, or what is left of it. Raises StorageError and others where trying again may help."""
    identity = sha256(config.canonical())
    if (finished := _finished(config, identity)) is not None:
        return finished
    open_store(config.run_uri).delete(OUTCOME_FILE)  # that of other gates or limits
    try:
        ending = _stages(config, on_ray)
    except InvalidInputError as error:
        ending = _Ending(JobResult.INVALID_INPUT, str(error))
    return _end(config, identity, ending)


@dataclass(frozen=True)
class _Ending:
    """How the stages ended."""

    result: JobResult
    message: str
    gates: list[GateResult] | None = None
    """None if nothing was evaluated."""
    manifest: ManifestReference | None = None


def _finished(config: JobConfig, identity: str) -> JobOutcome | None:
    if Markers(config.run_uri).done(OUTCOME, identity) is None:
        return None
    try:
        return JobOutcome.model_validate_json(open_store(config.run_uri).read(OUTCOME_FILE))
    except (NotFoundError, ValidationError):
        return None


def _stages(config: JobConfig, on_ray: bool) -> _Ending:
    gates.check(config.spec.evaluation)
    inputs = find_inputs(config)
    stable = evaluate_stage.find_stable(config)
    markers = Markers(config.run_uri)
    training = training_identity(config, inputs)
    trained = markers.done(train_stage.STAGE, training)
    if trained is None:
        trained = markers.adopt(train_stage.STAGE, training, config.lineage)
    if trained is None:
        trained = _train(config, inputs, training, on_ray)

    with (
        tempfile.TemporaryDirectory(prefix="sluice-job-") as temporary,
        ProgressWriter(config.run_uri, config.spec.recipe.steps) as progress,
    ):
        progress.trained(config.spec.recipe.steps)
        workspace = Workspace(config.run_uri, Path(temporary))
        for file in trained.files:
            workspace.fetch(file)
        model, tokenizer = files.load(workspace.path(train_stage.SERVED_FOLDER))

        progress.stage(Stage.EVALUATING)
        wanted = evaluate_stage.identity(config, trained, stable)
        evaluated = markers.done(evaluate_stage.STAGE, wanted)
        if evaluated is None:
            evaluated = evaluate_stage.evaluate_and_judge(config, trained, stable, model, tokenizer)
        report_file = _file(evaluated, REPORT_FILE)
        report = EvaluationReport.model_validate_json(workspace.fetch(report_file).read_bytes())
        verdict = gates.describe(report.gates)
        if not report.passed and report.waiver is None:
            return _Ending(JobResult.GATE_FAILED, verdict, report.gates)

        progress.stage(Stage.EXPORTING)
        exported = markers.done(export_stage.EXPORT, export_stage.export_identity(config, trained))
        if exported is None:
            exported = export_stage.export(config, trained, workspace)

        progress.stage(Stage.PARITY)
        proven = markers.done(export_stage.PARITY, export_stage.parity_identity(config, exported))
        if proven is None:
            proven = export_stage.prove_parity(config, inputs.manifest, exported, workspace, model, tokenizer)
        parity_file = _file(proven, PARITY_FILE)
        parity = ParityReport.model_validate_json(workspace.fetch(parity_file).read_bytes())
        if not parity.passed:
            reasons = "; ".join(f"{r.quantization}: {', '.join(r.reasons)}" for r in parity.results if not r.passed)
            return _Ending(JobResult.PARITY_FAILED, reasons, report.gates)

        manifest = write_manifest(config, inputs, trained, exported, report, report_file, parity, parity_file)
        progress.stage(Stage.FINISHED)
    message = verdict if report.waiver is None else f"{verdict}; waived by {report.waiver.approved_by}"
    return _Ending(JobResult.SUCCEEDED, message, report.gates, manifest)


def _train(config: JobConfig, inputs: Inputs, training: str, on_ray: bool) -> Marker:
    rows_of(config, inputs.manifest)  # a corrupt line is found here, not by a worker far away
    if on_ray:
        train_stage.train_on_ray(config)
    else:
        train_stage.train_here(config, inputs, Worker())
    trained = Markers(config.run_uri).done(train_stage.STAGE, training)
    if trained is None:
        raise RuntimeError(f"training ended, but {config.run_uri} holds no complete result of it")
    return trained


def _file(marker: Marker, path: str) -> StageFile:
    return next(f for f in marker.files if f.path == path)


def _end(config: JobConfig, identity: str, ending: _Ending) -> JobOutcome:
    outcome = JobOutcome(
        result=ending.result,
        lineage=config.lineage,
        message=ending.message[:2048],
        gates=ending.gates or [],
        report_uri=join(config.run_uri, REPORT_FILE) if ending.gates is not None else None,
        manifest=ending.manifest,
        finished_at=timestamp(datetime.now(UTC)),
    )
    data = outcome.canonical()
    file = StageFile(path=OUTCOME_FILE, size=len(data), sha256=sha256(data))
    Markers(config.run_uri).write(OUTCOME, identity, [file])
    open_store(config.run_uri).write(OUTCOME_FILE, data)  # last: whoever sees it may believe it
    return outcome
