"""A whole life through a proxy that breaks it: every API call fails, the operator dies after every write.

The life: a TrainingRun makes version v2, while a pool serves v1; then the pool tries v2 by a canary and promotes it.
KubeRay, the Job and Deployment controllers and the gateways are played beside it, straight at the API server. What is
there at the end must be the same as in a life without faults.

Calls are told apart by method, path and body (times in it left out), so that a call and its repetition are one. Covered
are all calls that such a life makes: discovery, lists, watches, the Lease, children, statuses, events.
- In one life each call meets a 500, then a broken connection, then a 429 with Retry-After, and passes at last.
- In one life each call fails as often as the client tries, so that the loop's own back-off has to bring it; writes are
  carried out and their answers lost, the worst kind. An operator that ends over that is started anew, as by kubelet.
- In one life the operator is cut off and ended after each write that it has not made before, and a new one starts.
"""

import asyncio
import contextlib
import gc
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from sluice_contracts.analysis import AnalysisSnapshot, VersionCounts
from sluice_contracts.job import JobConfig, JobResult
from sluice_devcluster.ports import free_port
from sluice_operator.children.gateway import gateway_name
from sluice_operator.children.routes import read_routes, routes_name
from sluice_operator.kube import client as client_
from sluice_operator.kube.client import ATTEMPTS, KubeClient
from sluice_operator.kube.resources import (
    CHILDREN,
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_POOL,
    MODEL_VERSION,
    OWN,
    RAY_JOB,
    RAY_SERVICE,
    ROLE,
    TRAINING_RUN,
)
from sluice_operator.main import run

from tests.operator.conftest import RAY_STATUS, Bucket, Cluster, FakeGateway, Make
from tests.operator.faulty_proxy import Book, Call, Decide, Fault, FaultyProxy

pytestmark = pytest.mark.apiserver
POOL, LINEAGE_1 = "chat", "1" * 64
LIFE_SECONDS = 60.0
PRESENT = [r for r in (*OWN, *CHILDREN) if r.group != "gateway.networking.k8s.io"]
"""All kinds but HTTPRoute, which this API server does not know."""
TIMES = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z|\d{14,}")


