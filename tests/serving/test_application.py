"""What `app:build` makes of its arguments, and how it makes sure of the files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.manifest import Artifact
from sluice_serving.arguments import (
    ServeArguments,
    deployment_options,
    engine_kwargs,
    environment,
    kv_cache_bytes,
    llm_config,
    parse_arguments,
)
from sluice_serving.artifacts import ArtifactError, fetch_model, read_manifest, relative_paths
from sluice_storage import ChecksumError, NotFoundError

DIGEST = "sha256:" + "1" * 64


def arguments(**more: Any) -> ServeArguments:
    values = {
        "model": "support-bot", "modelVersion": "support-bot-7", "lineage": "l", "manifestUri": "gs://bucket/m.json",
        "manifestDigest": DIGEST,
    }  # fmt: skip
    return ServeArguments.model_validate(values | more)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"manifestDigest": "sha256:short"}, "manifestDigest"),
        ({"manifestUri": "https://elsewhere/m.json"}, "manifestUri"),
        ({"colour": "blue"}, "colour"),
        ({"minReplicas": 3}, "minReplicas"),
        ({"accelerator": "tpu-v6e-slice"}, "needs a topology"),
        ({"accelerator": "abacus"}, "accelerator"),
        ({"engineArgs": {"trust-remote-code": "true"}}, "trust-remote-code"),
        ({"engineArgs": {"model": "other"}}, "set by Sluice"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        parse_arguments(arguments().wire() | change)


def test_on_cpu_one_logical_cpu_is_enough_and_nothing_is_compiled() -> None:
    chosen = arguments(maxModelLen=512, maxOngoing=5, engineArgs={"seed": "3", "block-size": "32"})
    kwargs = engine_kwargs(chosen, {})
    assert kwargs["enforce_eager"] is True
    assert (kwargs["max_num_seqs"], kwargs["max_model_len"], kwargs["seed"], kwargs["block_size"]) == (5, 512, 3, 32)
    assert kwargs["kv_cache_memory_bytes"] == 64 << 20
    options = deployment_options(chosen)
    assert options["placement_group_bundles"] == [{"CPU": 1}]
    assert options["num_replicas"] == 1
    assert environment(chosen)["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in environment(arguments(engineArgs={"enforce_eager": "false"}))


def test_gpus_and_tpus_are_a_matter_of_the_spec_alone() -> None:
    gpu = arguments(accelerator="nvidia-l4", count=2)
    fields = llm_config(gpu, "/m", {})
    assert fields["accelerator_type"] == "L4"
    assert fields["accelerator_config"] == {"kind": "gpu"}
    assert fields["engine_kwargs"]["tensor_parallel_size"] == 2
    assert [b["GPU"] for b in fields["placement_group_config"]["bundles"]] == [1, 1]
    assert deployment_options(gpu)["placement_group_strategy"] == "PACK"
    tpu = arguments(accelerator="tpu-v6e-slice", topology="2x4")
    fields = llm_config(tpu, "/m", {})
    assert fields["accelerator_type"] == "TPU-V6E"
    assert fields["accelerator_config"] == {"kind": "tpu", "topology": "2x4"}
    assert "placement_group_config" not in fields


def test_nothing_reports_home_and_no_prompt_is_logged() -> None:
    for accelerator in ("cpu", "nvidia-l4"):
        variables = environment(arguments(accelerator=accelerator))
        assert variables["VLLM_NO_USAGE_STATS"] == variables["DO_NOT_TRACK"] == variables["HF_HUB_OFFLINE"] == "1"
        assert engine_kwargs(arguments(accelerator=accelerator), {})["enable_log_requests"] is False


def test_the_key_value_cache_fits_the_model() -> None:
    llama_8b = {
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    assert kv_cache_bytes(llama_8b, 2048, 8) == 131_072 * (2048 + 256) * 8
    assert kv_cache_bytes(llama_8b, 131_072, 64) == 4 << 30
    assert kv_cache_bytes({}, 64, 1) == 64 << 20


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with three served files and one for devices."""
    folder = tmp_path / "run"
    for name, text in {
        "export/safetensors/config.json": "{}",
        "export/safetensors/model.safetensors": "weights",
        "export/safetensors/sub/extra.txt": "more",
        "export/gguf/m-Q8_0.gguf": "device",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def artifacts(run: Path) -> list[Artifact]:
    return [
        Artifact(
            path=p.relative_to(run).as_posix(),
            role="served",
            size=p.stat().st_size,
            sha256="sha256:" + hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in sorted((run / "export/safetensors").rglob("*"))
        if p.is_file()
    ]


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_model_folder_holds_the_served_files_and_no_others(run: Path, tmp_path: Path) -> None:
    folder = fetch_model(f"file://{run}", artifacts(run), tmp_path / "cache")
    assert contents(folder) == {"config.json": "{}", "model.safetensors": "weights", "sub/extra.txt": "more"}


def test_a_changed_file_is_refused_and_not_kept(run: Path, tmp_path: Path) -> None:
    wanted = artifacts(run)
    (run / "export/safetensors/model.safetensors").write_text("w3ights")
    with pytest.raises(ChecksumError, match=r"model\.safetensors has digest .* refusing to serve it"):
        fetch_model(f"file://{run}", wanted, tmp_path / "cache")
    (run / "export/safetensors/model.safetensors").write_text("weights and more")
    with pytest.raises(ChecksumError, match="has 16 bytes, the manifest says 7"):
        fetch_model(f"file://{run}", wanted, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and "w3" in p.read_text()]
    (run / "export/safetensors/model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors does not exist"):
        fetch_model(f"file://{run}", wanted, tmp_path / "cache")


def test_the_cache_saves_the_download_but_not_the_check(run: Path, tmp_path: Path) -> None:
    cache, wanted = tmp_path / "cache", artifacts(run)
    folder = fetch_model(f"file://{run}", wanted, cache)
    (run / "export").rename(tmp_path / "gone")
    assert fetch_model(f"file://{run}", wanted, cache) == folder  # all from the cache
    (tmp_path / "gone").rename(run / "export")
    (folder / "model.safetensors").write_text("evil")  # a link: this changes the cached file as well
    (folder / "evil.py").write_text("import os")
    again = fetch_model(f"file://{run}", wanted, cache)
    assert contents(again) == {"config.json": "{}", "model.safetensors": "weights", "sub/extra.txt": "more"}


def test_paths_are_relative_to_the_folder_that_holds_them_all(run: Path) -> None:
    assert relative_paths(artifacts(run)) == ["config.json", "model.safetensors", "sub/extra.txt"]
    assert relative_paths(artifacts(run)[:1]) == ["config.json"]


def manifest(run: Path, **more: Any) -> dict[str, Any]:
    zero, uri = "sha256:" + "0" * 64, f"file://{run}"
    return {
        "model": "support-bot", "lineage": "l", "trainingRun": "r", "runUri": uri,
        "dataset": {"runId": "d", "uri": uri, "digest": zero}, "baseDigest": zero, "code": {"gitSha": "0"},
        "recipe": {"method": "scratch", "steps": 1}, "evaluation": {"uri": uri, "digest": zero, "passed": True},
        "parityUri": uri, "parityDigest": zero, "createdAt": "2026-01-01T00:00:00Z",
        "artifacts": [a.wire() for a in artifacts(run)],
    } | more  # fmt: skip


def written(run: Path, value: dict[str, Any]) -> tuple[str, str]:
    data = json.dumps(value).encode()
    (run / "manifest.json").write_bytes(data)
    return f"file://{run}/manifest.json", "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_manifest_is_taken_only_if_it_is_the_one_and_of_this_model(run: Path) -> None:
    uri, digest = written(run, manifest(run))
    assert len(read_manifest(uri, digest, model="support-bot", lineage="l").served()) == 3
    with pytest.raises(ChecksumError, match="was changed after it was recorded"):
        read_manifest(uri, DIGEST, model="support-bot", lineage="l")
    with pytest.raises(ArtifactError, match="serves 'other-bot'"):
        read_manifest(uri, digest, model="other-bot", lineage="l")
    with pytest.raises(ArtifactError, match="has lineage l, but m"):
        read_manifest(uri, digest, model="support-bot", lineage="m")
    uri, digest = written(run, manifest(run, artifacts=[]))
    with pytest.raises(ArtifactError, match=r"no valid manifest: artifacts"):
        read_manifest(uri, digest, model="support-bot", lineage="l")
    devices = [a.wire() | {"role": "device"} for a in artifacts(run)]
    uri, digest = written(run, manifest(run, artifacts=devices))
    with pytest.raises(ArtifactError, match="lists no file with role 'served'"):
        read_manifest(uri, digest, model="support-bot", lineage="l")
