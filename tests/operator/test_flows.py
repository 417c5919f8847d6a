"""The operator against a real API server, with the test playing KubeRay, the kubelet and the gateways."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from sluice_contracts.adapters import adapter_application
from sluice_contracts.analysis import AnalysisSnapshot, VersionCounts
from sluice_contracts.job import JobResult
from sluice_contracts.names import FINALIZER_IN_USE
from sluice_contracts.training_run import GateResult, Stage
from sluice_devcluster.ports import free_port
from sluice_operator.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_POOL,
    JOB,
    MODEL_VERSION,
    NETWORK_POLICY,
    POD,
    RAY_JOB,
    RAY_SERVICE,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    TRAINING_RUN,
)

pytestmark = pytest.mark.apiserver
LINEAGE_1, LINEAGE_2 = "1" * 64, "2" * 64


def run_body(bucket: Any, make: Any, **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = make.run_spec(dataset=bucket.dataset(), **changes).wire()
    return body


def pool_body(make: Any, **changes: Any) -> dict[str, Any]:
    rollout = {"interval": "1s", "stepDuration": "1s", "minRequests": 20} | changes.pop("rollout", {})
    body: dict[str, Any] = make.pool_spec(rollout=rollout, **changes).wire()
    return body


class TestTrainingRun:
    async def test_a_run_becomes_a_verified_model_version(self, cluster: Any, bucket: Any, make: Any) -> None:
        await cluster.apply(TRAINING_RUN, "v1", run_body(bucket, make))
        job = await cluster.exists(RAY_JOB, "v1")
        assert job["metadata"]["ownerReferences"][0]["kind"] == "TrainingRun"
        told = await cluster.told_job("v1")
        run = await cluster.condition(TRAINING_RUN, "v1", "Reconciling", "True", "Starting")
        assert run["status"]["lineage"] == told.lineage
        await cluster.ray(RAY_JOB, "v1", "running")
        bucket.progress(told, Stage.TRAINING, step=40, total_steps=100, loss=1.5)

        async def shown() -> bool:
            obj = await cluster.get(TRAINING_RUN, "v1")
            return bool(obj["status"].get("progress", {}).get("step") == 40)

        await cluster.until("progress in status", shown)
        bucket.outcome(told, JobResult.SUCCEEDED)
        await cluster.ray(RAY_JOB, "v1", "succeeded")
        done = await cluster.condition(TRAINING_RUN, "v1", "Ready", "True", "Succeeded")
        assert {c["type"]: c["status"] for c in done["status"]["conditions"]} == {
            "Ready": "True",
            "Reconciling": "False",
            "Stalled": "False",
            "Evaluated": "True",
            "Exported": "True",
        }
        version = await cluster.condition(MODEL_VERSION, "v1", "Verified", "True")
        assert version["spec"]["manifest"] == done["status"]["manifest"]
        assert version["status"]["lineage"] == told.lineage
        assert {"AttemptStarted", "Succeeded"} <= set(await cluster.reasons())

    async def test_a_failed_gate_ends_the_run_with_its_numbers(self, cluster: Any, bucket: Any, make: Any) -> None:
        await cluster.apply(TRAINING_RUN, "bad", run_body(bucket, make))
        await cluster.exists(RAY_JOB, "bad")
        told = await cluster.told_job("bad")
        gate = GateResult(
            metric="intent.accuracy", value=0.61, low=0.56, high=0.66, bound=">= 0.9", n=400, passed=False
        )
        bucket.outcome(told, JobResult.GATE_FAILED, gates=[gate])
        await cluster.ray(RAY_JOB, "bad", "succeeded")
        run = await cluster.condition(TRAINING_RUN, "bad", "Stalled", "True", "GateFailed")
        message = next(c["message"] for c in run["status"]["conditions"] if c["type"] == "Evaluated")
        assert "intent.accuracy 0.610 (95 % interval 0.560 to 0.660), n=400, misses >= 0.9" in message
        assert run["status"]["reportUri"] in message
        assert await cluster.get(MODEL_VERSION, "bad") is None

    async def test_a_missing_bucket_is_named_with_its_field(self, cluster: Any, bucket: Any, make: Any) -> None:
        body = run_body(bucket, make)
        body["dataset"]["uri"] = f"{bucket.uri}/nowhere/"
        await cluster.apply(TRAINING_RUN, "lost", body)
        run = await cluster.condition(TRAINING_RUN, "lost", "Stalled", "True", "DatasetNotFound")
        message = next(c["message"] for c in run["status"]["conditions"] if c["type"] == "Stalled")
        assert "spec.dataset.uri" in message
        assert "nowhere/manifest.json" in message
        assert await cluster.names(RAY_JOB) == []

    async def test_suspend_and_resume_move_only_the_jobs_suspend_field(
        self, cluster: Any, bucket: Any, make: Any
    ) -> None:
        body = run_body(bucket, make)
        await cluster.apply(TRAINING_RUN, "v1", body)
        before = await cluster.exists(RAY_JOB, "v1")
        await cluster.apply(TRAINING_RUN, "v1", body | {"suspend": True})
        await cluster.condition(TRAINING_RUN, "v1", "Ready", "False", "Suspended")
        held = await cluster.exists(RAY_JOB, "v1")
        assert held["spec"] == before["spec"] | {"suspend": True}
        await cluster.apply(TRAINING_RUN, "v1", body)

        async def resumed() -> bool:
            return not (await cluster.get(RAY_JOB, "v1"))["spec"]["suspend"]

        await cluster.until("suspend false again", resumed)


class TestModelVersion:
    async def test_a_missing_artefact_is_named(self, cluster: Any, bucket: Any) -> None:
        manifest = bucket.version(LINEAGE_1)
        (bucket.root / f"runs/{LINEAGE_1}/export/gguf/m-Q8_0.gguf").unlink()
        body = {"model": "support-bot", "version": "v1", "manifest": manifest.wire()}
        await cluster.apply(MODEL_VERSION, "v1", body)
        found = await cluster.condition(MODEL_VERSION, "v1", "Verified", "False", "ArtifactMissing")
        assert "export/gguf/m-Q8_0.gguf" in str(found["status"]["conditions"])

    async def test_publishing_without_a_pool_runs_the_publisher_and_reads_its_answer(
        self, cluster: Any, bucket: Any
    ) -> None:
        await cluster.version("v1", bucket.version(LINEAGE_1), publish={"channel": "beta"})
        job = await cluster.exists(JOB, "v1-publish")
        command = " ".join(job["spec"]["template"]["spec"]["containers"][0]["command"])
        assert "--channel beta --version v1 --percent 100" in command
        await finish_publisher(cluster, "v1-publish", '{"tufVersion": 4}')
        found = await cluster.condition(MODEL_VERSION, "v1", "Published", "True", "AllStagesOpen")
        assert found["status"]["release"]["tufVersion"] == 4
        assert found["status"]["release"]["percent"] == 100

    async def test_a_waived_version_waits_for_a_canary_even_if_publish_asks_for_none(
        self, cluster: Any, bucket: Any
    ) -> None:
        waiver = {"reason": "we want to see the canary", "approvedBy": "someone"}
        await cluster.version("v4", bucket.version(LINEAGE_1, run="v4", waiver=waiver), publish={"channel": "stable"})
        await cluster.condition(MODEL_VERSION, "v4", "Published", "False", "PromotionRequired")
        assert await cluster.names(JOB) == []


async def finish_publisher(cluster: Any, job: str, message: str) -> None:
    """The Job controller's and kubelet's part: a pod that ended with `message`, and a complete Job."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{job}-x",
            "namespace": cluster.namespace,
            "labels": {"batch.kubernetes.io/job-name": job},
        },
        "spec": {"containers": [{"name": "publisher", "image": "x"}], "restartPolicy": "Never"},
    }
    await cluster.kube.apply(POD, body, "test")
    ended = {"name": "publisher", "ready": False, "restartCount": 0, "image": "x", "imageID": "x"}
    ended |= {"state": {"terminated": {"exitCode": 0, "message": message}}}
    await cluster.status(POD, f"{job}-x", {"phase": "Succeeded", "containerStatuses": [ended]})
    moment = "2026-11-21T12:00:00Z"
    done = [
        {"type": t, "status": "True", "lastTransitionTime": moment, "lastProbeTime": moment}
        for t in ("SuccessCriteriaMet", "Complete")
    ]
    await cluster.status(JOB, job, {"conditions": done, "startTime": moment, "completionTime": moment, "succeeded": 1})


