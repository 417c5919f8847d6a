"""Builders of objects and observations, and a real API server with the operator running against it."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from sluice_contracts.analysis import AnalysisSnapshot
from sluice_contracts.base import sha256, timestamp
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.inference_pool import InferencePoolSpec
from sluice_contracts.job import JobConfig, JobOutcome, JobResult
from sluice_contracts.manifest import Manifest
from sluice_contracts.names import LABEL_MANAGED_BY, MANAGED_BY
from sluice_contracts.training_run import (
    GateResult,
    ManifestReference,
    ParityLimits,
    Progress,
    Stage,
    TrainingRunSpec,
)
from sluice_devcluster.kuberay.crds import definitions
from sluice_devcluster.ports import free_port
from sluice_operator.children.boundaries import pod_labels
from sluice_operator.kube.client import KubeClient
from sluice_operator.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    INFERENCE_POOL,
    MODEL_VERSION,
    POD,
    RAY_JOB,
    RAY_SERVICE,
    TRAINING_RUN,
    Resource,
)
from sluice_operator.main import run
from sluice_operator.plan import Meta
from sluice_operator.settings import Images, Settings

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
Json = dict[str, Any]


class Make:
    """Small valid things, each with the fields a test cares about in its arguments."""

    now = NOW
    digest = DIGEST

    @staticmethod
    def at(seconds: float) -> str:
        """A Timestamp `seconds` after NOW."""
        return timestamp(NOW + timedelta(seconds=seconds))

    @staticmethod
    def settings(**changes: Any) -> Settings:
        images = Images(trainer="trainer:1", serve="serve:1", gateway="gateway:1", publisher="publisher:1")
        made = Settings(
            namespace="sluice-system",
            storage_uri="gs://sluice",
            releases_uri="gs://sluice-releases",
            git_sha="c0ffee",
            images=images,
        )
        return replace(made, **changes)

    @staticmethod
    def meta(name: str, **changes: Any) -> Meta:
        return replace(Meta(namespace="support", name=name, uid=f"uid-{name}", generation=1), **changes)

    @staticmethod
    def run_spec(**changes: Any) -> TrainingRunSpec:
        body: Json = {
            "model": "support-bot",
            "dataset": {"uri": "gs://sluice/distillation_dataset/run-1/", "digest": DIGEST},
            "recipe": {"method": "scratch", "steps": 100},
            "evaluation": {"suites": ["intent"], "gates": [{"metric": "intent.accuracy", "min": 0.9}]},
        }
        return TrainingRunSpec.model_validate(body | changes)

    @staticmethod
    def pool_spec(**changes: Any) -> InferencePoolSpec:
        rollout = {
            "steps": [20, 50],
            "interval": "10s",
            "stepDuration": "30s",
            "minRequests": 50,
            "deadline": "1h",
            "metrics": [{"name": "errorRate", "tolerance": 0.1}],
        }
        body: Json = {
            "model": "support-bot",
            "modelVersion": "v1",
            "gateway": {"auth": {"secretRef": {"name": "keys"}}},
            "rollout": rollout | changes.pop("rollout", {}),
        }
        return InferencePoolSpec.model_validate(body | changes)


@pytest.fixture
def make() -> Make:
    return Make()


# -- files a job leaves behind --------------------------------------------------------------------------------------


@dataclass
class Bucket:
    """A file:// bucket with a data set, and with what a training job writes."""

    root: Path

    @property
    def uri(self) -> str:
        return f"file://{self.root}"

    def put(self, path: str, data: bytes) -> str:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return sha256(data)

    def dataset(self, run_id: str = "run-1") -> Json:
        """A data set's manifest; the reference for a spec."""
        manifest = DatasetManifest(
            run_id=run_id,
            generator="test/1",
            inputs_digest=DIGEST,
            slices=[],
            files=[],
            split={"train": 0.8, "val": 0.1, "test": 0.1},
        )
        digest = self.put(f"distillation_dataset/{run_id}/manifest.json", manifest.canonical())
        return {"uri": f"{self.uri}/distillation_dataset/{run_id}/", "digest": digest}

    def version(
        self,
        lineage: str,
        *,
        model: str = "support-bot",
        run: str = "v1",
        gates: bool = True,
        waiver: Json | None = None,
        folder: str | None = None,
        adapter_on: str | None = None,
    ) -> ManifestReference:
        """A finished run's folder: artefacts, report, manifest. `adapter_on`: the digest of the base's manifest."""
        folder = folder or f"runs/{lineage}"
        gate = GateResult(metric="intent.accuracy", value=0.95, bound=">= 0.9", n=400, passed=waiver is None)
        report = EvaluationReport(
            lineage=lineage,
            suites=[],
            gates=[gate] if gates else [],
            passed=waiver is None,
            waiver=waiver,
            samples_path="eval/samples.jsonl",
            samples_digest=DIGEST,
            created_at=timestamp(NOW),
        )
        report_digest = self.put(f"{folder}/eval/report.json", report.canonical())
        parity = ParityReport(
            lineage=lineage, limits=ParityLimits(), engine="none", results=[], passed=True, created_at=timestamp(NOW)
        )
        parity_digest = self.put(f"{folder}/parity.json", parity.canonical())
        weights = {"export/safetensors/model.safetensors": b"w" * 64, "export/gguf/m-Q8_0.gguf": b"g" * 32}
        if adapter_on is not None:
            weights |= {f"export/adapter/{n}": n.encode() for n in ("adapter_config.json", "adapter_model.safetensors")}
        roles = {"export/gguf": "device", "export/adapter": "adapter", "export/safetensors": "served"}
        artifacts = [
            {
                "path": path,
                "role": roles[path.rpartition("/")[0]],
                "size": len(data),
                "sha256": self.put(f"{folder}/{path}", data),
            }
            for path, data in weights.items()
        ]
        manifest = Manifest.model_validate(
            {
                "model": model,
                "lineage": lineage,
                "trainingRun": run,
                "runUri": f"{self.uri}/{folder}",
                "dataset": {"runId": "run-1", "uri": f"{self.uri}/d", "digest": DIGEST},
                "baseDigest": adapter_on or DIGEST,
                "code": {"gitSha": "c0ffee"},
                "recipe": {"method": "lora", "steps": 1, "lora": {}}
                if adapter_on
                else {"method": "scratch", "steps": 1},
                "evaluation": {
                    "uri": f"{self.uri}/{folder}/eval/report.json",
                    "digest": report_digest,
                    "passed": waiver is None,
                    "waiver": waiver,
                },
                "parityUri": f"{self.uri}/{folder}/parity.json",
                "parityDigest": parity_digest,
                "artifacts": artifacts,
                "createdAt": timestamp(NOW),
            }
        )
        data = manifest.canonical()
        digest = self.put(f"{folder}/manifest.json", data)
        return ManifestReference(uri=f"{self.uri}/{folder}/manifest.json", digest=digest)

    def outcome(self, told: JobConfig, result: JobResult, **fields: Any) -> JobOutcome:
        """outcome.json; for a success with the version's files."""
        lineage, folder = told.lineage, told.run_uri.removeprefix(f"{self.uri}/")
        if result is JobResult.SUCCEEDED and "manifest" not in fields:
            fields["manifest"] = self.version(lineage, folder=folder)
        gate = GateResult(metric="intent.accuracy", value=0.95, low=0.92, high=0.97, bound=">= 0.9", n=400, passed=True)
        fields = {"message": "done", "gates": [gate], "finished_at": timestamp(NOW)} | fields
        outcome = JobOutcome(result=result, lineage=lineage, report_uri=f"{told.run_uri}/eval/report.json", **fields)
        self.put(f"{folder}/outcome.json", outcome.canonical())
        return outcome

    def progress(self, told: JobConfig, stage: Stage, **fields: Any) -> None:
        """progress.json, updated now."""
        progress = Progress(stage=stage, updated_at=timestamp(datetime.now(UTC)), **fields)
        self.put(f"{told.run_uri.removeprefix(f'{self.uri}/')}/progress.json", progress.canonical())


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "bucket")


