"""Money, eviction and leftovers of TrainingRuns on a real API server, with the test playing KubeRay."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sluice_contracts.base import timestamp
from sluice_contracts.job import JobResult
from sluice_operator.kube.resources import CHILDREN, MODEL_VERSION, POD_DISRUPTION_BUDGET, RAY_JOB, TRAINING_RUN
from sluice_operator.prices import parse_prices

pytestmark = pytest.mark.apiserver
ONE_HEAD = {"rayClusterStatus": {"head": {"podIP": "10.0.0.9"}}}


def body(bucket: Any, make: Any, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = make.run_spec(dataset=bucket.dataset(), **changes).wire()
    return made


async def with_prices(cluster: Any, text: str) -> None:
    """What `helm upgrade` does: the operator starts anew with another table."""
    await cluster.stop()
    cluster.settings = replace(cluster.settings, prices=parse_prices(text))
    await cluster.start()


async def gone(cluster: Any, resource: Any, name: str) -> None:
    async def check() -> bool:
        return await cluster.get(resource, name) is None

    await cluster.until(f"no {resource.kind} {name}", check)


async def test_a_run_that_costs_too_much_is_stopped_and_goes_on_when_it_may(
    cluster: Any, bucket: Any, make: Any, ray_kinds: Any
) -> None:
    wish = body(bucket, make, limits={"maxCost": "400.00", "maxFailures": 0})
    await cluster.apply(TRAINING_RUN, "v1", wish)
    run = await cluster.condition(TRAINING_RUN, "v1", "Stalled", "True", "PriceUnknown")
    assert "prices.onDemand.cpu" in str(run["status"]["conditions"])
    assert await cluster.names(RAY_JOB) == []

    await with_prices(cluster, '{"currency": "EUR", "onDemand": {"cpu": 720000}}')  # 200 a second
    await cluster.exists(RAY_JOB, "v1")
    await cluster.ray(RAY_JOB, "v1", "running", **ONE_HEAD)
    await cluster.exists(POD_DISRUPTION_BUDGET, "v1-pods")
    run = await cluster.condition(TRAINING_RUN, "v1", "Stalled", "True", "CostExceeded")
    message = next(c["message"] for c in run["status"]["conditions"] if c["type"] == "Stalled")
    assert message.startswith(f"cost {run['status']['cost']['total']} EUR (limits.maxCost 400.00)")
    assert float(run["status"]["cost"]["total"]) >= 400
    await gone(cluster, RAY_JOB, "v1")
    await gone(cluster, POD_DISRUPTION_BUDGET, "v1-pods")
    row = ray_kinds("get", "trun", "v1", "-n", cluster.namespace).stdout.splitlines()
    assert row[0].split()[:8] == ["NAME", "MODEL", "STAGE", "STEP", "OF", "LOSS", "ETA", "COST"]
    assert run["status"]["cost"]["total"] in row[1].split()

    await cluster.apply(TRAINING_RUN, "v1", wish | {"limits": {"maxCost": "900000000", "maxFailures": 0}})
    await cluster.exists(RAY_JOB, "v1-2")
    run = await cluster.condition(TRAINING_RUN, "v1", "Reconciling", "True", "Starting")
    assert (run["status"]["failures"], run["status"]["stops"], run["status"]["attempts"]) == (0, 1, 2)


async def test_suspended_resumed_preempted_done_and_cleared_away(cluster: Any, bucket: Any, make: Any) -> None:
    began = datetime.now(UTC)

    def entry_point(seconds: float, job_id: str) -> dict[str, Any]:
        return {"jobId": job_id, "rayJobInfo": {"startTime": timestamp(began + timedelta(seconds=seconds))}} | ONE_HEAD

    wish = body(bucket, make, ttlAfterFinished="1s")
    await cluster.apply(TRAINING_RUN, "v1", wish)
    await cluster.exists(RAY_JOB, "v1")
    await cluster.ray(RAY_JOB, "v1", "running", **entry_point(0, "j-1"))
    budget = await cluster.exists(POD_DISRUPTION_BUDGET, "v1-pods")
    assert budget["spec"]["minAvailable"] == 1

    await cluster.apply(TRAINING_RUN, "v1", wish | {"suspend": True})

    async def told(suspend: bool) -> bool:
        return bool((await cluster.get(RAY_JOB, "v1"))["spec"].get("suspend")) is suspend

    await cluster.until("the job is told to stop", lambda: told(True))
    await cluster.status(RAY_JOB, "v1", {"jobDeploymentStatus": "Suspended", "rayJobInfo": {}})
    await gone(cluster, POD_DISRUPTION_BUDGET, "v1-pods")
    await cluster.condition(TRAINING_RUN, "v1", "Ready", "False", "Suspended")

    async def at_rest() -> bool:
        return (await cluster.get(TRAINING_RUN, "v1"))["status"]["usage"]["running"] is False

    await cluster.until("the meter stands still", at_rest)

    await cluster.apply(TRAINING_RUN, "v1", wish)
    await cluster.until("the job is told to go on", lambda: told(False))
    await cluster.ray(RAY_JOB, "v1", "running", **entry_point(10, "j-2"))
    await cluster.exists(POD_DISRUPTION_BUDGET, "v1-pods")
    await cluster.condition(TRAINING_RUN, "v1", "Ready", "False", "Running")
    await cluster.ray(RAY_JOB, "v1", "running", **entry_point(20, "j-2"))

    async def preempted() -> bool:
        return bool((await cluster.get(TRAINING_RUN, "v1"))["status"]["preemptions"] == 1)

    await cluster.until("a preemption", preempted)
    bucket.outcome(await cluster.told_job("v1"), JobResult.SUCCEEDED)
    await cluster.ray(RAY_JOB, "v1", "succeeded", **entry_point(20, "j-2"))
    done = await cluster.condition(TRAINING_RUN, "v1", "Ready", "True", "Succeeded")
    assert (done["status"]["failures"], done["status"]["attempts"]) == (0, 1)
    await gone(cluster, POD_DISRUPTION_BUDGET, "v1-pods")
    await gone(cluster, RAY_JOB, "v1")
    after = await cluster.condition(TRAINING_RUN, "v1", "Ready", "True", "Succeeded")
    assert after["status"] == done["status"]


async def test_deleted_in_the_middle_it_leaves_nothing_that_the_garbage_collector_does_not_take(
    cluster: Any, bucket: Any, make: Any
) -> None:
    await cluster.apply(TRAINING_RUN, "v1", body(bucket, make))
    await cluster.exists(RAY_JOB, "v1")
    await cluster.ray(RAY_JOB, "v1", "running", **ONE_HEAD)
    await cluster.exists(POD_DISRUPTION_BUDGET, "v1-pods")
    run = await cluster.condition(TRAINING_RUN, "v1", "Ready", "False", "Running")
    assert "finalizers" not in run["metadata"], "it can be deleted while the operator is down"
    lineage = run["status"]["lineage"]
    children = [
        (kind, obj)
        for kind in (*(k for k in CHILDREN if not k.group.startswith("gateway.")), MODEL_VERSION)
        async for obj in cluster.kube.list(kind, cluster.namespace, "app.kubernetes.io/managed-by=sluice")
    ]
    assert sorted(kind.kind for kind, _ in children) == ["ConfigMap", "PodDisruptionBudget", "RayJob"]
    for kind, child in children:
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (run["metadata"]["uid"], True), kind
        assert child["metadata"]["labels"]["sluice.dev/lineage"] == lineage[:16], kind
    await cluster.kube.delete(RAY_JOB, cluster.namespace, "v1")  # the worst order: the operator thinks it vanished
    await cluster.condition(TRAINING_RUN, "v1", "Ready", "False", "BackOff")
    await cluster.kube.delete(TRAINING_RUN, cluster.namespace, "v1")
    for kind, child in children:  # the garbage collector's part
        await cluster.kube.delete(kind, cluster.namespace, child["metadata"]["name"])
    await cluster.apply(TRAINING_RUN, "next", body(bucket, make))
    await cluster.exists(RAY_JOB, "next")  # by now the operator has heard of the deletion, too
    assert await cluster.names(RAY_JOB) == ["next"]