async def serve_first(cluster: Any, bucket: Any, make: Any, **changes: Any) -> None:
    """A pool whose first version serves."""
    await cluster.version("v1", bucket.version(LINEAGE_1))
    await cluster.version("v2", bucket.version(LINEAGE_2, run="v2"))
    await cluster.apply(INFERENCE_POOL, "chat", pool_body(make, **changes))
    (service,) = await cluster.until("the first RayService", lambda: cluster.names(RAY_SERVICE))
    await cluster.exists(DEPLOYMENT, "chat-gateway")
    await cluster.ray(RAY_SERVICE, service, "ready")
    await cluster.gateway_ready("chat")
    await cluster.condition(INFERENCE_POOL, "chat", "Ready", "True", "Serving")


async def start_rollout(cluster: Any, make: Any, **changes: Any) -> str:
    """Ask for v2 and have its engine ready; the name of its RayService."""
    before = set(await cluster.names(RAY_SERVICE))
    await cluster.apply(INFERENCE_POOL, "chat", pool_body(make, modelVersion="v2", **changes))

    async def second() -> set[str]:
        return set(await cluster.names(RAY_SERVICE)) - before

    (service,) = await cluster.until("the candidate's RayService", second)
    await cluster.ray(RAY_SERVICE, service, "ready")
    return str(service)


