"""The definitions in a real API server: good manifests get their defaults, bad ones a message that helps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contracts import manifests
from tests.contracts.manifests import DIGEST, EXAMPLES, POOL, RUN, TUNED, VERSION, Manifest

pytestmark = pytest.mark.apiserver


def changed(manifest: Manifest, path: str, value: object) -> Manifest:
    """A copy of `manifest` with one field set; None removes it."""
    return manifests.changed(manifest, {path: value})


@pytest.mark.parametrize(
    "file", [*sorted(EXAMPLES.glob("trainingrun-*.yaml")), EXAMPLES / "inferencepool.yaml"], ids=lambda p: p.stem
)
def test_examples_are_accepted(kubectl: Any, file: Path) -> None:
    kubectl.applied(yaml.safe_load(file.read_text()))


def test_defaults_are_filled_in_to_the_last_level(kubectl: Any) -> None:
    spec = kubectl.applied(changed(RUN, "metadata.name", "defaults"))["spec"]
    assert spec["suspend"] is False
    assert spec["hardware"]["workers"] == {"min": 1, "max": 1}
    assert spec["limits"]["maxPreemptions"] == 20
    minimal = changed(changed(RUN, "metadata.name", "minimal"), "spec.hardware", None)
    for field in ("checkpoint", "evaluation", "export", "limits"):
        minimal = changed(minimal, f"spec.{field}", None)
    spec = kubectl.applied(minimal)["spec"]
    assert spec["hardware"]["accelerator"] == "cpu"
    assert spec["export"]["parity"]["minSameTop"] == 0.93
    assert spec["checkpoint"] == {"everySteps": 50, "keep": 2}
    assert spec["evaluation"]["suites"] == ["intent", "grounding", "safety"]


BAD = [
    # what is wrong, base manifest, field, value, what kubectl must say; all the rest is in test_bad_manifests.py
    ("unknown field", RUN, "spec.learningRate", 0.1, ".spec.learningRate: field not declared in schema"),
    ("unknown accelerator", RUN, "spec.hardware.accelerator", "nvidia-l5", 'supported values: "cpu"'),
    ("fine-tuning nothing", TUNED, "spec.base", None, "add base, or choose method scratch"),
    ("steps that fall", POOL, "spec.rollout.steps", [50, 10], "rollout.steps must rise strictly"),
    ("stages that never end", VERSION, "spec.publish", {"stages": [{"percent": 5}]}, "end at percent 100"),
]


@pytest.mark.parametrize(
    ("base", "path", "value", "message"), [b[1:] for b in BAD], ids=[b[0].replace(" ", "-") for b in BAD]
)
def test_kubectl_tells_why_a_manifest_is_refused(
    kubectl: Any, base: Manifest, path: str, value: object, message: str
) -> None:
    assert message in kubectl.refusal(changed(changed(base, "metadata.name", "bad"), path, value))


ALLOWED: list[tuple[str, Manifest, Callable[[Manifest], Manifest]]] = [
    ("suspend", RUN, lambda m: changed(m, "spec.suspend", True)),
    ("limits", RUN, lambda m: changed(m, "spec.limits.maxFailures", 5)),
    ("publish", VERSION, lambda m: changed(m, "spec.publish", {"channel": "stable"})),
    ("wanted version", POOL, lambda m: changed(m, "spec.modelVersion", "support-bot-v2")),
]


@pytest.mark.parametrize(("base", "change"), [a[1:] for a in ALLOWED], ids=[a[0] for a in ALLOWED])
def test_what_people_steer_by_can_change(kubectl: Any, base: Manifest, change: Callable[[Manifest], Manifest]) -> None:
    first = changed(base, "metadata.name", "steered")
    kubectl.applied(first)
    kubectl.applied(change(first))


def test_status_is_its_own_subresource_and_pruned(kubectl: Any) -> None:
    run = changed(RUN, "metadata.name", "status")
    kubectl.applied(run | {"status": {"attempts": 3}})
    read = yaml.safe_load(kubectl("get", "trun", "status", "-n", "support", "-o", "yaml").stdout)
    assert "status" not in read
    progress = '{"stage": "training", "step": 7, "totalSteps": 9, "loss": 1.25}'
    cost = '{"total": "12.30", "currency": "EUR", "perWorkerHour": "2.8", "asOf": "2026-11-21T12:00:00Z"}'
    patch = f'{{"status": {{"attempts": 3, "loss": 1.0, "progress": {progress}, "eta": "4m30s", "cost": {cost}}}}}'
    written = kubectl(
        *("patch", "trun", "status", "-n", "support", "--subresource", "status", "--type", "merge", "-p", patch)
    )
    assert written.returncode == 0, written.stderr
    read = yaml.safe_load(kubectl("get", "trun", "status", "-n", "support", "-o", "yaml").stdout)
    assert read["status"]["attempts"] == 3
    assert "loss" not in read["status"]
    row = kubectl("get", "trun", "status", "-n", "support").stdout.splitlines()[1]
    assert row.split()[:8] == ["status", "support-bot", "training", "7", "9", "1.25", "4m30s", "12.30"]


def test_a_pool_shows_its_versions_and_the_candidates_share(kubectl: Any) -> None:
    kubectl.applied(changed(POOL, "metadata.name", "shown"))
    served = (
        '{"modelVersion": "%s", "lineage": "l", "manifestDigest": "' + DIGEST + '", "rayService": "%s", "ready": true}'
    )
    patch = (
        '{"status": {"stable": '
        + served % ("v1", "a")
        + ', "candidate": '
        + served % ("v2", "b")
        + ', "step": 1, "weights": [{"modelVersion": "v1", "percent": 90}, {"modelVersion": "v2", "percent": 10}]}}'
    )
    written = kubectl(
        *("patch", "ipool", "shown", "-n", "support", "--subresource", "status", "--type", "merge", "-p", patch)
    )
    assert written.returncode == 0, written.stderr
    row = kubectl("get", "ipool", "shown", "-n", "support").stdout.splitlines()[1]
    assert row.split()[:6] == ["shown", "support-bot", "v1", "v2", "10", "1"]


def test_all_three_kinds_answer_to_one_category(kubectl: Any) -> None:
    names = kubectl("api-resources", "--categories=sluice", "-o", "name").stdout.split()
    assert sorted(names) == ["inferencepools.sluice.dev", "modelversions.sluice.dev", "trainingruns.sluice.dev"]
