"""What many objects cost the operator: time from cold, memory, processor time per object, writes at rest, restart.

A real API server and etcd; the operator as the process it is in production. Half of the objects are InferencePools,
half TrainingRuns. No KubeRay: the children are made and stay as they are, which is all the operator's work; pods would
be others'. Converged means: every child exists, every object's status says so at its generation, nothing is queued.
"""

import argparse
import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib
import yaml
from matplotlib.figure import Figure
from sluice_contracts.base import sha256
from sluice_contracts.dataset import DatasetManifest
from sluice_contracts.evaluation import EvaluationReport, ParityReport
from sluice_contracts.manifest import Manifest
from sluice_contracts.training_run import GateResult, ManifestReference, ParityLimits
from sluice_devcluster.apiserver import ControlPlane
from sluice_devcluster.kuberay.crds import definitions
from sluice_devcluster.ports import free_port
from sluice_operator.kube.client import ApiError, KubeClient
from sluice_operator.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_POOL,
    MODEL_VERSION,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    RAY_JOB,
    RAY_SERVICE,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    TRAINING_RUN,
    Resource,
)

from benchmarks.record import RESULTS, ROOT, Report
from benchmarks.usage import processor_seconds

matplotlib.use("svg")

DIGEST = "sha256:" + "0" * 64
MOMENT = "2026-11-21T12:00:00Z"
POOLS_A_VERSION = 50
"""Pools that serve the same ModelVersion."""
MAKERS = 16
"""Requests in flight while the objects are made."""
PARTS = (DEPLOYMENT, SERVICE, ROLE, ROLE_BINDING, NETWORK_POLICY, POD_DISRUPTION_BUDGET)
"""Children of which each pool has exactly one, among others."""
START = "import sys; sys.modules['kubernetes'] = None; from sluice_operator.main import main; main()"
"""The operator as in its image, which has no official client: kopf loads it where it is installed, for 20 MB."""
SEEN_SECONDS = 1.0
"""How often the state is looked at."""
WRITES = re.compile(r"^apiserver_request_total\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)
VERBS = {"POST", "PUT", "PATCH", "APPLY", "DELETE"}


def files(bucket: Path) -> tuple[dict[str, str], ManifestReference]:
    """A data set and a finished run's folder: a run's `dataset`, and a manifest for ModelVersions."""

    def put(path: str, data: bytes) -> str:
        target = bucket / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return sha256(data)

    dataset = DatasetManifest(
        run_id="bench",
        generator="bench/1",
        inputs_digest=DIGEST,
        slices=[],
        files=[],
        split={"train": 0.8, "val": 0.1, "test": 0.1},
    )
    folder = f"file://{bucket}/distillation_dataset/bench/"
    digest = put("distillation_dataset/bench/manifest.json", dataset.canonical())
    lineage = "1" * 64
    home = f"runs/{lineage}"
    gate = GateResult(metric="intent.accuracy", value=0.95, bound=">= 0.9", n=400, passed=True)
    report = EvaluationReport(
        lineage=lineage,
        suites=[],
        gates=[gate],
        passed=True,
        samples_path="eval/samples.jsonl",
        samples_digest=DIGEST,
        created_at=MOMENT,
    )
    parity = ParityReport(
        lineage=lineage, limits=ParityLimits(), engine="none", results=[], passed=True, created_at=MOMENT
    )
    manifest = Manifest.model_validate(
        {
            "model": "bench",
            "lineage": lineage,
            "trainingRun": "bench",
            "runUri": f"file://{bucket}/{home}",
            "dataset": {"runId": "bench", "uri": folder, "digest": digest},
            "baseDigest": DIGEST,
            "code": {"gitSha": "bench"},
            "recipe": {"method": "scratch", "steps": 1},
            "evaluation": {
                "uri": f"file://{bucket}/{home}/eval/report.json",
                "digest": put(f"{home}/eval/report.json", report.canonical()),
                "passed": True,
            },
            "parityUri": f"file://{bucket}/{home}/parity.json",
            "parityDigest": put(f"{home}/parity.json", parity.canonical()),
            "artifacts": [
                {
                    "path": "export/safetensors/model.safetensors",
                    "role": "served",
                    "size": 64,
                    "sha256": put(f"{home}/export/safetensors/model.safetensors", b"w" * 64),
                }
            ],
            "createdAt": MOMENT,
        }
    )
    made = ManifestReference(
        uri=f"file://{bucket}/{home}/manifest.json", digest=put(f"{home}/manifest.json", manifest.canonical())
    )
    return {"uri": folder, "digest": digest}, made


def run_spec(dataset: dict[str, str]) -> dict[str, Any]:
    return {"model": "bench", "dataset": dataset, "recipe": {"method": "scratch", "steps": 100}}


def pool_spec(version: str) -> dict[str, Any]:
    return {"model": "bench", "modelVersion": version, "gateway": {"auth": {"secretRef": {"name": "keys"}}}}


@dataclass
class Server:
    """The API server of this benchmark, and what it tells of itself."""

    plane: ControlPlane
    kube: KubeClient
    http: aiohttp.ClientSession
    bucket: Path

    async def raw(self, path: str, **parameters: str) -> Any:
        """One GET that the client has no method for."""
        return await self.kube.request("read", "GET", path, params=parameters)

    async def count(self, resource: Resource, namespace: str) -> int:
        """How many there are, without reading them."""
        page = await self.raw(resource.path(namespace), limit="1")
        return len(page.get("items") or []) + int(page["metadata"].get("remainingItemCount") or 0)

    async def writes(self) -> int:
        """Writing requests that it has answered, by its own count, but for Leases."""
        headers = {"Authorization": f"Bearer {self.plane.token}"}
        async with self.http.get(f"{self.plane.url}/metrics", headers=headers, ssl=False) as response:
            text = await response.text()
        total = 0.0
        for found in WRITES.finditer(text):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', found["labels"]))
            if labels.get("verb") in VERBS and labels.get("resource") != "leases":
                total += float(found["count"])
        return round(total)


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    """A control plane with our kinds and Ray's in it."""
    with ControlPlane() as plane, tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        async with KubeClient() as kube, aiohttp.ClientSession() as http:
            crds = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml"))]
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            for crd in (*crds, *definitions()):
                await kube.request("create", "POST", path, body=crd)
            found = Server(plane, kube, http, Path(folder))
            await until("the kinds are served", lambda: _served(kube), 60)
            yield found


async def _served(kube: KubeClient) -> bool:
    try:
        for resource in (TRAINING_RUN, MODEL_VERSION, INFERENCE_POOL, RAY_JOB, RAY_SERVICE):
            await kube.request("list", "GET", resource.path(), params={"limit": "1"})
    except ApiError:
        return False
    return True


async def until(what: str, check: Callable[[], Awaitable[bool]], limit: float) -> float:
    """Seconds until `check` holds. Raises TimeoutError after `limit`."""
    began = time.monotonic()
    while not await check():
        if time.monotonic() - began > limit:
            raise TimeoutError(f"not within {limit:.0f} s: {what}")
        await asyncio.sleep(SEEN_SECONDS)
    return time.monotonic() - began


class Operator:
    """The operator's process."""

    def __init__(self, namespace: str, at: Server) -> None:
        self._at = at
        self._port = free_port()
        self._environment = os.environ | {
            "SLUICE_NAMESPACE": namespace,
            "SLUICE_WATCH_NAMESPACES": namespace,
            "SLUICE_STORAGE_URI": f"file://{at.bucket}",
            "SLUICE_IMAGE_TRAINER": "trainer:1",
            "SLUICE_IMAGE_SERVE": "serve:1",
            "SLUICE_IMAGE_GATEWAY": "gateway:1",
            "SLUICE_IMAGE_PUBLISHER": "publisher:1",
            "SLUICE_GIT_SHA": "bench",
            "SLUICE_HTTP_PORT": str(self._port),
            "SLUICE_LOG_LEVEL": "WARNING",
        }

    async def __aenter__(self) -> "Operator":
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", START, env=self._environment, stderr=self._log
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        await self.process.wait()
        self._log.close()

    async def metric(self, name: str) -> float | None:
        """The sum of one of its metrics; None while it does not answer."""
        if self.process.returncode is not None:
            self._log.seek(0)
            raise RuntimeError(f"the operator ended: {self._log.read()[-2000:].decode(errors='replace')}")
        try:
            async with self._at.http.get(f"http://127.0.0.1:{self._port}/metrics") as response:
                lines = (await response.text()).splitlines()
        except aiohttp.ClientError:
            return None
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    async def idle(self, looks: int) -> bool:
        """Whether it has made at least `looks` looks and nothing is due."""
        made, due = (
            await self.metric("sluice_operator_reconciles_total"),
            await self.metric("sluice_operator_queue_ready"),
        )
        return made is not None and made >= looks and due == 0

    def peak_bytes(self) -> int:
        """Its resident memory at its highest."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found is not None else 0

    def processor_seconds(self) -> float:
        return processor_seconds(self.process.pid)


async def make(at: Server, namespace: str, objects: int) -> None:
    """A namespace with `objects` of our kinds, as people would apply them."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    await at.kube.request("create", "POST", "/api/v1/namespaces", body=body)
    dataset, manifest = files(at.bucket)
    pools = objects // 2
    versions = max(1, pools // POOLS_A_VERSION)
    wanted: list[tuple[Resource, str, dict[str, Any]]] = [
        (MODEL_VERSION, f"v{i}", {"model": "bench", "version": f"v{i}", "manifest": manifest.wire()})
        for i in range(versions)
    ]
    wanted += [(INFERENCE_POOL, f"pool-{i}", pool_spec(f"v{i % versions}")) for i in range(pools)]
    wanted += [(TRAINING_RUN, f"run-{i}", run_spec(dataset)) for i in range(objects - pools)]
    slots = asyncio.Semaphore(MAKERS)

    async def one(resource: Resource, name: str, spec: dict[str, Any]) -> None:
        meta = {"name": name, "namespace": namespace}
        obj = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, "spec": spec}
        async with slots:
            await at.kube.create(resource, obj)

    await asyncio.gather(*(one(*entry) for entry in wanted))


async def converged(at: Server, operator: Operator, namespace: str, objects: int) -> bool:
    """Every child is there, nothing is due, and every status is of its object's generation."""
    pools, runs = objects // 2, objects - objects // 2
    wanted = {RAY_SERVICE: pools, RAY_JOB: runs, **dict.fromkeys(PARTS, pools)}
    for resource, number in wanted.items():
        if await at.count(resource, namespace) != number:
            return False
    if await at.count(CONFIG_MAP, namespace) < pools + runs or not await operator.idle(objects):
        return False
    for resource in (INFERENCE_POOL, TRAINING_RUN, MODEL_VERSION):
        async for obj in at.kube.list(resource, namespace):
            if (obj.get("status") or {}).get("observedGeneration") != obj["metadata"]["generation"]:
                return False
    return True


async def where(at: Server, namespace: str) -> str:
    """What the objects say of themselves, each thing once: for the error when they do not converge."""
    said = set()
    for resource in (MODEL_VERSION, INFERENCE_POOL, TRAINING_RUN):
        async for obj in at.kube.list(resource, namespace):
            conditions = (obj.get("status") or {}).get("conditions") or []
            ready = next((c for c in conditions if c["type"] == "Ready"), {})
            said.add(f"{resource.kind} {ready.get('status')} {ready.get('reason')}: {ready.get('message')}")
    return "; ".join(sorted(said)[:10])


async def alone(at: Server) -> float:
    """Processor seconds of an operator that has nothing to do: imports, connections, empty lists."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "empty"}}
    await at.kube.request("create", "POST", "/api/v1/namespaces", body=body)
    async with Operator("empty", at) as operator:
        await until("rest", lambda: operator.idle(0), 120)
        return operator.processor_seconds()


async def measure(at: Server, objects: int, start: float, limit: float, rest: float) -> dict[str, Any]:
    """One size: from cold to rest, then a restart, then nothing."""
    namespace = f"bench-{objects}"
    await make(at, namespace, objects)
    api = at.plane.pid("kube-apiserver")
    load_before, api_before, writes_before = os.getloadavg()[0], processor_seconds(api), await at.writes()
    async with Operator(namespace, at) as operator:
        try:
            cold = await until(f"{objects} objects", lambda: converged(at, operator, namespace, objects), limit)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {await where(at, namespace)}") from None
        writes, spent, peak = await at.writes() - writes_before, operator.processor_seconds(), operator.peak_bytes()
        api_spent = processor_seconds(api) - api_before
    async with Operator(namespace, at) as operator:
        restart = await until("rest after a restart", lambda: operator.idle(objects), limit)
        restart_peak = operator.peak_bytes()
        before, looks = await at.writes(), await operator.metric("sluice_operator_reconciles_total") or 0
        used = operator.processor_seconds()
        await asyncio.sleep(rest)
        written = await at.writes() - before
        looks = (await operator.metric("sluice_operator_reconciles_total") or 0) - looks
        used = operator.processor_seconds() - used
    return {
        "objects": objects,
        "cold": cold,
        "ms/object": 1000 * cold / objects,
        "cpu ms/object": 1000 * (spent - start) / objects,
        "api cpu ms/object": 1000 * api_spent / objects,
        "writes/object": writes / objects,
        "peak MB": peak / 1e6,
        "restart": restart,
        "writes at rest": written,
        "restartPeakMB": restart_peak / 1e6,
        "restSeconds": rest,
        "looksAtRest": looks,
        "processorShareAtRest": used / rest,
        "loadBefore": load_before,
        "loadAfter": os.getloadavg()[0],
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost per object over the number of objects: flat is good."""
    figure = Figure(figsize=(8.6, 2.8), layout="constrained")
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    sizes = [row["objects"] for row in rows]
    left.plot(sizes, [row["cpu ms/object"] for row in rows], "o-", label="operator")
    left.plot(sizes, [row["api cpu ms/object"] for row in rows], "s--", label="API server")
    left.set_title("processor time per object, from cold", fontsize=9)
    left.set_ylabel("ms", fontsize=8)
    right.plot(sizes, [row["peak MB"] for row in rows], "o-", label="operator's peak memory")
    right.set_title("resident memory", fontsize=9)
    right.set_ylabel("MB", fontsize=8)
    for axis in (left, right):
        axis.set_xlabel("objects (half InferencePools, half TrainingRuns)", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.2)
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})