def counted(requests: int, errors: int) -> VersionCounts:
    return VersionCounts(requests=requests, errors=errors)


async def answer(gateway: Any, cluster: Any, stable: VersionCounts, candidate: VersionCounts) -> None:
    """Have the gateway report these counts in the window the routes name."""

    async def window() -> str:
        routes = await cluster.routes("chat")
        return str(routes["window"]) if len(routes["backends"]) == 2 else ""

    name = await cluster.until("the rollout's window", window)
    gateway.snapshot = AnalysisSnapshot(
        instance="i", window=name, since="2026-11-21T12:00:00Z", versions={"v1": stable, "v2": candidate}
    )


async def weights(cluster: Any, *wanted: tuple[str, int]) -> None:
    """Wait until the routes hold exactly these versions and weights: they follow the status in a moment."""

    async def so() -> bool:
        routes = await cluster.routes("chat")
        return [(b["modelVersion"], b["weight"]) for b in routes["backends"]] == list(wanted)

    await cluster.until(f"weights {wanted}", so, seconds=5)


Start = Callable[[str], Awaitable[Any]]


class TestInferencePool:
    async def test_the_first_version_goes_straight_to_stable_with_all_its_children(
        self, cluster: Any, bucket: Any, make: Any
    ) -> None:
        await serve_first(cluster, bucket, make)
        for resource in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, ROLE, ROLE_BINDING):
            assert await cluster.names(resource) == ["chat-gateway"]
        assert await cluster.names(NETWORK_POLICY) == ["chat-engines", "chat-gateway"]
        role = await cluster.get(ROLE, "chat-gateway")
        assert role["rules"] == [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": ["chat-routes"],
                "verbs": ["get", "list", "watch"],
            }
        ]
        await weights(cluster, ("v1", 100))
        assert (await cluster.routes("chat"))["backends"][0]["ready"] is True
        await cluster.condition(MODEL_VERSION, "v1", "Promoted", "True")

    async def test_a_good_candidate_is_promoted_step_by_step_and_then_published(
        self, cluster: Any, bucket: Any, make: Any, gateways: Start
    ) -> None:
        await serve_first(cluster, bucket, make)
        await cluster.apply(
            MODEL_VERSION,
            "v2",
            (await cluster.get(MODEL_VERSION, "v2"))["spec"]
            | {"publish": {"channel": "stable", "after": {"promotedIn": "chat"}}},
        )
        await cluster.condition(MODEL_VERSION, "v2", "Published", "False", "WaitingForPromotion")
        gateway = await gateways("127.0.0.21")
        await gateway.appear(cluster, "chat")
        await start_rollout(cluster, make)
        await answer(gateway, cluster, counted(400, 2), counted(100, 0))

        async def second_step() -> bool:
            return bool((await cluster.get(INFERENCE_POOL, "chat"))["status"].get("step") == 1)

        await cluster.until("step 2", second_step)
        await weights(cluster, ("v1", 50), ("v2", 50))
        window = (await cluster.routes("chat"))["window"]
        await answer(gateway, cluster, counted(800, 4), counted(500, 2))
        pool = await cluster.condition(INFERENCE_POOL, "chat", "Ready", "True", "Serving")
        assert pool["status"]["stable"]["modelVersion"] == "v2"
        assert pool["status"]["previous"]["modelVersion"] == "v1"
        assert pool["status"]["history"][-1]["outcome"] == "Promoted"
        assert pool["status"]["history"][-1]["verdicts"][0]["verdict"] == "equivalent"
        await weights(cluster, ("v2", 100))
        assert (await cluster.routes("chat"))["window"] == window
        assert len(await cluster.names(RAY_SERVICE)) == 2
        await cluster.exists(JOB, "v2-publish")

    async def test_an_adapter_is_tried_and_promoted_on_the_pods_of_its_base(
        self, cluster: Any, bucket: Any, make: Any, gateways: Start
    ) -> None:
        base = bucket.version(LINEAGE_1)
        await cluster.version("v1", base)
        await cluster.version("v2", bucket.version(LINEAGE_2, run="v2", adapter_on=base.digest))
        version = await cluster.condition(MODEL_VERSION, "v2", "Verified", "True")
        assert version["status"]["buildsOn"] == {"digest": base.digest, "adapter": False, "rank": 16}
        room = {"engine": {"adapters": {}}, "rollout": {"rollbackWindow": "1s"}}
        await cluster.apply(INFERENCE_POOL, "chat", pool_body(make, **room))
        (service,) = await cluster.until("the RayService", lambda: cluster.names(RAY_SERVICE))
        before = (await cluster.get(RAY_SERVICE, service))["spec"]["rayClusterConfig"]
        await cluster.ray(RAY_SERVICE, service, "ready")
        gateway = await gateways("127.0.0.27")
        await gateway.appear(cluster, "chat")
        await cluster.gateway_ready("chat")
        await cluster.condition(INFERENCE_POOL, "chat", "Ready", "True", "Serving")

        await cluster.apply(INFERENCE_POOL, "chat", pool_body(make, modelVersion="v2", **room))
        pool = await cluster.condition(INFERENCE_POOL, "chat", "Ready", "False", "CandidateStarting")
        assert pool["status"]["rolloutNeeds"]["accelerators"] == pool["status"]["rolloutNeeds"]["replicas"] == 0
        name = adapter_application(pool["status"]["candidate"]["manifestDigest"])

        async def configured() -> bool:
            return name in (await cluster.get(RAY_SERVICE, service))["spec"]["serveConfigV2"]

        await cluster.until("the adapter's application", configured)
        both = {"llm": {"status": "RUNNING"}, name: {"status": "RUNNING"}}
        await cluster.ray(RAY_SERVICE, service, "ready", activeServiceStatus={"applicationStatuses": both})
        await weights(cluster, ("v1", 80), ("v2", 20))
        await answer(gateway, cluster, counted(400, 2), counted(100, 0))
        await weights(cluster, ("v1", 50), ("v2", 50))
        await answer(gateway, cluster, counted(800, 4), counted(500, 2))
        await cluster.condition(INFERENCE_POOL, "chat", "Ready", "True", "Serving")
        await weights(cluster, ("v2", 100))
        assert (await cluster.routes("chat"))["backends"][0]["engineModel"].startswith("support-bot:")

        async def forgotten() -> bool:
            return "previous" not in (await cluster.get(INFERENCE_POOL, "chat"))["status"]

        await cluster.until("the end of the rollback window", forgotten)
        assert await cluster.names(RAY_SERVICE) == [service]
        assert (await cluster.get(RAY_SERVICE, service))["spec"]["rayClusterConfig"] == before
        assert FINALIZER_IN_USE in (await cluster.get(MODEL_VERSION, "v1"))["metadata"]["finalizers"]

    async def test_a_harmful_candidate_loses_its_traffic_and_the_spec_is_left_alone(
        self, cluster: Any, bucket: Any, make: Any, gateways: Start
    ) -> None:
        await serve_first(cluster, bucket, make)
        gateway = await gateways("127.0.0.22")
        await gateway.appear(cluster, "chat")
        await start_rollout(cluster, make)
        await answer(gateway, cluster, counted(400, 2), counted(100, 60))
        pool = await cluster.condition(INFERENCE_POOL, "chat", "Stalled", "True", "RolledBack")
        assert pool["spec"]["modelVersion"] == "v2"
        assert pool["status"]["verdicts"][0]["verdict"] == "harmful"
        assert pool["status"]["weights"] == [{"modelVersion": "v1", "percent": 100}]
        available = next(c for c in pool["status"]["conditions"] if c["type"] == "Available")
        assert available["status"] == "True"
        await weights(cluster, ("v1", 100))
        await cluster.condition(MODEL_VERSION, "v2", "Promoted", "False")
        assert "RolledBack" in await cluster.reasons()

    async def test_an_engine_that_cannot_start_is_rolled_back_with_its_reason(
        self, cluster: Any, bucket: Any, make: Any
    ) -> None:
        await serve_first(cluster, bucket, make)
        service = await start_rollout(cluster, make)
        await cluster.ray(RAY_SERVICE, service, "deploy-failed")

        # it may have been ready for a moment; then the canary goes on at weight 0
        async def over() -> bool:
            pool = await cluster.get(INFERENCE_POOL, "chat")
            weights = {w["modelVersion"]: w["percent"] for w in pool["status"]["weights"]}
            return weights.get("v2", 0) == 0

        await cluster.until("no traffic for v2", over)

    async def test_drift_of_a_child_is_repaired(self, cluster: Any, bucket: Any, make: Any) -> None:
        await serve_first(cluster, bucket, make)
        await cluster.kube.delete(SERVICE, cluster.namespace, "chat-gateway")
        await cluster.exists(SERVICE, "chat-gateway", seconds=10)
        await cluster.kube.merge(CONFIG_MAP, cluster.namespace, "chat-routes", {"data": {"routes.json": "{}"}})

        async def repaired() -> bool:
            return bool((await cluster.routes("chat")).get("backends"))

        await cluster.until("the routes again", repaired, seconds=10)


