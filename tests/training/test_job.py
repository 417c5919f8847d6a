"""A job ends with an outcome, the same one however often it is started, and only what changed is done again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sluice_contracts.base import canonical_json, sha256
from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.job import JobConfig, JobOutcome, JobResult
from sluice_contracts.manifest import Manifest
from sluice_contracts.training_run import Progress, Stage
from sluice_storage import read_bytes
from sluice_training.cli import app
from sluice_training.job import run as run_module
from sluice_training.job.run import run_job
from sluice_training.job.stages import Markers
from typer.testing import CliRunner

MakeJob = Callable[..., JobConfig]
IMPOSSIBLE = {"metric": "intent.accuracy", "min": 1.0}
WAIVER = {"reason": "A drill, to see the canary work.", "approvedBy": "release manager"}


def folder(config: JobConfig) -> Path:
    return Path(config.run_uri.removeprefix("file://"))


def here(config: JobConfig) -> JobOutcome:
    return run_job(config, on_ray=False)


@dataclass(frozen=True)
class Finished:
    """A job that came to its end, well. Many tests look at it; none may change its files."""

    config: JobConfig
    outcome: JobOutcome
    files: dict[Path, tuple[int, bytes]]
    """When each was written, and what is in it."""

    def untouched(self) -> bool:
        return contents(self.config) == self.files


def contents(config: JobConfig) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder(config).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(make_shared_job: MakeJob, few_parity_cases: None) -> Finished:
    config = make_shared_job(export={"quantizations": ["Q8_0", "Q4_K_M"]})
    outcome = here(config)
    assert outcome.result is JobResult.SUCCEEDED, outcome.message
    return Finished(config, outcome, contents(config))


def with_evaluation(config: JobConfig, **evaluation: object) -> JobConfig:
    """The same training, judged otherwise: the same lineage and run folder."""
    wire = config.wire()
    wire["spec"]["evaluation"].update(evaluation)
    return JobConfig.model_validate(wire)


def test_a_job_makes_everything_and_the_manifest_ties_it_together(finished: Finished) -> None:
    config, outcome = finished.config, finished.outcome
    assert outcome.manifest is not None
    manifest = Manifest.model_validate_json(read_bytes(outcome.manifest.uri, outcome.manifest.digest))
    for artifact in manifest.artifacts:
        data = (folder(config) / artifact.path).read_bytes()
        assert (len(data), sha256(data)) == (artifact.size, artifact.sha256)
    assert {Path(a.path).name for a in manifest.served()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [a.path for a in manifest.device()] == ["export/gguf/bot-Q8_0.gguf", "export/gguf/bot-Q4_K_M.gguf"]
    assert manifest.dataset.digest == config.spec.dataset.digest
    report = EvaluationReport.model_validate_json(read_bytes(manifest.evaluation.uri, manifest.evaluation.digest))
    assert report.samples_digest == sha256((folder(config) / report.samples_path).read_bytes())
    parity = ParityReport.model_validate_json(read_bytes(manifest.parity_uri, manifest.parity_digest))
    assert [r.quantization.value for r in parity.results] == ["Q8_0", "Q4_K_M"]
    card = (folder(config) / "model_card.md").read_text()
    assert config.lineage in card
    progress = Progress.model_validate_json((folder(config) / "progress.json").read_bytes())
    assert (progress.stage, progress.step) == (Stage.FINISHED, 6)
    history = [json.loads(line) for line in (folder(config) / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in history] == [3, 6]


def test_a_finished_job_that_is_started_again_changes_nothing(finished: Finished) -> None:
    assert here(finished.config) == finished.outcome
    assert finished.untouched()


def test_a_failed_gate_ends_the_job_with_the_numbers_and_a_waiver_lets_it_on(make_job: MakeJob) -> None:
    config = make_job(evaluation={"gates": [IMPOSSIBLE]})
    outcome = here(config)
    assert outcome.result is JobResult.GATE_FAILED
    assert "intent.accuracy 0." in outcome.message
    assert outcome.manifest is None
    assert not (folder(config) / "export/gguf").exists()
    trained = (folder(config) / "export/safetensors/model.safetensors").stat().st_mtime_ns

    waived = here(with_evaluation(config, waiver=WAIVER))
    assert waived.result is JobResult.SUCCEEDED
    assert "waived by release manager" in waived.message
    assert not all(g.passed for g in waived.gates)
    assert (folder(config) / "export/safetensors/model.safetensors").stat().st_mtime_ns == trained
    assert waived.manifest is not None
    manifest = Manifest.model_validate_json(read_bytes(waived.manifest.uri, waived.manifest.digest))
    assert not manifest.evaluation.passed
    assert manifest.evaluation.waiver is not None
    assert manifest.evaluation.waiver.approved_by == "release manager"


def test_runs_with_equal_inputs_share_the_training_and_write_over_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, first = finished.config, finished.outcome
    assert first.manifest is not None

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained once more")

    monkeypatch.setattr(run_module, "_train", never)
    again = with_evaluation(config, gates=[{"metric": "intent.accuracy", "min": 0.0}])
    parent = config.run_uri.rpartition("/")[0]
    again = again.model_copy(update={"name": "again", "run_uri": f"{parent}/fedcba9876543210"})
    second = here(again)
    assert second.manifest is not None
    one, two = (Manifest.model_validate_json(read_bytes(m.uri, m.digest)) for m in (first.manifest, second.manifest))
    assert (one.training_run, two.training_run) == ("run", "again")
    assert [a.sha256 for a in one.served()] == [a.sha256 for a in two.served()]
    assert [a.sha256 for a in one.device()] == [a.sha256 for a in two.device()]
    assert finished.untouched()


def test_a_training_that_was_altered_or_is_of_another_recipe_is_not_taken_over(make_job: MakeJob) -> None:
    config = make_job()
    markers = Markers(config.run_uri)
    marker = markers.write("train", sha256(b"1"), [markers.put("export/a", b"a"), markers.put("export/b", b"b")])
    parent = config.run_uri.rpartition("/")[0]
    other = Markers(f"{parent}/fedcba9876543210")
    assert other.adopt("train", sha256(b"2"), config.lineage) is None
    assert Markers(f"{parent}-2/x").adopt("train", sha256(b"1"), config.lineage) is None
    assert other.adopt("train", sha256(b"1"), config.lineage) == marker
    assert other.done("train", sha256(b"1")) == marker
    (folder(config) / "export/a").write_bytes(b"altered")
    third = Markers(f"{parent}/0000000000000000")
    assert third.adopt("train", sha256(b"1"), config.lineage) == marker, "from the second, which is whole"
    (folder(config).parent / "fedcba9876543210/export/b").unlink()
    assert Markers(f"{parent}/1111").adopt("train", sha256(b"1"), config.lineage) == marker, "from the third"


def test_a_waiver_of_gates_that_hold_is_not_used(make_job: MakeJob) -> None:
    gates = [{"metric": "intent.accuracy", "min": 0.0}]
    outcome = here(make_job(evaluation={"gates": gates, "waiver": WAIVER}))
    assert outcome.manifest is not None
    manifest = Manifest.model_validate_json(read_bytes(outcome.manifest.uri, outcome.manifest.digest))
    assert manifest.evaluation.passed
    assert manifest.evaluation.waiver is None


def test_parity_limits_stop_the_job(make_job: MakeJob) -> None:
    config = make_job(export={"quantizations": ["Q4_K_M"], "parity": {"maxMeanKld": 1e-9}})
    outcome = here(config)
    assert outcome.result is JobResult.PARITY_FAILED
    assert "Q4_K_M: mean KL divergence" in outcome.message
    assert not (folder(config) / "manifest.json").exists()


def test_a_version_is_compared_with_the_stable_one(make_job: MakeJob, finished: Finished) -> None:
    stable = finished.outcome
    gates = [{"metric": "grounding.accuracy", "nonInferiorTo": "stable", "margin": 0.5}]
    recipe = {"method": "sft", "steps": 3, "batchSize": 4, "sequenceLength": 96}
    config = make_job(version=stable.manifest, baseline=stable.manifest, recipe=recipe, evaluation={"gates": gates})
    outcome = here(config)
    assert outcome.result is JobResult.SUCCEEDED, outcome.message
    assert outcome.gates[0].bound == ">= stable - 0.5"
    assert outcome.gates[0].n > 0
    assert outcome.manifest is not None
    manifest = Manifest.model_validate_json(read_bytes(outcome.manifest.uri, outcome.manifest.digest))
    assert manifest.base_lineage == stable.lineage

    other = make_job(
        version=stable.manifest, baseline=stable.manifest, recipe=recipe, evaluation={"gates": gates, "examples": 30}
    )
    refused = here(other)
    assert refused.result is JobResult.INVALID_INPUT
    assert "use the same evaluation.examples" in refused.message


def test_an_adapter_is_listed_beside_the_merged_weights_where_it_is_as_good(
    make_job: MakeJob, finished: Finished
) -> None:
    stable = finished.outcome
    recipe = {"method": "lora", "steps": 3, "batchSize": 4, "sequenceLength": 96, "lora": {"rank": 4, "alpha": 8}}
    config = make_job(version=stable.manifest, recipe=recipe)

    def manifest(job: JobConfig) -> Manifest:
        outcome = here(job)
        assert outcome.manifest is not None, outcome.message
        return Manifest.model_validate_json(read_bytes(outcome.manifest.uri, outcome.manifest.digest))

    made = manifest(config)
    assert stable.manifest is not None
    assert made.base_digest == stable.manifest.digest
    names = ["export/adapter/adapter_config.json", "export/adapter/adapter_model.safetensors"]
    assert [a.path for a in made.adapter()] == names
    assert len(made.served()) == 5, "engines of its own load the merged weights"
    assert made.device(), "and devices get merged files"
    assert json.loads((folder(config) / names[0]).read_bytes())["base_model_name_or_path"] == stable.manifest.digest
    assert "an adapter of rank 4" in (folder(config) / "model_card.md").read_text()

    summary = json.loads((folder(config) / "training.json").read_bytes()) | {"adapter": {"mean_kld": 2, "same_top": 1}}
    trained = Markers(config.run_uri).put("training.json", canonical_json(summary))
    marker = json.loads((folder(config) / "stages/train.json").read_bytes())
    marker["files"] = [f for f in marker["files"] if f["path"] != trained.path] + [trained.wire()]
    (folder(config) / "stages/train.json").write_bytes(canonical_json(marker))
    (folder(config) / "outcome.json").unlink()
    assert manifest(config).adapter() == [], "one that says other things than what was evaluated is not offered"


def test_a_job_that_died_after_training_goes_on_without_training(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_job()

    def dies(*args: object) -> None:
        raise ConnectionError("the head pod is gone")

    with monkeypatch.context() as patched:
        patched.setattr(run_module.export_stage, "export", dies)
        with pytest.raises(ConnectionError):
            here(config)
    assert not (folder(config) / "outcome.json").exists()
    monkeypatch.setattr(run_module, "_train", dies)
    assert here(config).result is JobResult.SUCCEEDED


def test_a_result_that_was_tampered_with_is_made_again(make_job: MakeJob) -> None:
    config = make_job()
    here(config)
    (folder(config) / "outcome.json").unlink()
    (folder(config) / "eval/report.json").write_text("{}")
    assert here(config).result is JobResult.SUCCEEDED
    EvaluationReport.model_validate_json((folder(config) / "eval/report.json").read_bytes())


def test_a_wrong_dataset_is_an_outcome_and_not_another_attempt(make_job: MakeJob) -> None:
    config = make_job(dataset={"digest": "sha256:" + "0" * 64})
    outcome = here(config)
    assert outcome.result is JobResult.INVALID_INPUT
    assert "dataset.digest" in outcome.message


def test_a_gate_that_cannot_be_judged_ends_the_job_before_training(make_job: MakeJob) -> None:
    config = make_job(evaluation={"gates": [{"metric": "safety.refusal", "min": 0.5}]})
    assert here(config).result is JobResult.INVALID_INPUT
    assert not (folder(config) / "export").exists()


def test_a_marker_counts_only_for_its_inputs_and_while_its_files_are_whole(store: str) -> None:
    markers = Markers(store)
    made = markers.put("a/b.txt", b"hello")
    markers.write("stage", sha256(b"1"), [made])
    assert markers.done("stage", sha256(b"1")) is not None
    assert markers.done("stage", sha256(b"2")) is None
    markers.put("a/b.txt", b"other")
    assert markers.done("stage", sha256(b"1")) is None


def test_the_command_line_runs_a_job_and_names_a_wrong_field(make_job: MakeJob, tmp_path: Path) -> None:
    config = make_job(evaluation={"gates": [IMPOSSIBLE]})
    path = tmp_path / "run.json"
    path.write_bytes(config.canonical())
    result = CliRunner().invoke(app, ["job", "--config", str(path), "--local", "-o", "json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["result"] == "GateFailed"

    wrong = config.wire()
    wrong["spec"]["recipe"]["stepz"] = 3
    path.write_text(json.dumps(wrong))
    result = CliRunner().invoke(app, ["job", "--config", str(path), "--local"])
    assert result.exit_code == 1
    assert "spec.recipe.stepz: unknown field" in result.stderr


def test_the_command_line_evaluates_a_folder(untrained: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    command = ["evaluate", "--model", str(untrained), "--suite", "intent", "--examples", "20", "-o", "json"]
    result = CliRunner().invoke(app, [*command, "--answers", str(answers)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["suite"] == "intent"
    assert len(answers.read_text().splitlines()) == 20
    refused = CliRunner().invoke(app, ["evaluate", "--model", str(tmp_path)])
    assert refused.exit_code == 1
    assert "holds no config.json" in refused.stderr
