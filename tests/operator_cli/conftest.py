"""A small world for the command line: real documents in file:// storage, a real signed repository, and a fake of the
few Kubernetes reads."""

import copy
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from gguf import GGUFWriter
from sluice_contracts.base import Contract, sha256
from sluice_contracts.dataset import DatasetFile, DatasetManifest, SliceCount, SliceWeight
from sluice_contracts.device import DeviceReceipt, InstalledVersion, SyncReceipt, Transfer
from sluice_contracts.evaluation import EvaluationReport, MetricValue, ParityReport, ParityResult, SuiteResult
from sluice_contracts.lineage import SCRATCH, LineageInputs, lineage_id
from sluice_contracts.manifest import (
    Artifact,
    CodeProvenance,
    DatasetProvenance,
    EvaluationProvenance,
    Manifest,
)
from sluice_contracts.names import API_VERSION, LABEL_COMPONENT, Domain, Quantization, Suite, Task
from sluice_contracts.training_run import GateResult, LoraRecipe, Method, ParityLimits, Recipe
from sluice_operator.cli import app as cli
from sluice_operator.cli import terminal
from sluice_operator.cli.errors import CliError
from sluice_operator.kube.resources import INFERENCE_POOL, MODEL_VERSION, TRAINING_RUN, Resource
from sluice_storage import join, open_store, write_bytes
from sluice_training.publish import release as releases
from sluice_training.publish import repository
from typer.testing import CliRunner

NOW = "2026-11-21T10:00:00Z"
GIT_SHA = "0123456789abcdef0123456789abcdef01234567"
NAMESPACE = "team"


class FakeCluster:
    """Stands in for the Kubernetes API: objects in a dictionary, changed through `change`."""

    def __init__(self) -> None:
        self.namespace = NAMESPACE
        self.objects: dict[tuple[Resource, str, str], dict[str, Any]] = {}
        self.happened: list[dict[str, Any]] = []
        self.environment: dict[str, str] = {}
        self.running: list[dict[str, Any]] = []
        """Pods."""
        self.said: dict[str, list[str]] = {}
        """Logs by pod."""
        self.pages: dict[tuple[str, int, str], Callable[[], bytes]] = {}
        """What pods answer, by name, port and path."""
        self.on_read: Callable[[], None] = lambda: None
        """Called before each read: the world moves on while somebody watches."""

    def put(self, resource: Resource, name: str, spec: Any, status: Any = None, **metadata: Any) -> dict[str, Any]:
        made = {
            "apiVersion": API_VERSION,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": NAMESPACE, "generation": 1, "creationTimestamp": NOW, **metadata},
            "spec": spec,
            "status": {"observedGeneration": 1, **(status or {})},
        }
        self.objects[resource, made["metadata"]["namespace"], name] = made
        return made

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        self.on_read()
        return copy.deepcopy(self.objects.get((resource, namespace, name)))

    def everything(self, resource: Resource, namespace: str | None) -> list[dict[str, Any]]:
        self.on_read()
        return [
            copy.deepcopy(obj)
            for (kind, where, _), obj in sorted(self.objects.items(), key=lambda item: item[0][1:])
            if kind == resource and namespace in (None, where)
        ]

    def annotate(self, resource: Resource, namespace: str, name: str, key: str, value: str | None) -> None:
        annotations = self.objects[resource, namespace, name]["metadata"].setdefault("annotations", {})
        annotations.pop(key, None)
        if value is not None:
            annotations[key] = value

    def events(self, resource: Resource, namespace: str, name: str) -> list[dict[str, Any]]:
        return [e for e in self.happened if e["involvedObject"] == {"kind": resource.kind, "name": name}]

    def operator_environment(self) -> dict[str, str]:
        return self.environment

    def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        wanted = [part.split("=") for part in selector.split(",")]
        return [
            copy.deepcopy(pod)
            for pod in self.running
            if all(pod["metadata"]["labels"].get(name) == value for name, value in wanted)
        ]

    def pod_log(self, namespace: str, pod: str, container: str, tail: int, *, follow: bool) -> Iterator[str]:
        yield from self.said[pod][-tail:]

    def ask(self, namespace: str, pod: str, port: int, path: str) -> bytes:
        page = self.pages.get((pod, port, path))
        if page is None:
            raise CliError(f"cannot reach port {port} of pod {namespace}/{pod} through the API server")
        return page()

    def ask_lines(self, namespace: str, pod: str, port: int, path: str) -> Iterator[str]:
        yield from self.ask(namespace, pod, port, path).decode().splitlines()

    def pod(self, name: str, component: str, *, role: str = "", **labels: str) -> dict[str, Any]:
        """A pod that runs, to be changed in place."""
        labels |= {LABEL_COMPONENT: component} | ({"ray.io/node-type": role} if role else {})
        state = {"name": "main", "restartCount": 0, "state": {"running": {"startedAt": NOW}}}
        made = {
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": NOW},
            "spec": {"containers": [{"name": "main"}]},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [state],
            },
        }
        self.running.append(made)
        self.said[name] = []
        return made

    def annotations(self, resource: Resource, name: str) -> dict[str, str]:
        return dict(self.objects[resource, NAMESPACE, name]["metadata"].get("annotations", {}))

    def status(self, resource: Resource, name: str) -> dict[str, Any]:
        """The status itself, to be changed in place."""
        found: dict[str, Any] = self.objects[resource, NAMESPACE, name]["status"]
        return found


