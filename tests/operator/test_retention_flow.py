"""A version's files go on the real API server: only when nobody uses them, and also when the operator dies between."""

from typing import Any

import pytest
from sluice_contracts.model_version import ModelVersionStatus
from sluice_operator.kube.resources import INFERENCE_POOL, JOB, MODEL_VERSION
from sluice_operator.model_version import retention
from sluice_training.publish.retire import retire

pytestmark = pytest.mark.apiserver
OLD, NEW = "1" * 64, "2" * 64


async def test_unused_files_go_and_used_ones_never(
    cluster: Any, bucket: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.0)
    weights = bucket.root / f"runs/{OLD}/export/safetensors/model.safetensors"
    first = bucket.version(OLD)
    await cluster.apply(INFERENCE_POOL, "chat", make.pool_spec(modelVersion="v1").wire())
    await cluster.version("v1", first, retention={"keepLast": 1})
    await cluster.condition(MODEL_VERSION, "v1", "Retained", "True", "InUse")
    await cluster.version("v2", bucket.version(NEW))
    pool = await cluster.get(INFERENCE_POOL, "chat")
    assert pool["spec"]["modelVersion"] == "v1"
    await cluster.kube.delete(INFERENCE_POOL, cluster.namespace, "chat")
    job = await cluster.exists(JOB, "v1-retire")
    assert weights.exists()
    held = await cluster.condition(MODEL_VERSION, "v1", "Verified", "False", "Retired")
    status = ModelVersionStatus.model_validate(held["status"])
    assert status.retention is not None
    assert status.retention.deleting, "written down before the Job was made"

    await cluster.stop()
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    retire(command[command.index("--manifest") + 1], command[command.index("--digest") + 1])
    assert not weights.exists()
    started = "2026-11-21T12:00:00Z"
    over = {"lastTransitionTime": started, "status": "True"}
    await cluster.status(
        JOB,
        "v1-retire",
        {
            "startTime": started,
            "completionTime": "2026-11-21T12:01:00Z",
            "succeeded": 1,
            "conditions": [{"type": "SuccessCriteriaMet", **over}, {"type": "Complete", **over}],
        },
    )
    await cluster.start()
    await cluster.condition(MODEL_VERSION, "v1", "Retained", "False", "FilesDeleted")
    assert {"Retiring", "FilesDeleted"} <= set(await cluster.reasons())
    await cluster.apply(INFERENCE_POOL, "late", make.pool_spec(modelVersion="v1").wire())
    late = await cluster.condition(INFERENCE_POOL, "late", "Stalled", "True", "VersionNotVerified")
    assert "deleted by its retention policy" in str(late["status"])
