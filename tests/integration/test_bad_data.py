"""A wrong dataset or training job, tried as a user would: the message names the thing and the remedy."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sluice_devcluster.ports import free_port

from tests.integration.user import ZEROS, Ended, User, answers, helps, running

GOOD = "name: bad-input\nseed: 1\nsize: 200\n"
CONFIGURATIONS = {
    "unknown field": ("name: x\nseed: 1\nsizes: 300\n", ["sizes: unknown field", "size: Field required"]),
    "too small": ("name: x\nseed: 1\nsize: 5\n", ["size: Input should be greater than or equal to 100"]),
    "mix": (GOOD + "mix: {intent: 0.5}\n", ["mix: the shares must sum to 1, not 0.5"]),
    "unknown domain": (GOOD + "domains: {exclude: [leadrship]}\n", ["domains.exclude.0", "'leadership'"]),
    "half a pair": (GOOD + "replay: 0.5\n", ["focus and replay belong together: give both or neither"]),
    "not YAML": ("name: [x\n", ["is not YAML", "line 1"]),
    "not a mapping": ("- name\n", ["must hold a mapping with name, seed and size"]),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_dataset_configuration(user: User, case: str) -> None:
    content, words = CONFIGURATIONS[case]
    config = user.file("dataset.yaml", content)
    helps(user.run("sluice-train", "dataset", "build", "--config", config, "--out", user.uri()), 1, config, *words)


def build(user: User, *more: str, out: str | None = None, **how: Any) -> Ended:
    config = user.file("dataset.yaml", GOOD)
    return user.run("sluice-train", "dataset", "build", "--config", config, "--out", out or user.uri(), *more, **how)


def test_a_configuration_that_is_not_there(user: User) -> None:
    ended = user.run("sluice-train", "dataset", "build", "--config", "gone.yaml", "--out", user.uri())
    helps(ended, 1, "gone.yaml", "No such file")


def test_storage_of_an_unknown_kind(user: User) -> None:
    helps(build(user, out="s3://bucket/x"), 1, "s3://bucket/x", "use gs://bucket/path or file:///path")


def test_storage_that_may_not_be_written(nobody: User) -> None:
    closed = nobody.folder / "closed"
    closed.mkdir(mode=0o700)
    helps(build(nobody, out=closed.as_uri()), 1, str(closed), "Permission denied")


def test_a_corrupt_batch_of_signals(user: User) -> None:
    user.file("signals/batch.json", '{"a":')
    helps(build(user, "--signals", user.uri("signals")), 1, "signals/batch.json, line", "not JSON")


@pytest.mark.apiserver
def test_a_missing_bucket(user: User) -> None:
    from sluice_devcluster.programs import built_programs

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = str(built_programs() / "fake-gcs-server")
    command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with running(command, user.folder / "emulator.log", lambda: answers(f"{url}/storage/v1/b?project=local")):
        ended = build(user, out="gs://no-such-bucket/data", STORAGE_EMULATOR_HOST=url)
    helps(ended, 1, "gs://no-such-bucket/data", "the bucket does not exist")


def job(user: User, dataset: Path, digest: str, **changes: Any) -> Ended:
    """`sluice-train job` on a dataset's folder; its outcome is added to what it said."""
    lineage = "a" * 64
    config: dict[str, Any] = {
        "name": "bad-input",
        "namespace": "here",
        "lineage": lineage,
        "gitSha": "0",
        "runUri": user.uri(f"runs/{lineage}"),
        "spec": {
            "model": "bot",
            "dataset": {"uri": dataset.as_uri(), "digest": digest},
            "recipe": {"method": "scratch", "steps": 1},
        },
    }
    config.update(changes)
    name = user.file("run.json", json.dumps(config))
    ended = user.run("sluice-train", "job", "--config", name, "--local")
    outcome = user.folder / "runs" / lineage / "outcome.json"
    said = json.loads(outcome.read_text()) if outcome.exists() else {}
    return Ended(ended.code, f"{ended.said} {said.get('result', '')}: {said.get('message', '')}")


def dataset_of(user: User, lines: list[str]) -> tuple[Path, str]:
    """A dataset whose train.jsonl holds `lines`, all digests right: its folder, and its manifest's digest."""
    assert build(user).code == 0
    (folder,) = (user.folder / "distillation_dataset").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(f for f in manifest["files"] if f["path"] == "train.jsonl")
    if lines:
        data = "".join(f"{line}\n" for line in lines).encode()
        (folder / "train.jsonl").write_bytes(data)
        entry.update(size=len(data), sha256=f"sha256:{hashlib.sha256(data).hexdigest()}", rows=len(lines))
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    return folder, f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_run_with_the_wrong_digest_of_its_dataset(user: User) -> None:
    folder, _ = dataset_of(user, [])
    helps(job(user, folder, ZEROS), 0, "InvalidInput: dataset.digest", "manifest.json has digest", f"expected {ZEROS}")


def test_a_run_without_its_dataset(user: User) -> None:
    ended = job(user, user.folder / "nowhere", ZEROS)
    helps(ended, 0, "InvalidInput: dataset.uri", "does not exist", "build it with `sluice-train dataset build`")


GOOD_ROW = {
    "id": "1",
    "domain": "general",
    "task": "recall",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
}


def test_a_corrupt_line_of_a_dataset(user: User) -> None:
    folder, digest = dataset_of(user, [json.dumps(GOOD_ROW), json.dumps({**GOOD_ROW, "domain": "sports"})])
    helps(job(user, folder, digest), 0, "InvalidInput", "train.jsonl, line 2: domain", "'general'")


def test_a_dataset_that_was_changed_after_it_was_built(user: User) -> None:
    folder, digest = dataset_of(user, [json.dumps(GOOD_ROW)])
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(GOOD_ROW) + "\n")
    helps(job(user, folder, digest), 0, "InvalidInput", "train.jsonl", "digest")


def test_a_job_configuration_with_a_wrong_field(user: User) -> None:
    ended = job(user, user.folder, ZEROS, spec={"model": "Bot!"})
    helps(ended, 1, "run.json", "spec.model", "spec.recipe: Field required")
