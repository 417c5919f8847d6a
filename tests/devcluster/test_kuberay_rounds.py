"""The stand-in's shell against a real API server: step follows step at once, and at rest nothing is written."""

import asyncio
import ssl
import uuid
from typing import Any

import aiohttp
import pytest
import yaml
from sluice_devcluster.kuberay.controller import NEXT_S, ROUND_S, Controller
from sluice_devcluster.kuberay.crds import definitions
from sluice_devcluster.kuberay.kube import Kube, KubeError

pytestmark = pytest.mark.apiserver
HEAD = {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}


class OneNamespace(Kube):
    """Sees one namespace: the API server is shared, and other tests leave things behind."""

    namespace = ""

    async def list(self, kind: str, query: str = "") -> list[dict[str, Any]]:
        return [o for o in await super().list(kind, query) if o["metadata"]["namespace"] == self.namespace]


async def test_a_new_jobs_pod_is_there_after_a_few_rounds_and_only_one(kubectl: Any) -> None:
    for definition in definitions():
        kubectl.applied(definition)
        crd = f"crd/{definition['metadata']['name']}"
        assert kubectl("wait", "--for=condition=Established", "--timeout=30s", crd).returncode == 0
    namespace = f"rounds-{uuid.uuid4().hex[:8]}"
    assert kubectl("create", "namespace", namespace).returncode == 0
    spec = {
        "entrypoint": "true",
        "submissionMode": "HTTPMode",
        "rayClusterSpec": {"headGroupSpec": {"rayStartParams": {}, "template": HEAD}},
    }
    metadata = {"name": "job", "namespace": namespace}
    kubectl.applied({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec})

    def there() -> dict[str, str]:
        """Versions of all that is the job's."""
        said = kubectl("get", "rayjobs,rayclusters,pods,services", "-n", namespace, "-o", "json")
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in items(said.stdout)}

    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    token, server = config["users"][0]["user"]["token"], config["clusters"][0]["cluster"]["server"]
    context = ssl.create_default_context(cafile=str(kubectl.kubeconfig.parent / "pki" / "ca.crt"))
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        kube = OneNamespace(session, server, context)
        kube.namespace = namespace
        controller = Controller(kube, session)
        await first(controller)
        rounds = 1
        while controller.pause == NEXT_S:
            await controller.round()
            rounds += 1
            assert rounds < 10, there()
        assert rounds > 3, "the pod is not made in one go"
        settled = there()
        assert sorted(name.split("/")[0] for name in settled) == ["Pod", "RayCluster", "RayJob", "Service"]
        for _ in range(3):
            await controller.round()
            assert controller.pause == ROUND_S
        assert there() == settled


async def first(controller: Controller) -> None:
    """The first round, once the API server has made ready for the new definitions."""
    end = asyncio.get_running_loop().time() + 30
    while True:
        try:
            return await controller.round()
        except KubeError:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.05)


def items(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.load(text, yaml.CSafeLoader)["items"]
    return found