# -- a real API server ----------------------------------------------------------------------------------------------

RAY_STATUS: dict[str, Json] = {
    "running": {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "jobId": "j-1"},
    "succeeded": {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete", "jobId": "j-1"},
    "failed": {
        "jobStatus": "FAILED",
        "jobDeploymentStatus": "Failed",
        "jobId": "j-1",
        "reason": "AppFailed",
        "message": "exit code 3",
    },
    "ready": {
        "conditions": [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"}],
        "activeServiceStatus": {"applicationStatuses": {"llm": {"status": "RUNNING"}}},
    },
    "deploy-failed": {
        "conditions": [{"type": "Ready", "status": "False", "reason": "Initializing"}],
        "pendingServiceStatus": {
            "applicationStatuses": {"llm": {"status": "DEPLOY_FAILED", "message": "ArtifactError: wrong digest"}}
        },
    },
}


class Cluster:
    """One namespace of a real API server, and the test playing KubeRay, the Deployment controller and kubelet."""

    def __init__(self, kube: KubeClient, namespace: str, settings: Settings) -> None:
        self.kube, self.namespace, self.settings = kube, namespace, settings
        self._operator: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def start(self) -> None:
        """Start the operator in this process."""
        self._stop = asyncio.Event()
        self._operator = asyncio.create_task(run(self.settings, self._stop))

    async def stop(self) -> None:
        """Stop it as SIGTERM would."""
        if self._operator is not None:
            self._stop.set()
            await asyncio.wait_for(self._operator, 20)
            self._operator = None

    async def apply(self, resource: Resource, name: str, spec: Json, **metadata: Any) -> Json:
        """What `kubectl apply --server-side` by a person does."""
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": self.namespace, **metadata},
            "spec": spec,
        }
        return await self.kube.apply(resource, body, "a-person")

    async def get(self, resource: Resource, name: str) -> Json | None:
        return await self.kube.get(resource, self.namespace, name)

    async def names(self, resource: Resource) -> list[str]:
        selector = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
        return sorted([o["metadata"]["name"] async for o in self.kube.list(resource, self.namespace, selector)])

    async def status(self, resource: Resource, name: str, status: Json) -> None:
        """Write a status as the object's own controller would."""
        await self.kube.apply_status(resource, self.namespace, name, status, "its-controller")

    async def ray(self, resource: Resource, name: str, state: str, **changes: Any) -> None:
        await self.status(resource, name, RAY_STATUS[state] | changes)

    async def gateway_ready(self, pool: str) -> None:
        status = {"replicas": 1, "readyReplicas": 1, "observedGeneration": 1}
        await self.status(DEPLOYMENT, f"{pool}-gateway", status)

    async def until(self, what: str, check: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
        """Wait for a condition, with a deadline; fails with the state of all our objects."""
        end = asyncio.get_running_loop().time() + seconds
        while True:
            found = await check()
            if found:
                return found
            if self._operator is not None and self._operator.done():
                self._operator.result()
                pytest.fail(f"the operator ended while waiting for {what}")
            if asyncio.get_running_loop().time() > end:
                pytest.fail(f"{what} did not happen in {seconds:.0f} s; {await self._told()}")
            await asyncio.sleep(0.05)

    async def exists(self, resource: Resource, name: str, seconds: float = 20) -> Json:
        found: Json = await self.until(f"{resource.kind} {name}", lambda: self.get(resource, name), seconds)
        return found

    async def condition(
        self, resource: Resource, name: str, type_: str, status: str, reason: str | None = None, seconds: float = 20
    ) -> Json:
        """Wait for a condition of one of our objects, and return the object."""

        async def check() -> Json | None:
            obj = await self.get(resource, name)
            for c in ((obj or {}).get("status") or {}).get("conditions") or []:
                if c["type"] == type_ and c["status"] == status and reason in (None, c["reason"]):
                    return obj
            return None

        found: Json = await self.until(f"{resource.kind} {name} {type_}={status} {reason or ''}", check, seconds)
        return found

    async def routes(self, pool: str) -> Json:
        config_map = await self.exists(CONFIG_MAP, f"{pool}-routes")
        table: Json = json.loads(config_map["data"]["routes.json"])
        return table

    async def reasons(self) -> list[str]:
        return [e["reason"] async for e in self.kube.list(EVENT, self.namespace)]

    async def version(self, name: str, manifest: ManifestReference, **spec: Any) -> None:
        body = {"model": "support-bot", "version": name, "manifest": manifest.wire(), **spec}
        await self.apply(MODEL_VERSION, name, body)
        await self.condition(MODEL_VERSION, name, "Verified", "True")

    async def told_job(self, run_name: str) -> JobConfig:
        config_map = await self.exists(CONFIG_MAP, f"{run_name}-job")
        return JobConfig.model_validate_json(config_map["data"]["run.json"])

    async def _told(self) -> str:
        told = []
        for resource in (TRAINING_RUN, MODEL_VERSION, INFERENCE_POOL, RAY_JOB, RAY_SERVICE):
            async for obj in self.kube.list(resource, self.namespace):
                told.append(f"{resource.kind} {obj['metadata']['name']}: {json.dumps(obj.get('status'))[:1500]}")
        return "\n".join(told)


@pytest.fixture(scope="session")
def ray_kinds(kubectl: Any) -> Any:
    """The API server with ray.io's kinds in it."""
    for definition in definitions():
        kubectl.applied(definition)
        name = definition["metadata"]["name"]
        assert kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{name}").returncode == 0
    return kubectl


@pytest.fixture
async def cluster(ray_kinds: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A fresh namespace, with the operator running in it."""
    monkeypatch.setenv("KUBECONFIG", str(ray_kinds.kubeconfig))
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    assert ray_kinds("create", "namespace", namespace).returncode == 0
    settings = Make.settings(
        namespace=namespace,
        watch_namespaces=(namespace,),
        storage_uri=bucket.uri,
        http_port=free_port(),
        resync_seconds=600.0,
        identity=f"test-{namespace}",
    )
    async with KubeClient() as kube:
        found = Cluster(kube, namespace, settings)
        await found.start()
        try:
            yield found
        finally:
            await found.stop()
            for resource in (TRAINING_RUN, MODEL_VERSION, INFERENCE_POOL, RAY_JOB, RAY_SERVICE, CONFIG_MAP):
                async for obj in kube.list(resource, namespace):
                    await kube.delete(resource, namespace, obj["metadata"]["name"])


# -- a gateway for the operator to ask (a fake: it only answers /analysis) --------------------------------------------


@dataclass
class FakeGateway:
    """Answers GET /analysis on 127.0.0.x:8081, as the real gateway's internal port does."""

    address: str
    snapshot: AnalysisSnapshot
    asked: int = 0
    _runner: web.AppRunner | None = field(default=None, repr=False)

    async def start(self) -> None:
        async def analysis(_: web.Request) -> web.Response:
            self.asked += 1
            return web.json_response(self.snapshot.wire())

        app = web.Application()
        app.add_routes([web.get("/analysis", analysis)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, 8081).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def appear(self, cluster: Cluster, pool: str) -> None:
        """Show up as a ready pod of the pool's gateway."""
        name = f"{pool}-gateway-{self.address.replace('.', '-')}"
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": cluster.namespace, "labels": pod_labels("gateway", pool)},
            "spec": {"containers": [{"name": "gateway", "image": "x"}]},
        }
        await cluster.kube.apply(POD, body, "test")
        ready = {"type": "Ready", "status": "True"}
        await cluster.status(
            POD, name, {"podIP": self.address, "podIPs": [{"ip": self.address}], "conditions": [ready]}
        )


@pytest.fixture
async def gateways() -> AsyncIterator[Callable[[str], Awaitable[FakeGateway]]]:
    """A function that starts a fake gateway on an address of loopback."""
    started: list[FakeGateway] = []

    async def start(address: str) -> FakeGateway:
        snapshot = AnalysisSnapshot(instance="i", window="", since=timestamp(NOW), versions={})
        gateway = FakeGateway(address, snapshot)
        await gateway.start()
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        await gateway.stop()