class TestRefusals:
    async def test_a_child_that_the_api_server_refuses_is_told_and_tried_again(
        self, cluster: Any, bucket: Any, make: Any
    ) -> None:
        await cluster.version("v1", bucket.version(LINEAGE_1))
        bad = {"auth": {"secretRef": {"name": "keys"}}, "podTemplate": {"spec": {"dnsPolicy": "Wrong"}}}
        await cluster.apply(INFERENCE_POOL, "chat", pool_body(make, gateway=bad))
        pool = await cluster.condition(INFERENCE_POOL, "chat", "Stalled", "True", "ApplyRejected")
        message = next(c["message"] for c in pool["status"]["conditions"] if c["type"] == "Stalled")
        assert "Deployment chat-gateway" in message
        assert "dnsPolicy" in message
        await cluster.apply(INFERENCE_POOL, "chat", pool_body(make))
        await cluster.exists(DEPLOYMENT, "chat-gateway")
        await cluster.condition(INFERENCE_POOL, "chat", "Stalled", "False")

    async def test_a_pool_waits_for_its_version_and_goes_on_when_it_comes(
        self, cluster: Any, bucket: Any, make: Any
    ) -> None:
        await cluster.apply(INFERENCE_POOL, "chat", pool_body(make))
        pool = await cluster.condition(INFERENCE_POOL, "chat", "Reconciling", "True", "VersionNotFound")
        assert "there is no ModelVersion v1" in str(pool["status"]["conditions"])
        await cluster.version("v1", bucket.version(LINEAGE_1))
        await cluster.until("the engine", lambda: cluster.names(RAY_SERVICE))

    async def test_a_run_waits_for_the_version_it_starts_from(self, cluster: Any, bucket: Any, make: Any) -> None:
        body = run_body(bucket, make, base={"modelVersion": "v1"}, recipe={"method": "sft", "steps": 5})
        await cluster.apply(TRAINING_RUN, "v2", body)
        await cluster.condition(TRAINING_RUN, "v2", "Reconciling", "True", "WaitingForBase")
        reference = bucket.version(LINEAGE_1)
        await cluster.version("v1", reference)
        told = await cluster.told_job("v2")
        assert told.base_manifest == reference