async def measure_all(report: Report, sizes: list[int], limit: float, rest: float) -> None:
    async with server() as at:
        version = await at.raw("/version")
        report.tools["kubernetes"] = str(version.get("gitVersion"))
        start = await alone(at)
        report.notes.append(f"cpu: of the operator alone, without the {start:.2f} s that it takes to start")
        for objects in sizes:
            row = await measure(at, objects, start, limit, rest)
            print({key: round(value, 2) for key, value in row.items()}, flush=True)
            report.add(**row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 1000, 2000], help="objects, in all")
    parser.add_argument("--limit", type=float, default=240, help="seconds a size may take to converge")
    parser.add_argument("--rest", type=float, default=30, help="seconds that are watched for writes at rest")
    parser.add_argument("--plot", type=Path, help="where the plot goes; default: beside the result")
    options = parser.parse_args()
    report = Report(
        "operator_scale",
        "The operator from cold, half InferencePools and half TrainingRuns, on a real API server (seconds)",
        [
            "objects",
            "cold",
            "ms/object",
            "cpu ms/object",
            "api cpu ms/object",
            "writes/object",
            "peak MB",
            "restart",
            "writes at rest",
        ],
        packages=["sluice-operator", "kopf", "aiohttp", "pydantic"],
    )
    asyncio.run(measure_all(report, options.sizes, options.limit, options.rest))
    report.notes += [
        "cold: all objects are there, the operator starts; until every child exists and nothing is due",
        "processor time is what other load on the machine disturbs least; that load is in the result",
        "restart: until it has listed and looked at every object again",
        f"writes at rest: in the {options.rest:.0f} s after that, by the API server's own count, Leases left out",
        "etcd and the API server share the machine's cores with the operator and with this script",
        f"Ray's kinds are the stand-in's loosely typed ones; {POOLS_A_VERSION} pools share a ModelVersion",
        "KubeRay's own published figure (perf-tests v1.1.1, a GKE cluster): 1,000 RayClusters ready in 258 s",
    ]
    path = report.finish()
    target = options.plot or RESULTS / f"{path.stem}.svg"
    plot(report.rows, target)
    print(f"plot: {target}")


if __name__ == "__main__":
    main()
