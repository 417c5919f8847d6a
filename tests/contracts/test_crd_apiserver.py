"""The definitions in a real API server: good manifests get their defaults, bad ones a message that helps."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

pytestmark = pytest.mark.apiserver

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
RUN: Manifest = yaml.safe_load((EXAMPLES / "trainingrun-v1.yaml").read_text())
TUNED: Manifest = yaml.safe_load((EXAMPLES / "trainingrun-v2.yaml").read_text())
POOL: Manifest = yaml.safe_load((EXAMPLES / "inferencepool.yaml").read_text())
DIGEST = "sha256:" + "1" * 64
VERSION: Manifest = {
    "apiVersion": "sluice.dev/v1alpha1",
    "kind": "ModelVersion",
    "metadata": {"name": "support-bot-v1", "namespace": "support"},
    "spec": {
        "model": "support-bot",
        "version": "support-bot-v1",
        "manifest": {"uri": "gs://sluice/runs/1/manifest.json", "digest": DIGEST},
    },
}


def changed(manifest: Manifest, path: str, value: object) -> Manifest:
    """A copy of `manifest` with one field set; None removes it."""
    result = copy.deepcopy(manifest)
    *folders, last = path.split(".")
    inner: Any = result
    for name in folders:
        inner = inner[int(name)] if isinstance(inner, list) else inner.setdefault(name, {})
    if value is None:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return result


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
    # what is wrong, base manifest, field, value, what the message must say
    ("unknown field", RUN, "spec.learningRate", 0.1, ".spec.learningRate: field not declared in schema"),
    ("unknown accelerator", RUN, "spec.hardware.accelerator", "nvidia-l5", 'supported values: "cpu"'),
    ("GPU count on a CPU", RUN, "spec.hardware.count", 1, "leave it out with accelerator cpu"),
    ("TPU without topology", RUN, "spec.hardware.accelerator", "tpu-v6e-slice", "a TPU needs hardware.topology"),
    ("topology on a CPU", RUN, "spec.hardware.topology", "2x4", "hardware.topology is for TPUs only"),
    ("odd topology", RUN, "spec.hardware.topology", "2by4", "spec.hardware.topology"),
    ("workers upside down", RUN, "spec.hardware.workers", {"min": 3, "max": 2}, "workers.min must not be above"),
    ("unknown method", RUN, "spec.recipe.method", "magic", '"scratch", "sft", "lora"'),
    ("no steps", RUN, "spec.recipe.steps", 0, "greater than or equal to 1"),
    ("zero learning rate", RUN, "spec.recipe.learningRate", 0, "greater than 0"),
    ("scratch with a base", RUN, "spec.base", {"modelVersion": "x"}, "scratch starts from nothing: remove base"),
    ("fine-tuning nothing", TUNED, "spec.base", None, "add base, or choose method scratch"),
    ("two bases", TUNED, "spec.base.uri", "gs://b/m", "either modelVersion alone, or uri together with digest"),
    ("lora without its block", TUNED, "spec.recipe.lora", None, "write `lora: {}`"),
    ("lora block with sft", TUNED, "spec.recipe.method", "sft", "recipe.lora goes with method lora"),
    ("short digest", RUN, "spec.dataset.digest", "sha256:abc", "spec.dataset.digest"),
    ("an s3 bucket", RUN, "spec.dataset.uri", "s3://bucket/data", "spec.dataset.uri"),
    ("no dataset", RUN, "spec.dataset", None, "spec.dataset: Required value"),
    ("gate without a bound", RUN, "spec.evaluation.gates", [{"metric": "intent.accuracy"}], "a gate needs a bound"),
    (
        "margin without a baseline",
        RUN,
        "spec.evaluation.gates",
        [{"metric": "intent.accuracy", "min": 0.5, "margin": 0.1}],
        "margin goes with nonInferiorTo",
    ),
    (
        "gate on a suite that is not run",
        RUN,
        "spec.evaluation.gates",
        [{"metric": "instruction.accuracy", "min": 0.5}],
        "must begin with one of evaluation.suites",
    ),
    ("waiver without a reason", RUN, "spec.evaluation.waiver", {"approvedBy": "me"}, "waiver.reason: Required value"),
    ("money as a number", RUN, "spec.limits.maxCost", 40, "spec.limits.maxCost: expected string"),
    ("a limit nobody keeps yet", RUN, "spec.limits.maxCost", "40.00", "limits.maxCost is not built yet"),
    ("mirroring", POOL, "spec.rollout.mirror", {"percent": 5}, "rollout.mirror is not built yet"),
    ("a cache", POOL, "spec.gateway.cache", {"maxEntries": 9}, "gateway.cache is not built yet"),
    ("odd duration", RUN, "spec.limits.maxDuration", "6 hours", "spec.limits.maxDuration"),
    ("long name", RUN, "metadata.name", "a" * 39, "metadata.name must have at most 38"),
    ("name that begins with a digit", RUN, "metadata.name", "7b", "begin with a letter"),
    ("steps that fall", POOL, "spec.rollout.steps", [50, 10], "rollout.steps must rise strictly"),
    ("steps that stand still", POOL, "spec.rollout.steps", [10, 10], "rollout.steps must rise strictly"),
    ("a step of 100", POOL, "spec.rollout.steps", [10, 100], "less than or equal to 99"),
    ("replicas upside down", POOL, "spec.replicas", {"min": 3, "max": 1}, "replicas.min must not be above"),
    ("no keys", POOL, "spec.gateway.auth", None, "spec.gateway.auth: Required value"),
    ("unknown metric", POOL, "spec.rollout.metrics.0.name", "vibes", '"errorRate", "ttftP95"'),
    ("the same metric twice", POOL, "spec.rollout.metrics.1.name", "errorRate", "duplicate entries for key"),
    (
        "metrics that only look",
        POOL,
        "spec.rollout.metrics",
        [{"name": "errorRate", "tolerance": 0.1, "dryRun": True}],
        "at least one metric without dryRun",
    ),
    (
        "stages that never end",
        VERSION,
        "spec.publish",
        {"stages": [{"percent": 5}, {"percent": 50}]},
        "end at percent 100",
    ),
    (
        "stages that fall",
        VERSION,
        "spec.publish",
        {"stages": [{"percent": 50}, {"percent": 5}, {"percent": 100}]},
        "publish.stages must rise strictly",
    ),
]


@pytest.mark.parametrize(
    ("base", "path", "value", "message"), [b[1:] for b in BAD], ids=[b[0].replace(" ", "-") for b in BAD]
)
def test_a_bad_manifest_is_refused_with_a_message_that_helps(
    kubectl: Any, base: Manifest, path: str, value: object, message: str
) -> None:
    bad = changed(base, path, value)
    if path != "metadata.name":
        bad = changed(bad, "metadata.name", "bad")
    assert message in kubectl.refusal(bad)


WITH_OVERLAY = changed(RUN, "spec.podTemplate", {"spec": {"nodeName": "a"}})
FROZEN: list[tuple[str, Manifest, str, object, str]] = [
    (
        "recipe",
        TUNED,
        "spec.recipe.seed",
        8,
        "spec.recipe cannot be changed: apply a new TrainingRun under another name",
    ),
    ("base", TUNED, "spec.base.modelVersion", "other", "spec.base cannot be changed"),
    ("pod overlay", WITH_OVERLAY, "spec.podTemplate.spec.nodeName", "b", "spec.podTemplate cannot be changed"),
    ("added queue", TUNED, "spec.queueName", "team-b", "spec.queueName cannot be changed"),
    ("manifest", VERSION, "spec.manifest.digest", "sha256:" + "2" * 64, "spec.manifest cannot be changed"),
    ("version", VERSION, "spec.version", "other", "spec.version cannot be changed"),
    ("pool's model", POOL, "spec.model", "another", "spec.model cannot be changed: apply a new InferencePool"),
]


@pytest.mark.parametrize(("base", "path", "value", "message"), [f[1:] for f in FROZEN], ids=[f[0] for f in FROZEN])
def test_what_must_not_change_cannot(kubectl: Any, base: Manifest, path: str, value: object, message: str) -> None:
    first = changed(base, "metadata.name", "frozen-" + path.lower().replace(".", "-"))
    kubectl.applied(first)
    assert message in kubectl.refusal(changed(first, path, value))


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
    patch = '{"status": {"attempts": 3, "loss": 1.0, "progress": {"stage": "training", "step": 7, "totalSteps": 9}}}'
    written = kubectl(
        *("patch", "trun", "status", "-n", "support", "--subresource", "status", "--type", "merge", "-p", patch)
    )
    assert written.returncode == 0, written.stderr
    read = yaml.safe_load(kubectl("get", "trun", "status", "-n", "support", "-o", "yaml").stdout)
    assert read["status"]["attempts"] == 3
    assert "loss" not in read["status"]
    row = kubectl("get", "trun", "status", "-n", "support").stdout.splitlines()[1]
    assert row.split()[:5] == ["status", "support-bot", "training", "7", "9"]


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
