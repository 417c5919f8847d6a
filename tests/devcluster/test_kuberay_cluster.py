"""The stand-in on the real cluster: real Ray, in pods as confined as production's, driven by RayJob and RayService."""

import json
import subprocess
import time
import urllib.request
from typing import Any

import pytest
from sluice_devcluster.places import State
from sluice_devcluster.programs import built_programs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

JSON = dict[str, Any]
NAMESPACE = "ray-proof"
APPLICATION = """
from ray import serve

@serve.deployment
class Hello:
    async def __call__(self, request):
        return "hello"

app = Hello.bind()
"""


def ray_cluster() -> JSON:
    """A head-only Ray cluster under the restricted pod security standard."""
    container = {
        "name": "ray-head",
        "image": "local.dev/sluice:dev",
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "PYTHONPATH", "value": "/app"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "3Gi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "app", "mountPath": "/app"}],
    }
    spec = {
        "runtimeClassName": "sluice-host",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "app", "configMap": {"name": "app"}}],
    }
    return {"rayVersion": "2.60.0", "headGroupSpec": {"rayStartParams": {"num-cpus": "1"}, "template": {"spec": spec}}}


def named(kind: str, version: str, name: str, **rest: Any) -> JSON:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, **rest}


@pytest.fixture
def state_up(running: State) -> State:
    namespace = named("Namespace", "v1", NAMESPACE)
    namespace["metadata"] = {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    apply(running, namespace, named("ConfigMap", "v1", "app", data={"hello.py": APPLICATION}))
    return running


def kubectl(state: State, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        [str(built_programs() / "kubectl"), f"--kubeconfig={state.kubeconfig}", f"--namespace={NAMESPACE}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def apply(state: State, *objects: JSON) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    kubectl(state, "apply", "-f", "-", stdin=json.dumps(items))


def status_of(state: State, what: str) -> JSON:
    value: JSON = json.loads(kubectl(state, "get", what, "-o", "json")).get("status", {})
    return value


def follow(state: State, what: str, end: Any, deadline_s: float) -> list[JSON]:
    """The statuses seen until `end` holds for one."""
    seen: list[JSON] = []
    limit = time.monotonic() + deadline_s
    while not (seen and end(seen[-1])):
        assert time.monotonic() < limit, f"{what} did not come so far: {seen[-1:]}"
        status = status_of(state, what)
        if status and (not seen or status != seen[-1]):
            seen.append(status)
        time.sleep(0.1)
    return seen


def answer(url: str, deadline_s: float) -> bytes:
    """What `url` answers. A service is known before every node's kube-proxy has written its rules: so it is asked
    again until the deadline."""
    limit = time.monotonic() + deadline_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return bytes(reply.read())
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)


def test_a_job_runs_on_real_ray_and_its_cluster_goes(state_up: State) -> None:
    entrypoint = "python -c 'import ray; ray.init(); print(ray.get(ray.remote(lambda: 41 + 1).remote()))'"
    spec = {"submissionMode": "HTTPMode", "entrypoint": entrypoint, "shutdownAfterJobFinishes": True}
    apply(state_up, named("RayJob", "ray.io/v1", "answer", spec=spec | {"rayClusterSpec": ray_cluster()}))

    seen = follow(state_up, "rayjob/answer", lambda s: s.get("endTime"), 90)

    order = list(dict.fromkeys((s["jobDeploymentStatus"], s.get("jobStatus")) for s in seen))
    assert order[0] == ("Initializing", None)
    assert order[-1] == ("Complete", "SUCCEEDED")
    assert seen[-1]["succeeded"] == 1
    kubectl(state_up, "wait", "--for=delete", f"raycluster/{seen[-1]['rayClusterName']}", "--timeout=30s")
    kubectl(state_up, "wait", "--for=delete", "pod", "--selector=ray.io/is-ray-node=yes", "--timeout=45s")
    kubectl(state_up, "delete", "rayjob/answer", "--timeout=30s")


def test_a_service_serves_and_heals_after_its_head_is_lost(state_up: State) -> None:
    applications = "applications:\n- {name: hello, import_path: 'hello:app', route_prefix: /}\n"
    spec = {"upgradeStrategy": {"type": "None"}, "serveConfigV2": applications, "rayClusterConfig": ray_cluster()}
    apply(state_up, named("RayService", "ray.io/v1", "hello", spec=spec))

    def ready(status: JSON) -> bool:
        return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))

    seen = follow(state_up, "rayservice/hello", ready, 90)
    active = seen[-1]["activeServiceStatus"]
    assert active["applicationStatuses"]["hello"]["status"] == "RUNNING"
    assert seen[-1]["numServeEndpoints"] == 1
    address = kubectl(state_up, "get", "service", "hello-serve-svc", "-o", "jsonpath={.spec.clusterIP}")
    assert answer(f"http://{address}:8000/", 15) == b"hello"

    kubectl(state_up, "delete", "pod", "--selector=ray.io/node-type=head", "--wait=false")
    follow(state_up, "rayservice/hello", lambda s: not ready(s), 60)
    healed = follow(state_up, "rayservice/hello", ready, 90)[-1]
    assert healed["activeServiceStatus"]["rayClusterName"] == active["rayClusterName"]
    kubectl(state_up, "delete", "rayservice/hello", "--timeout=30s")
