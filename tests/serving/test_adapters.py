"""Which adapters an engine takes, and how it comes by them. (On a real engine: test_engine.py.)"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from sluice_contracts.adapters import AdapterArguments, adapter_application, adapter_name
from sluice_serving.adapters import SWEEP_SECONDS, Adapters, configured, read_adapter
from sluice_serving.arguments import ServeArguments, engine_kwargs, parse_arguments, validated
from sluice_serving.artifacts import ArtifactError
from sluice_storage import ChecksumError

BASE, OTHER = "sha256:" + "b" * 64, "sha256:" + "c" * 64


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def publish(run: Path, base: str = BASE, names: tuple[str, ...] = ("adapter_config.json", "adapter_model.safetensors"),
            **more: Any) -> dict[str, Any]:  # fmt: skip
    """A run folder with an adapter; what its application is told."""
    folder = run / "export" / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = []
    for name in names:
        (folder / name).write_text(f"{name} of {run.name}")
        data = (folder / name).read_bytes()
        artifacts.append(
            {"path": f"export/adapter/{name}", "role": "adapter", "size": len(data), "sha256": digest(data)}
        )
    uri = f"file://{run}"
    manifest = {
        "model": "support-bot", "lineage": "l", "trainingRun": "r", "runUri": uri,
        "dataset": {"runId": "d", "uri": uri, "digest": BASE}, "baseDigest": base, "code": {"gitSha": "0"},
        "recipe": {"method": "lora", "steps": 1, "lora": {}},
        "evaluation": {"uri": uri, "digest": BASE, "passed": True}, "parityUri": uri, "parityDigest": BASE,
        "createdAt": "2026-01-01T00:00:00Z", "artifacts": artifacts,
    }  # fmt: skip
    data = json.dumps(manifest).encode()
    (run / "manifest.json").write_bytes(data)
    return {
        "name": adapter_name("support-bot", digest(data)), "model": "support-bot", "modelVersion": "v2",
        "lineage": "l", "manifestUri": f"{uri}/manifest.json", "manifestDigest": digest(data), "baseDigest": BASE,
    } | more  # fmt: skip


def read(told: dict[str, Any]) -> AdapterArguments:
    return AdapterArguments.model_validate(told)


class Engine:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.loaded: dict[str, list[str]] = {}
        self.refuses = False

    async def load_adapter(self, name: str, folder: str) -> None:
        if self.refuses:
            raise RuntimeError("LoRA rank 64 is greater than max_lora_rank 16")
        self.loaded[name] = sorted(os.listdir(folder))

    async def unload_adapter(self, name: str) -> None:
        del self.loaded[name]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    told = publish(tmp_path, base=OTHER)
    with pytest.raises(ArtifactError, match="is an adapter on the version with manifest sha256:cccc"):
        read_adapter(read(told))


@pytest.mark.parametrize("names", [("adapter_config.json",), ("adapter_config.json", "adapter_model.bin"), ("a", "b")])
def test_other_files_than_vllm_wants_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ArtifactError, match=r"must list adapter_config\.json and adapter_model\.safetensors"):
        read_adapter(read(publish(tmp_path, names=names)))


def test_a_manifest_that_was_changed_or_is_anothers_is_refused(tmp_path: Path) -> None:
    told = publish(tmp_path)
    with pytest.raises(ArtifactError, match="has lineage l, but m"):
        read_adapter(read(told | {"lineage": "m"}))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ChecksumError, match="was changed after it was recorded"):
        read_adapter(read(told))


async def test_it_is_loaded_once_from_verified_files_and_nothing_else(tmp_path: Path) -> None:
    engine = Engine()
    adapters = Adapters(engine, BASE, tmp_path / "cache")
    told = read(publish(tmp_path / "v2"))
    await adapters.load(told)
    assert engine.loaded == {told.name: ["adapter_config.json", "adapter_model.safetensors"]}
    engine.refuses = True
    await adapters.load(told)  # the engine is not asked again

    changed = read(publish(tmp_path / "v3"))
    (tmp_path / "v3/export/adapter/adapter_model.safetensors").write_text("adapter_model.safetensors of v4")
    with pytest.raises(ChecksumError, match="refusing to serve it"):
        await adapters.load(changed)
    assert adapters.names == [told.name]


async def test_an_engine_with_other_weights_does_not_take_it(tmp_path: Path) -> None:
    engine = Engine()
    with pytest.raises(ArtifactError, match="this engine runs sha256:cccc"):
        await Adapters(engine, OTHER, tmp_path / "cache").load(read(publish(tmp_path / "v2")))
    assert not engine.loaded


async def test_what_is_no_longer_configured_is_unloaded_and_what_is_wrong_left_out(tmp_path: Path) -> None:
    engine, clock = Engine(), Clock()
    adapters = Adapters(engine, BASE, tmp_path / "cache", clock)
    right, wrong = read(publish(tmp_path / "v2")), read(publish(tmp_path / "v3", base=OTHER))
    clock.now = SWEEP_SECONDS
    assert not adapters.due(), "there is nothing to sweep"
    await adapters.take({right.name: right, wrong.name: wrong})
    assert list(engine.loaded) == [right.name]
    assert adapters.due()
    await adapters.sweep({right.name: right})
    assert list(engine.loaded) == [right.name]
    assert not adapters.due()
    await adapters.sweep({})
    assert engine.loaded == {}


def test_the_configuration_says_which_there_should_be(tmp_path: Path) -> None:
    told = publish(tmp_path)
    name = adapter_application(told["manifestDigest"])
    running = {"status": "RUNNING", "deployed_app_config": {"args": told}}
    odd = {"status": "RUNNING", "deployed_app_config": {"args": {"name": "x"}}}
    found = configured(
        {"llm": running, name: running, "adapter-odd": odd, "adapter-gone": running | {"status": "DELETING"}}
    )
    assert found == {told["name"]: read(told)}


def test_a_wrong_argument_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="application args: manifestDigest"):
        validated(AdapterArguments, publish(tmp_path) | {"manifestDigest": "sha256:short"})


def test_room_is_made_only_where_it_is_asked_for() -> None:
    values = {
        "model": "support-bot", "modelVersion": "v1", "lineage": "l", "manifestUri": "gs://bucket/m.json",
        "manifestDigest": BASE,
    }  # fmt: skip
    assert "enable_lora" not in engine_kwargs(ServeArguments.model_validate(values), {})
    kwargs = engine_kwargs(ServeArguments.model_validate(values | {"adapterSlots": 3, "maxAdapterRank": 32}), {})
    assert (kwargs["enable_lora"], kwargs["max_loras"], kwargs["max_lora_rank"]) == (True, 3, 32)
    assert kwargs["max_cpu_loras"] >= kwargs["max_loras"]
    with pytest.raises(ValueError, match="maxAdapterRank"):
        parse_arguments(values | {"adapterSlots": 3, "maxAdapterRank": 33})
    with pytest.raises(ValueError, match="set by Sluice"):
        parse_arguments(values | {"engineArgs": {"enable-lora": "true"}})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's, as it is imported
def test_its_application_keeps_no_machine_awake(tmp_path: Path) -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME
    from sluice_serving.adapter_app import build

    told = publish(tmp_path / "run")
    options = build(told)._bound_deployment.ray_actor_options
    assert options["num_cpus"] == 0
    assert options["resources"] == {HEAD_NODE_RESOURCE_NAME: 0.001}, "else it may lie beside an engine that is to sleep"