async def test_nothing_is_written_at_rest(cluster: Any, bucket: Any, make: Any) -> None:
    await serve_first(cluster, bucket, make)
    await cluster.apply(TRAINING_RUN, "run", run_body(bucket, make))
    await cluster.exists(RAY_JOB, "run")
    bucket.outcome(await cluster.told_job("run"), JobResult.SUCCEEDED)
    await cluster.ray(RAY_JOB, "run", "succeeded")
    await cluster.condition(MODEL_VERSION, "run", "Verified", "True")
    await cluster.stop()

    async def versions() -> dict[str, str]:
        kinds = (TRAINING_RUN, MODEL_VERSION, INFERENCE_POOL, RAY_JOB, RAY_SERVICE, DEPLOYMENT, CONFIG_MAP, ROLE)
        return {
            f"{kind}/{o['metadata']['name']}": o["metadata"]["resourceVersion"]
            for kind in kinds
            async for o in cluster.kube.list(kind, cluster.namespace)
        }

    before = await versions()
    await cluster.start()
    port = cluster.settings.http_port

    async def looked_at_all() -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as response:
                text = await response.text()
        except aiohttp.ClientError:
            return False
        seen = sum(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("sluice_operator_reconciles_total")
        )
        waiting = next(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("sluice_operator_queue_ready")
        )
        return seen >= 5 and waiting == 0

    await cluster.until("a look at every object", looked_at_all)
    assert await versions() == before
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    writes = next(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith("sluice_operator_api_writes")
    )
    assert writes <= 2, "only the Lease is written"


