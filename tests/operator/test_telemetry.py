"""Nothing reports home: the switches, and every place where Sluice starts a process."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sluice_contracts.model_version import ModelVersionSpec, PublishSpec, PublishStage
from sluice_contracts.telemetry import OFF_SWITCHES, switch_off
from sluice_contracts.training_run import ManifestReference
from sluice_devcluster import images
from sluice_devcluster.demo.world import World
from sluice_devcluster.programs import built_programs
from sluice_operator.children.gateway import gateway_objects
from sluice_operator.children.publish_job import publish_job
from sluice_operator.children.rayjob import ray_job
from sluice_operator.children.rayservice import Version, ray_service
from sluice_serving.arguments import environment, parse_arguments

REPOSITORY = Path(__file__).parents[2]
SWITCHES = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def containers(rendered: Any) -> Iterator[dict[str, Any]]:
    """Every container of every pod template anywhere in an object."""
    if isinstance(rendered, dict):
        for key in ("containers", "initContainers"):
            yield from rendered.get(key) or []
        if "autoscalerOptions" in rendered:  # of which KubeRay makes one
            yield {"name": "autoscaler"} | rendered["autoscalerOptions"]
        for value in rendered.values():
            yield from containers(value)
    elif isinstance(rendered, list):
        for value in rendered:
            yield from containers(value)


def reporting(found: list[dict[str, Any]]) -> list[str]:
    """Containers that have not all switches set."""
    wanted = {(name, value) for name, value in SWITCHES.items()}
    return [c["name"] for c in found if not wanted <= {(e["name"], e.get("value")) for e in c.get("env") or []}]


def test_the_switches_are_these() -> None:
    assert OFF_SWITCHES == SWITCHES


def test_every_pod_that_the_operator_makes_has_them(make: Any) -> None:
    meta, settings = make.meta("chat"), make.settings()
    manifest = ManifestReference(uri="gs://sluice/runs/a/manifest.json", digest=make.digest)
    version = Version(name="v1", model="support-bot", lineage="l", manifest=manifest)
    run = make.run_spec(hardware={"accelerator": "nvidia-l4", "workers": {"min": 1, "max": 2}})
    published = ModelVersionSpec(model="support-bot", version="v1", manifest=manifest, publish=PublishSpec())
    rendered = [
        ray_service(
            meta, make.pool_spec(hardware={"accelerator": "nvidia-l4"}, replicas={"max": 2}), version, settings
        ),
        ray_service(meta, make.pool_spec(), version, settings),
        ray_job(make.meta("train"), run, "l", 1, settings),
        publish_job(make.meta("v1"), published, "l", 0, PublishStage(percent=100), settings),
        *(body for _, body in gateway_objects(meta, make.pool_spec(), settings)),
    ]
    found = list(containers(rendered))
    assert {c["name"] for c in found} >= {"ray-head", "ray-worker", "gateway", "autoscaler"}
    assert len(found) >= 8
    assert reporting(found) == []


@pytest.mark.apiserver
def test_every_pod_of_the_chart_has_them() -> None:
    done = subprocess.run(
        [str(built_programs() / "helm"), "template", "sluice", "charts/sluice", "--set", "storage.uri=gs://team-models",
         "--set", "images.registry=registry.example.com/sluice", "--set", "releases.refresh.namespaces={support}"],
        capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=True,
    )  # fmt: skip
    found = list(containers(list(yaml.safe_load_all(done.stdout))))
    assert {c["name"] for c in found} >= {"operator", "publisher"}
    assert reporting(found) == []


def test_the_images_have_them_too() -> None:
    for file in sorted((REPOSITORY / "docker").glob("*.Dockerfile")):
        text = re.sub(r"\\\n\s*", " ", file.read_text())
        last = text[text.rindex("\nFROM ") :]
        set_ = {w for line in re.findall(r"^ENV (.*)$", last, re.MULTILINE) for w in shlex.split(line)}
        # Ray, vLLM and the hub's client are in these two; `DO_NOT_TRACK` is for whatever the others may come to hold.
        whole = file.name.split(".")[0] in ("serve", "trainer")
        wanted = SWITCHES if whole else {"DO_NOT_TRACK": "1"}
        assert {f"{name}={value}" for name, value in wanted.items()} <= set_, file.name


def test_what_runs_on_a_laptop_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name)  # they are set for this very process, by tests/conftest.py
    own: dict[str, str] = {"HF_HUB_OFFLINE": "0"}
    switch_off(own)
    assert own == SWITCHES | {"HF_HUB_OFFLINE": "0"}, "a person's own setting wins"
    # The commands that start training or a cluster, asked for no more than their help.
    for command in ("sluice_training.cli", "sluice_devcluster.cli"):
        told = subprocess.run(
            [sys.executable, "-c", f"import sys, os, json, {command} as c\nsys.argv=['x', '--help']\n"
             "try:\n c.main()\nexcept SystemExit:\n pass\nprint('\\n' + json.dumps(dict(os.environ)))"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert SWITCHES.items() <= yaml.safe_load(told.stdout.splitlines()[-1]).items(), command
    # An engine sets its own, also where no pod does.
    args = {"model": "m", "modelVersion": "v", "lineage": "l", "manifestUri": "gs://bucket/m.json"}
    engine = environment(parse_arguments(args | {"manifestDigest": "sha256:" + "1" * 64}))
    assert SWITCHES.items() <= engine.items()
    # The demo's commands, the local cluster's image, and `make`.
    demo = World(tmp_path, tmp_path, _ground(tmp_path), tmp_path, tmp_path, "support").environment
    assert SWITCHES.items() <= demo.items()
    assert images.OFF_SWITCHES == SWITCHES
    exported = dict(re.findall(r"^export (\w+) := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert SWITCHES.items() <= exported.items()
    assert not SWITCHES.keys() & os.environ.keys()


def _ground(folder: Path) -> Any:
    class Ground:
        kubeconfig = folder / "kubeconfig"
        emulator = ""

    return Ground()
