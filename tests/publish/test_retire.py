"""Deleting a version's files: the large ones go, the evidence stays, and an ended attempt goes on."""

import hashlib
import json
from pathlib import Path

import pytest
from sluice_contracts.base import canonical_json
from sluice_storage import StorageError
from sluice_storage.files import FileStore
from sluice_training.publish.cli import app
from sluice_training.publish.errors import PublishError
from sluice_training.publish.retire import retire
from typer.testing import CliRunner

KEPT = {"manifest.json", "eval/report.json", "parity.json", "model_card.md", "history.jsonl"}
WEIGHTS = "export/safetensors/model.safetensors"
DEVICE = "export/gguf/m-Q8_0.gguf"


class Run:
    """A finished run's folder."""

    def __init__(self, root: Path, run_uri: str | None = None) -> None:
        self.root = root
        for name in KEPT - {"manifest.json"}:
            self.put(name, b"evidence")
        listed = {WEIGHTS: "served", DEVICE: "device", "model_card.md": "report"}
        artifacts = [
            {"path": path, "role": role, "size": 9, "sha256": self.put(path, b"x" * 9)} for path, role in listed.items()
        ]
        self.put("checkpoints/step-50/model.pt", b"c" * 5)
        self.put("export/gguf/from-another-attempt.gguf", b"o" * 3)
        digest = "sha256:" + "1" * 64
        evaluation = {"uri": f"{root.as_uri()}/eval/report.json", "digest": digest, "passed": True}
        manifest = {
            "model": "support-bot",
            "lineage": "a" * 64,
            "trainingRun": "v1",
            "runUri": run_uri or root.as_uri(),
            "dataset": {"runId": "r", "uri": "gs://bucket/d", "digest": digest},
            "baseDigest": digest,
            "code": {"gitSha": "c0ffee"},
            "recipe": {"method": "scratch", "steps": 1},
            "evaluation": evaluation,
            "parityUri": f"{root.as_uri()}/parity.json",
            "parityDigest": digest,
            "artifacts": artifacts,
            "createdAt": "2026-11-21T12:00:00Z",
        }
        self.uri = f"{root.as_uri()}/manifest.json"
        self.digest = self.put("manifest.json", canonical_json(manifest))

    def put(self, path: str, data: bytes) -> str:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def files(self) -> set[str]:
        return {p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()}


def test_weights_and_checkpoints_go_and_evidence_stays(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    other = Run(tmp_path / "run-2")
    before = other.files()
    found = retire(run.uri, run.digest)
    assert (found.files, found.bytes) == (4, 9 + 9 + 5 + 3)
    assert run.files() == KEPT
    assert other.files() == before, "a folder whose name begins alike is another one"


def test_an_attempt_that_was_ended_in_the_middle_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    whole, gone = FileStore.delete, []

    def killed(self: FileStore, key: str) -> None:
        if len(gone) == 2:
            raise StorageError("the pod was ended")
        gone.append(key)
        whole(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "delete", killed)
        with pytest.raises(StorageError):
            retire(run.uri, run.digest)
    assert len(run.files()) == len(KEPT) + 2
    assert retire(run.uri, run.digest).files == 2
    assert run.files() == KEPT
    assert retire(run.uri, run.digest).files == 0


def test_a_manifest_that_was_changed_deletes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    before = run.files()
    with pytest.raises(StorageError, match="it was changed after it was recorded"):
        retire(run.uri, "sha256:" + "0" * 64)
    digest = run.put("manifest.json", b"{}")
    with pytest.raises(PublishError, match=r"is no manifest: model: .*nothing was deleted"):
        retire(run.uri, digest)
    assert run.files() == before


def test_a_manifest_never_makes_files_of_another_folder_go(tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    run = Run(tmp_path / "run", run_uri=other.root.as_uri())
    with pytest.raises(PublishError, match="says that its files are in"):
        retire(run.uri, run.digest)
    assert WEIGHTS in run.files()
    assert WEIGHTS in other.files()


def test_the_command_says_what_went(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    done = CliRunner().invoke(app, ["retire", "--manifest", run.uri, "--digest", run.digest])
    assert done.exit_code == 0
    assert "deleted 4 files of 26 bytes" in done.stdout
    wrong = CliRunner().invoke(app, ["retire", "--manifest", run.uri, "--digest", "123"])
    assert wrong.exit_code == 2
    assert "--digest '123' is no digest" in wrong.stderr


def test_the_health_command_adds_batches_up(tmp_path: Path) -> None:
    from sluice_contracts.health import HealthReport

    folder = tmp_path / "signals"
    folder.mkdir()
    cells = [
        {"lineage": "a" * 64, "outcome": "failure", "count": 3},
        {"lineage": "a" * 64, "outcome": "success", "count": 6, "feedback": -1},
        {"lineage": "a" * 64, "outcome": "partial", "count": 11},
        {"lineage": "b" * 64, "outcome": "success", "count": 5},
    ]
    rest = {"domain": "business", "task": "intent", "latency": "under-1s", "tokens": "under-16"}
    for number, model in enumerate(["support-bot", "support-bot", "other"]):
        batch = {"batchId": f"{number:032x}", "model": model, "day": f"2026-11-1{number}", "consent": "improve-models"}
        batch["cells"] = [cell | rest for cell in cells]
        (folder / f"{number}.json").write_text(json.dumps(batch))
    (folder / "again.json").write_bytes((folder / "0.json").read_bytes())
    out = f"{tmp_path.as_uri()}/health.json"
    done = CliRunner().invoke(app, ["health", "--signals", folder.as_uri(), "--model", "support-bot", "--out", out])
    assert done.exit_code == 0, done.stderr
    assert "18 of 40 requests failed (45.0%), 2 batches" in done.stdout
    report = HealthReport.model_validate_json((tmp_path / "health.json").read_bytes())
    assert (report.batches, report.last_day) == (2, "2026-11-11")
    assert [(v.lineage[0], v.requests, v.failures) for v in report.versions] == [("a", 40, 18), ("b", 10, 0)]
    empty = CliRunner().invoke(app, ["health", "--signals", f"{folder.as_uri()}/x", "--model", "m", "--out", out])
    assert empty.exit_code == 1
    assert "there is no batch below" in empty.stderr


class TestDesignEffect:
    def test_devices_alike_count_each_request(self) -> None:
        from sluice_training.publish.health import design_effect

        assert design_effect([(10, 1)] * 50) == 1

    def test_few_devices_with_all_failures_count_as_few(self) -> None:
        from sluice_training.publish.health import design_effect

        assert design_effect([(100, 100), (100, 0), (100, 0), (100, 0)]) > 90
        assert design_effect([(100, 100), (100, 100)]) == 100
        assert design_effect([(500, 200)]) == 500