def condition(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
    }


def ready(reason: str = "Succeeded") -> list[dict[str, Any]]:
    return [
        condition("Ready", "True", reason),
        condition("Reconciling", "False", reason),
        condition("Stalled", "False", reason),
    ]


def stalled(reason: str, message: str) -> list[dict[str, Any]]:
    return [
        condition("Ready", "False", reason, message),
        condition("Reconciling", "False", reason),
        condition("Stalled", "True", reason, message),
    ]


def verdict(name: str, outcome: str, effect: float, low: float, high: float, n: int) -> dict[str, Any]:
    return {
        "name": name,
        "verdict": outcome,
        "effect": effect,
        "low": low,
        "high": high,
        "samples": n,
        "baselineSamples": 3 * n,
    }


class World:
    """Versions of one model, made and told as the rooms would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = FakeCluster()
        self.storage = f"file://{folder}/storage"
        self.releases = f"file://{folder}/releases"
        self.manifests: dict[str, tuple[Manifest, str, str]] = {}
        self.recipe = Recipe(method=Method.SCRATCH, steps=300, learning_rate=0.001)

    def version(self, name: str, base: str | None = None, batches: int = 12, passed: bool = True) -> Manifest:
        """Train `name`: dataset, report, parity, device file, manifest in storage; both objects in the cluster."""
        dataset = self._dataset(name, batches)
        dataset_uri = join(self.storage, "distillation_dataset", dataset.run_id)
        dataset_digest = self._write(join(dataset_uri, "manifest.json"), dataset)
        parent = self.manifests.get(base or "")
        if parent is not None:
            self.recipe = Recipe(method=Method.LORA, steps=120, lora=LoraRecipe())
        base_digest = parent[2] if parent else SCRATCH
        lineage = lineage_id(
            LineageInputs(
                dataset_run_id=dataset.run_id,
                base_digest=base_digest,
                recipe_digest=self.recipe.content_digest(),
                git_sha=GIT_SHA,
            )
        )
        run_uri = join(self.storage, "runs", lineage)
        report_uri = join(run_uri, "eval/report.json")
        report_digest = self._write(report_uri, _report(lineage, passed))
        spec = {
            "model": "support-bot",
            "dataset": {"uri": dataset_uri, "digest": dataset_digest},
            "recipe": self.recipe.wire(),
        }
        if base is not None:
            spec["base"] = {"modelVersion": base}
        status = {
            "lineage": lineage,
            "runUri": run_uri,
            "reportUri": report_uri,
            "attempts": 1,
            "startedAt": "2026-11-21T09:00:00Z",
            "finishedAt": "2026-11-21T09:03:10Z",
            "gates": [g.wire() for g in _report(lineage, passed).gates],
        }
        if not passed:
            status["conditions"] = stalled("GateFailed", "intent.accuracy 0.610, n=400, misses >= 0.9")
            self.cluster.put(TRAINING_RUN, name, spec, status)
            return _no_manifest()
        artifact = self._device_file(run_uri, lineage)
        parity_uri = join(run_uri, "parity.json")
        parity_digest = self._write(parity_uri, _parity(lineage, artifact))
        manifest = Manifest(
            model="support-bot",
            lineage=lineage,
            training_run=name,
            run_uri=run_uri,
            dataset=DatasetProvenance(
                run_id=dataset.run_id, uri=dataset_uri, digest=dataset_digest, signals_digest=dataset.signals_digest
            ),
            base_lineage=parent[0].lineage if parent else None,
            base_digest=base_digest,
            code=CodeProvenance(git_sha=GIT_SHA),
            recipe=self.recipe,
            evaluation=EvaluationProvenance(uri=report_uri, digest=report_digest, passed=True),
            parity_uri=parity_uri,
            parity_digest=parity_digest,
            artifacts=[artifact],
            created_at=NOW,
        )
        uri = join(run_uri, "manifest.json")
        digest = self._write(uri, manifest)
        self.manifests[name] = (manifest, uri, digest)
        reference = {"uri": uri, "digest": digest}
        self.cluster.put(
            TRAINING_RUN, name, spec, {**status, "manifest": reference, "modelVersion": name, "conditions": ready()}
        )
        self.cluster.put(
            MODEL_VERSION,
            name,
            {"model": "support-bot", "version": name, "manifest": reference},
            {"lineage": lineage, "conditions": ready("Verified")},
        )
        return manifest

    def pool(self, stable: str | None, wanted: str | None = None, **status: Any) -> dict[str, Any]:
        """The pool `support`, serving `stable`."""
        served = {"stable": self.served(stable)} if stable else {}
        weights = [{"modelVersion": stable, "percent": 100}] if stable else []
        return self.cluster.put(
            INFERENCE_POOL,
            "support",
            {
                "model": "support-bot",
                "modelVersion": wanted or stable,
                "gateway": {"auth": {"secretRef": {"name": "keys"}}},
            },
            {"conditions": ready("Serving"), "weights": weights, **served, **status},
        )

    def served(self, name: str) -> dict[str, Any]:
        manifest, _, digest = self.manifests[name]
        return {
            "modelVersion": name,
            "lineage": manifest.lineage,
            "manifestDigest": digest,
            "rayService": f"support-{digest[7:15]}",
            "ready": True,
        }

    def publish(self, name: str, percent: int = 100) -> int:
        """Sign and lay out `name` with the real publisher; note it in the ModelVersion's status."""
        store, keys = open_store(self.releases), self.folder / "keys"
        now = datetime.now(UTC)
        if not store.exists("metadata/timestamp.json"):
            root = repository.create(store, keys, root_keys=1, threshold=1, now=now)
            (keys / "root.json").write_bytes(root)
        _, uri, digest = self.manifests[name]
        wish = releases.Wish(uri, digest, "stable", name, percent)
        done = releases.publish_release(store, keys, (keys / "root.json").read_bytes(), wish, now, lambda _: None)
        obj = self.cluster.objects[MODEL_VERSION, NAMESPACE, name]
        obj["spec"]["publish"] = {"channel": "stable"}
        obj["status"]["release"] = {"tufVersion": done.tuf_version, "publishedStage": 0, "percent": percent}
        return done.tuf_version

    def receipt(self, name: str, file: str = "phone.json") -> Path:
        """What a device that runs `name` says of itself."""
        manifest, _, digest = self.manifests[name]
        artifact = manifest.device()[0]
        installed = InstalledVersion(
            version=name,
            lineage=manifest.lineage,
            quantization=Quantization.Q8_0,
            sha256=artifact.sha256,
            size=artifact.size,
            context=256,
            slot="a",
            manifest_digest=digest,
            dataset_run_id=manifest.dataset.run_id,
            git_sha=GIT_SHA,
            evaluation_digest=manifest.evaluation.digest,
            release_digest=digest,
            tuf_version=2,
            installed_at=NOW,
        )
        sync = SyncReceipt(
            outcome="updated", message="", at=NOW, seconds=1, bytes=Transfer(pieces_fetched=3, pieces_total=8)
        )
        receipt = DeviceReceipt(
            model="support-bot", channel="stable", cohort=7, installed=installed, last_sync=sync, consent=True
        )
        path = self.folder / file
        path.write_bytes(receipt.canonical())
        return path

    def run(self, *arguments: str) -> Result:
        """`sluice …`."""
        return CliRunner().invoke(cli.app, list(arguments))

    def json(self, *arguments: str) -> dict[str, Any]:
        """`sluice … -o json`, which must succeed."""
        result = self.run(*arguments, "-o", "json")
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def damage(self, uri: str) -> None:
        """Change one byte of a document."""
        path = Path(uri.removeprefix("file://"))
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)

    def _write(self, uri: str, document: Contract) -> str:
        data = document.canonical()
        write_bytes(uri, data)
        return sha256(data)

    def _dataset(self, name: str, batches: int) -> DatasetManifest:
        signals = sha256(name.encode()) if batches else None
        weights = [SliceWeight(domain=Domain.LEADERSHIP, factor=2.5, reason="41 of 60 failed")] if batches else []
        return DatasetManifest(
            run_id=f"{name}-data",
            generator="synthetic/1",
            inputs_digest=sha256(b"inputs" + name.encode()),
            signals_digest=signals,
            signal_batches=batches,
            weights=weights,
            slices=[SliceCount(domain=Domain.LEADERSHIP, task=Task.INTENT, train=4000, val=400, test=400)],
            files=[
                DatasetFile(path=f"{split}.jsonl", size=1, sha256=sha256(b""), rows=rows)
                for split, rows in (("test", 400), ("train", 4000), ("val", 400))
            ],
            split={"train": 0.8, "val": 0.1, "test": 0.1},
        )

    def _device_file(self, run_uri: str, lineage: str) -> Artifact:
        path = self.folder / "model.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_context_length(256)
        writer.add_embedding_length(32)
        writer.add_block_count(1)
        writer.add_head_count(1)
        rng = np.random.default_rng(int(lineage[:8], 16))
        writer.add_tensor("weights", rng.standard_normal((64, 64)).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        data = path.read_bytes()
        place = "export/gguf/support-bot-Q8_0.gguf"
        write_bytes(join(run_uri, place), data)
        return Artifact(path=place, role="device", quantization=Quantization.Q8_0, size=len(data), sha256=sha256(data))


def _report(lineage: str, passed: bool) -> EvaluationReport:
    accuracy = 0.97 if passed else 0.61
    value = MetricValue(metric="intent.accuracy", value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02, n=400)
    gate = GateResult(metric="intent.accuracy", value=accuracy, bound=">= 0.9", n=400, passed=passed)
    return EvaluationReport(
        lineage=lineage,
        suites=[SuiteResult(suite=Suite.INTENT, digest=sha256(b"suite"), n=400, metrics=[value])],
        gates=[gate],
        passed=passed,
        samples_path="eval/samples.jsonl",
        samples_digest=sha256(b"samples"),
        created_at=NOW,
    )


def _parity(lineage: str, artifact: Artifact) -> ParityReport:
    result = ParityResult(
        quantization=Quantization.Q8_0,
        path=artifact.path,
        size=artifact.size,
        mean_kld=0.0004,
        p99_kld=0.01,
        same_top=0.996,
        perplexity_ratio=1.001,
        task_accuracy=0.97,
        task_accuracy_parent=0.97,
        flips=1,
        tokens=4000,
        passed=True,
    )
    return ParityReport(
        lineage=lineage, limits=ParityLimits(), engine="llama.cpp", results=[result], passed=True, created_at=NOW
    )


def _no_manifest() -> Any:
    return None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(terminal, "connect", lambda: made.cluster)
    monkeypatch.setenv("SLUICE_RELEASES_URI", made.releases)
    monkeypatch.setenv("COLUMNS", "200")
    return made
