"""What `app:build` makes of its arguments, and how it makes sure of the files."""

import ast
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.engine_arguments import ARGUMENTS
from sluice_contracts.manifest import Artifact
from sluice_serving.arguments import (
    ServeArguments,
    deployment_options,
    engine_kwargs,
    environment,
    kv_cache_bytes,
    llm_config,
    parse_arguments,
    prepare,
)
from sluice_serving.artifacts import (
    ArtifactError,
    fetch_model,
    read_manifest,
    refuse_code,
    relative_paths,
    unservable,
)
from sluice_storage import ChecksumError, NotFoundError

DIGEST = "sha256:" + "1" * 64


def arguments(**more: Any) -> ServeArguments:
    values = {
        "model": "support-bot", "modelVersion": "support-bot-7", "lineage": "l", "manifestUri": "gs://bucket/m.json",
        "manifestDigest": DIGEST,
    }  # fmt: skip
    return ServeArguments.model_validate(values | more)


def test_an_engine_sends_spans_only_where_the_pool_says_and_only_of_requests_the_gateway_has_sampled() -> None:
    silent: dict[str, str] = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4317", "OTEL_TRACES_SAMPLER": "always_on"}
    prepare(arguments(), silent)
    assert not [name for name in silent if name.startswith("OTEL")]
    assert "otlp_traces_endpoint" not in engine_kwargs(arguments(), {})
    chosen = arguments(tracesEndpoint="http://collector:4318/v1/traces", lineage="a,b=c")
    kwargs = engine_kwargs(chosen, {})
    assert kwargs["otlp_traces_endpoint"] == "http://collector:4318/v1/traces"
    assert kwargs["disable_log_stats"] is False  # vLLM's spans are made from them
    traced = {"OTEL_TRACES_SAMPLER": "always_on", "HF_HUB_OFFLINE": "0"}
    prepare(chosen, traced)
    assert traced["OTEL_TRACES_SAMPLER"] == "parentbased_always_off"
    assert traced["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert traced["OTEL_RESOURCE_ATTRIBUTES"] == "sluice.version=support-bot-7,sluice.lineage=a%2Cb%3Dc"
    assert traced["HF_HUB_OFFLINE"] == "0"  # what else the pod sets holds


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
        ({"engineArgs": {"logits-processors": '["my.module:Evil"]'}}, "would load or run what no manifest covers"),
        ({"engineArgs": {"sede": "3"}}, "'sede' is not one that a pool can set: it is unknown to vLLM"),
        ({"engineArgs": {"seed": "three"}}, "'seed' must be a whole number from 0; it is 'three'"),
        ({"engineArgs": {"block-size": "16", "block_size": "32"}}, "is given twice"),
        ({"engineArgs": {"tensor_parallel_size": "2"}}, "must be 1, the devices of one engine"),
        ({"accelerator": "nvidia-l4", "count": 4, "engineArgs": {"pipeline_parallel_size": "3"}}, "1 x .* 3 must be 4"),
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


def test_no_prompt_is_logged_and_no_code_of_a_model_is_run() -> None:
    for accelerator in ("cpu", "nvidia-l4"):
        kwargs = engine_kwargs(arguments(accelerator=accelerator), {})
        assert kwargs["enable_log_requests"] is kwargs["trust_remote_code"] is False
        assert environment(arguments(accelerator=accelerator))["RAYLLM_ENABLE_REQUEST_PROMPT_LOGS"] == "0"


def test_every_argument_that_a_pool_may_set_is_one_of_vllms() -> None:
    package = Path(str(importlib.util.find_spec("vllm").submodule_search_locations[0]))  # type: ignore[union-attr,index]
    known = set()
    for file in ("engine/arg_utils.py", "entrypoints/launchers/cli_args.py"):  # read, not imported: that takes seconds
        for node in ast.walk(ast.parse((package / file).read_text())):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                known.add(node.target.id)
    assert ARGUMENTS.keys() - known == set()
    page = (Path(__file__).parents[2] / "docs" / "engine.md").read_text()
    table = page[page.index("| value | arguments |") : page.index("Names may have dashes")]
    assert set(re.findall(r"`(\w+)`", table)) == ARGUMENTS.keys()
    own = engine_kwargs(arguments(adapterSlots=2), {}).keys() - {"max_num_seqs", "enforce_eager"}
    assert own & ARGUMENTS.keys() == {"kv_cache_memory_bytes", "tensor_parallel_size"}, "else a pool could undo ours"


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
    assert not (folder / "model.safetensors").stat().st_mode & 0o222, "nobody changes it by accident"
    (folder / "model.safetensors").chmod(0o644)
    (folder / "model.safetensors").write_text("evil")  # a link: this changes the cached file as well
    (folder / "evil.py").write_text("import os")
    again = fetch_model(f"file://{run}", wanted, cache)
    assert contents(again) == {"config.json": "{}", "model.safetensors": "weights", "sub/extra.txt": "more"}


def test_no_link_leads_out_of_what_was_verified(run: Path, tmp_path: Path) -> None:
    cache, wanted = tmp_path / "cache", artifacts(run)
    folder = fetch_model(f"file://{run}", wanted, cache)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "evil.py").write_text("import os")
    (folder / "more").symlink_to(tmp_path / "elsewhere")  # a folder behind a link is an addition like any other
    assert not (fetch_model(f"file://{run}", wanted, cache) / "more").exists()
    blob = next(p for p in (cache / "sha256").iterdir() if p.read_text() == "weights")
    blob.unlink()
    (tmp_path / "same").write_text("weights")  # right while it is looked at, and changed afterwards
    blob.symlink_to(tmp_path / "same")
    fetch_model(f"file://{run}", wanted, cache)
    assert not blob.is_symlink()
    assert blob.read_text() == "weights"