async def test_killed_at_any_moment_it_goes_on(cluster: Any, bucket: Any, make: Any, ray_kinds: Any) -> None:
    """The operator as a process of its own, killed without warning between every two steps of a run."""
    await cluster.stop()
    environment = os.environ | {
        "KUBECONFIG": str(ray_kinds.kubeconfig),
        "SLUICE_NAMESPACE": cluster.namespace,
        "SLUICE_WATCH_NAMESPACES": cluster.namespace,
        "SLUICE_STORAGE_URI": bucket.uri,
        "SLUICE_IMAGE_TRAINER": "t",
        "SLUICE_IMAGE_SERVE": "s",
        "SLUICE_IMAGE_GATEWAY": "g",
        "SLUICE_IMAGE_PUBLISHER": "p",
        "SLUICE_HTTP_PORT": str(free_port()),
        "SLUICE_LEADER_ELECTION": "false",
        "SLUICE_GIT_SHA": "c0ffee",
    }

    class Process:
        async def __aenter__(self) -> None:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sluice_operator.main", env=environment, stderr=asyncio.subprocess.DEVNULL
            )

        async def __aexit__(self, *_: object) -> None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    async with Process():
        await cluster.apply(TRAINING_RUN, "v1", run_body(bucket, make))
        await cluster.exists(RAY_JOB, "v1")
    told = await cluster.told_job("v1")
    await cluster.ray(RAY_JOB, "v1", "failed", endTime="2026-01-01T00:00:00Z")
    async with Process():
        await cluster.exists(RAY_JOB, "v1-2")
    await cluster.kube.delete(CONFIG_MAP, cluster.namespace, "v1-job")
    async with Process():
        assert await cluster.told_job("v1") == told
    bucket.outcome(told, JobResult.SUCCEEDED)
    await cluster.ray(RAY_JOB, "v1-2", "succeeded")
    async with Process():
        run = await cluster.condition(TRAINING_RUN, "v1", "Ready", "True", "Succeeded")
        await cluster.condition(MODEL_VERSION, "v1", "Verified", "True")
    assert run["status"]["attempts"] == 2
    assert run["status"]["failures"] == 1