class Life:
    """The world around the operator, which goes on whatever happens to it."""

    def __init__(self, cluster: Any, bucket: Any, make: Any, gateway: Any) -> None:
        self.cluster, self.bucket, self.make, self.gateway = cluster, bucket, make, gateway

    async def play(self) -> None:
        """KubeRay, the Deployment controller and the gateways, for ever."""
        while True:
            async for obj in self.cluster.kube.list(RAY_SERVICE, self.cluster.namespace):
                if not obj.get("status"):
                    await self.cluster.ray(RAY_SERVICE, obj["metadata"]["name"], "ready")
            async for obj in self.cluster.kube.list(RAY_JOB, self.cluster.namespace):
                if not obj.get("status"):
                    await self._train(obj["metadata"]["name"])
            if await self.cluster.get(DEPLOYMENT, gateway_name(POOL)) is not None:
                await self.cluster.gateway_ready(POOL)
            routes = read_routes(await self.cluster.get(CONFIG_MAP, routes_name(POOL)))
            if routes is not None and len(routes.backends) == 2:
                counts = {"v1": VersionCounts(requests=400, errors=2), "v2": VersionCounts(requests=400, errors=2)}
                self.gateway.snapshot = AnalysisSnapshot(
                    instance="i", window=routes.window, since="2026-11-21T12:00:00Z", versions=counts
                )
            await asyncio.sleep(0.05)

    async def _train(self, job: str) -> None:
        config_map = await self.cluster.get(CONFIG_MAP, "v2-job")
        told = JobConfig.model_validate_json(config_map["data"]["run.json"])
        self.bucket.outcome(told, JobResult.SUCCEEDED)
        await self.cluster.status(RAY_JOB, job, RAY_STATUS["succeeded"])

    async def live(self) -> None:
        """What people do, and the wait for what should come of it."""
        cluster = self.cluster
        await self.gateway.appear(cluster, POOL)
        manifest = self.bucket.version(LINEAGE_1)
        await cluster.apply(MODEL_VERSION, "v1", {"model": "support-bot", "version": "v1", "manifest": manifest.wire()})
        await cluster.apply(TRAINING_RUN, "v2", self.make.run_spec(dataset=self.bucket.dataset()).wire())
        await cluster.apply(INFERENCE_POOL, POOL, self.pool("v1"))
        await cluster.condition(INFERENCE_POOL, POOL, "Ready", "True", "Serving", seconds=LIFE_SECONDS)
        await cluster.condition(TRAINING_RUN, "v2", "Ready", "True", "Succeeded", seconds=LIFE_SECONDS)
        await cluster.apply(INFERENCE_POOL, POOL, self.pool("v2"))

        async def promoted() -> bool:
            status = (await cluster.get(INFERENCE_POOL, POOL))["status"]
            ready = next(c for c in status["conditions"] if c["type"] == "Ready")
            version = await cluster.get(MODEL_VERSION, "v2")
            told = {c["type"]: c["status"] for c in (version.get("status") or {}).get("conditions") or []}
            return status["stable"]["modelVersion"] == "v2" and ready["status"] == told.get("Promoted") == "True"

        await cluster.until("v2 promoted", promoted, seconds=LIFE_SECONDS)

    async def rest(self, kubelet: "Kubelet") -> dict[str, Any]:
        """The end, after a while in which the operator lives (it renews its Lease) and writes nothing else."""

        def written(leases: bool) -> int:
            calls = kubelet.book.calls
            return sum(calls[call] for call in kubelet.book.writes if ("/leases" in call.path) is leases)

        found = await self.end()
        before, renewals = written(leases=False), written(leases=True)

        async def renewed() -> bool:
            return written(leases=True) >= renewals + 2

        await self.cluster.until("two renewals of the Lease", renewed, seconds=30)
        assert written(leases=False) == before, "at rest only the Lease is written"
        assert await self.end() == found
        return found

    def pool(self, version: str) -> Any:
        # The gateways' counts may be late on a busy machine: that is not the fault which is tried here.
        patience = {"minRequests": 20, "consecutiveErrorLimit": 60}
        rollout = {"steps": [50], "interval": "1s", "stepDuration": "1s", **patience}
        return self.make.pool_spec(modelVersion=version, rollout=rollout).wire()

    async def end(self, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """All that is there when it has come to rest: waited for until it is `before`, if that is given."""
        found: dict[str, Any] = {}
        for _ in range(100):
            found = {}
            versions = [v async for v in self.cluster.kube.list(MODEL_VERSION, self.cluster.namespace)]
            named = {v["spec"]["manifest"]["digest"][7:15]: v["metadata"]["name"] for v in versions}
            for resource in PRESENT:
                selector = None if resource in OWN else "app.kubernetes.io/managed-by=sluice"
                async for obj in self.cluster.kube.list(resource, self.cluster.namespace, selector):
                    timeless = self._timeless(obj, named)
                    found[f"{resource.kind}/{timeless['metadata']['name']}"] = timeless
            if before is None or found == before:
                break
            await asyncio.sleep(0.1)
        return found

    def _timeless(self, obj: Any, named: dict[str, str]) -> Any:
        """Without what differs between any two lives: names of folders, what is derived from them, moments."""
        meta = obj["metadata"]
        kept = {k: meta[k] for k in ("name", "labels", "annotations") if k in meta}
        kept["annotations"] = {k: v for k, v in kept.get("annotations", {}).items() if not k.endswith("/applied")}
        owners = [{k: v for k, v in owner.items() if k != "uid"} for owner in meta.get("ownerReferences") or []]
        body = {k: v for k, v in obj.items() if k in {"spec", "data", "rules", "subjects", "roleRef", "status"}}
        if obj["kind"] == "TrainingRun":
            body["status"] = {k: v for k, v in (body.get("status") or {}).items() if k != "usage"}  # seconds
        if obj["kind"] == "Service":
            body["spec"] = {k: v for k, v in body["spec"].items() if not k.startswith("clusterIP")}
        text = json.dumps({"metadata": kept, "owners": owners, **body}, sort_keys=True)
        text = text.replace(self.cluster.namespace, "NAMESPACE").replace(str(self.bucket.root), "BUCKET")
        for digest, version in named.items():
            text = text.replace(digest, version)
        text = re.sub(r"\b[0-9a-f]{16,64}\b|(?<=sha256:v\d)[0-9a-f]{56}", "HASH", text)
        return json.loads(TIMES.sub("TIME", text))


class Kubelet:
    """Keeps one operator running through proxies: an instance that has ended, or was killed, is followed by another."""

    def __init__(self, cluster: Any, kubeconfig: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._cluster, self._kubeconfig, self._folder, self._patch = cluster, kubeconfig, folder, monkeypatch
        self.book = Book()
        self.started = 0
        self.concurrency = 8
        self._all: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self, decide: Decide | None = None, deadly: Callable[[Call], bool] | None = None) -> Any:
        keeper = asyncio.create_task(self._keep(decide, deadly or (lambda _call: False)))
        try:
            yield keeper
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await asyncio.gather(*self._all, return_exceptions=True)

    async def _keep(self, decide: Decide | None, deadly: Callable[[Call], bool]) -> None:
        while True:
            killed = asyncio.Event()

            def wrote(call: Call, killed: asyncio.Event = killed) -> None:
                if deadly(call):
                    proxy.die()
                    killed.set()

            async with FaultyProxy(self._kubeconfig, self._folder, self.book, decide, wrote) as proxy:
                self._patch.setenv("KUBECONFIG", str(proxy.kubeconfig))
                settings = replace(self._cluster.settings, http_port=free_port(), concurrency=self.concurrency)
                operator = asyncio.create_task(run(settings, asyncio.Event()))
                self.started += 1
                self._all.append(operator)
                waiting = asyncio.create_task(killed.wait())
                try:
                    await asyncio.wait([operator, waiting], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
                    operator.cancel()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the product, made short: how long they are is tested elsewhere."""
    monkeypatch.setattr("sluice_operator.kube.client.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("sluice_operator.kube.client.LONGEST_PAUSE", 0.02)
    monkeypatch.setattr("sluice_operator.kube.client.LONGEST_OBEYED", 0.02)
    monkeypatch.setattr("sluice_operator.engine.queue.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("sluice_operator.engine.queue.LONGEST_PAUSE", 0.5)
    monkeypatch.setattr("sluice_operator.engine.leader.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("sluice_operator.engine.watch.BACKOFFS", [0.05] * 8)


@contextlib.asynccontextmanager
async def a_life(ray_kinds: Any, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    """A namespace of its own with the world in it, and no operator yet."""
    monkeypatch.setenv("KUBECONFIG", str(ray_kinds.kubeconfig))
    namespace, bucket = f"life-{uuid.uuid4().hex[:8]}", Bucket(folder / "bucket")
    assert ray_kinds("create", "namespace", namespace).returncode == 0
    settings = Make.settings(
        namespace=namespace,
        watch_namespaces=(namespace,),
        storage_uri=bucket.uri,
        http_port=free_port(),
        identity="one",
    )
    snapshot = AnalysisSnapshot(instance="i", window="", since="2026-11-21T12:00:00Z", versions={})
    gateway = FakeGateway(address, snapshot)
    await gateway.start()
    async with KubeClient() as kube:
        found = Life(Cluster(kube, namespace, settings), bucket, Make(), gateway)
        playing = asyncio.create_task(found.play())
        try:
            yield found
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            await gateway.stop()
            for resource in (*OWN, RAY_JOB, RAY_SERVICE, CONFIG_MAP):
                async for obj in kube.list(resource, namespace):
                    await kube.delete(resource, namespace, obj["metadata"]["name"])


@pytest.fixture
async def life(ray_kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Life]:
    async with a_life(ray_kinds, tmp_path, "127.0.0.31", monkeypatch) as found:
        yield found


@pytest.fixture
def kubelet(life: Life, ray_kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None) -> Kubelet:
    return Kubelet(life.cluster, ray_kinds.kubeconfig, tmp_path, monkeypatch)


_untroubled: dict[str, Any] = {}


@pytest.fixture
async def untroubled(ray_kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None) -> dict[str, Any]:
    """The end of a life without faults; lived once for all tests."""
    if not _untroubled:
        folder = tmp_path / "untroubled"
        folder.mkdir()
        async with a_life(ray_kinds, folder, "127.0.0.32", monkeypatch) as life:
            kubelet = Kubelet(life.cluster, ray_kinds.kubeconfig, folder, monkeypatch)
            async with kubelet.running():
                await life.live()
                _untroubled.update(await life.rest(kubelet))
            assert kubelet.started == 1
        monkeypatch.setenv("KUBECONFIG", str(ray_kinds.kubeconfig))
    return _untroubled


async def same_end(life: Life, untroubled: dict[str, Any]) -> None:
    found = await life.end(untroubled)
    assert set(found) == set(untroubled)
    for name, obj in untroubled.items():
        assert found[name] == obj, name


class TestLives:
    async def test_at_rest_nothing_is_written(self, untroubled: dict[str, Any]) -> None:
        """What `Life.rest` has watched for the life without faults; and that there was much that could be written."""
        kinds = {name.split("/")[0] for name in untroubled}
        assert {"RayService", "Deployment", "ConfigMap", "Role", "NetworkPolicy", "ModelVersion"} <= kinds

    async def test_every_call_meets_a_500_a_broken_connection_and_a_429(
        self, life: Life, kubelet: Kubelet, untroubled: dict[str, Any]
    ) -> None:
        faults = [Fault.REFUSED, Fault.DROPPED, Fault.BUSY]
        async with kubelet.running(lambda _call, times: faults[times] if times < len(faults) else None):
            await life.live()
            await same_end(life, untroubled)
        assert all(kubelet.book.faults[fault] > 50 for fault in faults), kubelet.book.faults

    async def test_every_call_fails_as_often_as_the_client_tries(
        self, life: Life, kubelet: Kubelet, untroubled: dict[str, Any]
    ) -> None:
        def decide(call: Call, times: int) -> Fault | None:
            if times >= ATTEMPTS:
                return None
            return Fault.UNANSWERED if call.writes else Fault.DROPPED

        async with kubelet.running(decide):
            await life.live()
            await same_end(life, untroubled)
        assert kubelet.book.faults[Fault.UNANSWERED] > 50

    @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_the_operator_dies_after_every_write(
        self, life: Life, kubelet: Kubelet, untroubled: dict[str, Any]
    ) -> None:
        deadly: set[Call] = set()
        kubelet.concurrency = 1  # two writes at the same time would have one death between them

        def first(call: Call) -> bool:
            if call in deadly or "/leases" in call.path:
                return False
            deadly.add(call)
            return True

        async with kubelet.running(deadly=first):
            await life.live()
            await same_end(life, untroubled)
        assert kubelet.started > len(deadly) > 25
        gc.collect()  # the dead leave connections behind: here, not in the next test


async def test_drift_of_any_child_is_repaired_within_ten_seconds(life: Life) -> None:
    cluster = life.cluster
    await cluster.start()
    await cluster.apply(
        MODEL_VERSION,
        "v1",
        {"model": "support-bot", "version": "v1", "manifest": life.bucket.version(LINEAGE_1).wire()},
    )
    await cluster.apply(INFERENCE_POOL, POOL, life.pool("v1"))
    await cluster.apply(TRAINING_RUN, "v2", life.make.run_spec(dataset=life.bucket.dataset()).wire())
    await cluster.condition(INFERENCE_POOL, POOL, "Ready", "True", "Serving")
    await cluster.condition(TRAINING_RUN, "v2", "Ready", "True", "Succeeded")
    ours = [
        (resource, name)
        for resource in (*(r for r in PRESENT if r != RAY_JOB and r not in OWN), MODEL_VERSION)
        for name in await cluster.names(resource)
        if name not in {"v1", "v2-job"}  # a finished run keeps what it made, and needs no job's configuration any more
    ]
    assert len({resource for resource, _ in ours}) >= 9
    uids = {(r, n): (await cluster.get(r, n))["metadata"]["uid"] for r, n in ours}
    await asyncio.gather(*(cluster.kube.delete(resource, cluster.namespace, name) for resource, name in ours))

    async def back() -> bool:
        for (resource, name), uid in uids.items():
            obj = await cluster.get(resource, name)
            if obj is None or obj["metadata"]["uid"] == uid:
                return False
        return True

    await cluster.until("all children made anew", back, seconds=10)
    wide = {"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}
    await cluster.kube.merge(ROLE, cluster.namespace, gateway_name(POOL), wide)
    await cluster.kube.merge(DEPLOYMENT, cluster.namespace, gateway_name(POOL), {"spec": {"replicas": 7}})

    async def mended() -> bool:
        role, deployment = (
            await cluster.get(ROLE, gateway_name(POOL)),
            await cluster.get(DEPLOYMENT, gateway_name(POOL)),
        )
        return "secrets" not in str(role["rules"]) and deployment["spec"]["replicas"] == 1

    await cluster.until("a widened Role and a scaled Deployment mended", mended, seconds=10)


async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(
    tmp_path: Path, ray_kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_, "FIRST_PAUSE", 0.01)
    moments: list[float] = []

    async def busy(_: web.Request) -> web.Response:
        moments.append(asyncio.get_running_loop().time())
        if len(moments) == 1:
            return web.json_response({"message": "busy"}, status=429, headers={"Retry-After": "1"})
        return web.json_response({"kind": "ConfigMap"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", busy)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with FaultyProxy(ray_kinds.kubeconfig, tmp_path, Book()) as proxy:
            address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            text = re.sub(r"http://127\.0\.0\.1:\d+", address, proxy.kubeconfig.read_text())
            proxy.kubeconfig.write_text(text)
            monkeypatch.setenv("KUBECONFIG", str(proxy.kubeconfig))
            async with KubeClient() as kube:
                assert kube.unreachable(0) == "the API server has not answered yet"
                assert await kube.get(CONFIG_MAP, "n", "c") == {"kind": "ConfigMap"}
                assert kube.retries == 1
                assert kube.unreachable(0) is None
        assert moments[1] - moments[0] >= 0.95
    finally:
        await runner.cleanup()