def test_a_cache_that_others_may_write_to_is_not_used(run: Path, tmp_path: Path) -> None:
    for name in ("sha256", "models"):
        cache = tmp_path / f"cache-{name}"
        (cache / name).mkdir(parents=True)
        (cache / name).chmod(0o777)
        with pytest.raises(ArtifactError, match=f"{name} can be changed by other users .* set SLUICE_MODEL_CACHE"):
            fetch_model(f"file://{run}", artifacts(run), cache)
        (cache / name).rmdir()
        (tmp_path / f"other-{name}").mkdir()
        (cache / name).symlink_to(tmp_path / f"other-{name}")
        with pytest.raises(ArtifactError, match=f"{name} can be changed"):
            fetch_model(f"file://{run}", artifacts(run), cache)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["config.json", "model.safetensors", "modeling_bot.py"], "lists modeling_bot.py .* never run"),
        (["config.json", "pytorch_model.bin"], "lists pytorch_model.bin .* must be safetensors"),
        (["config.json", "model.safetensors", "extra.pkl"], "extra.pkl"),
        (["config.json", "original/consolidated.00.pth"], "consolidated.00.pth"),
        (["model.safetensors"], "no whole model to load"),
        (["config.json", "tokenizer.json"], "no whole model to load"),
    ],
)
def test_only_files_of_data_are_served(paths: list[str], words: str) -> None:
    told = unservable(paths)
    assert told is not None
    assert re.search(words, told)


def test_a_model_that_names_code_is_refused(run: Path, tmp_path: Path) -> None:
    served = run / "export/safetensors"
    (served / "tokenizer_config.json").write_text('{"chat_template": "auto_map"}')
    refuse_code(fetch_model(f"file://{run}", artifacts(run), tmp_path / "cache"))
    (served / "tokenizer_config.json").write_text('{"inner": [{"auto_map": {"AutoTokenizer": ["bot.Tok", null]}}]}')
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json names code .*auto_map.* never run"):
        refuse_code(fetch_model(f"file://{run}", artifacts(run), tmp_path / "cache"))
    (served / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json is not JSON"):
        refuse_code(fetch_model(f"file://{run}", artifacts(run), tmp_path / "cache"))


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
    evil = artifacts(run)[1].wire() | {"path": "export/safetensors/modeling_bot.py"}
    uri, digest = written(run, manifest(run, artifacts=[*(a.wire() for a in artifacts(run)), evil]))
    with pytest.raises(ArtifactError, match=r"manifest\.json lists export/safetensors/modeling_bot\.py"):
        read_manifest(uri, digest, model="support-bot", lineage="l")
    uri, digest = written(run, manifest(run, artifacts=[]))
    with pytest.raises(ArtifactError, match=r"no valid manifest: artifacts"):
        read_manifest(uri, digest, model="support-bot", lineage="l")
    devices = [a.wire() | {"role": "device"} for a in artifacts(run)]
    uri, digest = written(run, manifest(run, artifacts=devices))
    with pytest.raises(ArtifactError, match="lists no file with role 'served'"):
        read_manifest(uri, digest, model="support-bot", lineage="l")
