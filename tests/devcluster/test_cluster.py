"""The real local cluster: it comes up, carries pods, is repaired after a crash, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from sluice_devcluster import cgroups, cluster, network, node_plan, processes
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.places import State
from sluice_devcluster.programs import built_programs

from tests.devcluster.steps import silent, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SLUICE_DEV = [sys.executable, "-m", "sluice_devcluster.cli"]
SYSCTLS = sorted(node_plan.KERNEL_SETTINGS)
WEB = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  runtimeClassName: sluice-host
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: web
    image: local.dev/sluice:dev
    imagePullPolicy: Never
    command:
    - bash
    - -c
    - python -c 'import ray; print(ray.__version__)' > version && exec python -m http.server 8000
    workingDir: /tmp
    readinessProbe: {httpGet: {port: 8000}, periodSeconds: 1}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "local.dev/sluice:dev", imagePullPolicy: Never, command: [/usr/bin/id]}]
"""


def traces() -> dict[str, Any]:
    """Everything on this machine that a cluster could leave or change."""
    return {
        "links": sorted(os.listdir("/sys/class/net")),
        "routes": network.ip("-4", "route"),
        "mounts": Path("/proc/self/mounts").read_text(),
        "control groups": cgroups.existing(),
        "shared memory": sorted(os.listdir("/dev/shm")),
        "kernel": {name: Path("/proc/sys", name).read_text() for name in SYSCTLS},
        "node": processes.running(node_plan.NODE_MODULE),
        "var": sorted(p for p in ("/var/lib/kubelet", "/var/lib/cni", "/run/containerd") if Path(p).exists()),
    }


def fetched(url: str) -> bytes:
    """What a URL gives, or nothing."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bytes(reply.read())
    except OSError:
        return b""


def kubectl(state: State, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        [str(built_programs() / "kubectl"), f"--kubeconfig={state.kubeconfig}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pods_services_and_names_work_and_nothing_stays(state: State) -> None:
    before = traces()
    seconds = cluster.up(state, silent)
    assert seconds < 60
    assert cluster.status(state).ready
    assert cluster.up(state, silent) < 5, "a second `up` leaves a ready cluster alone"

    kubectl(state, "apply", "-f", "-", stdin=WEB)
    kubectl(state, "wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    address = kubectl(state, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    until(lambda: fetched(f"http://{address}/version").startswith(b"2."), "answer of the service")
    resolve = "import socket; print(socket.gethostbyname('web.default'))"
    assert kubectl(state, "exec", "web", "--", "python", "-c", resolve).strip() == address
    reach = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    denied = (
        "import contextlib, socket\nwith contextlib.suppress(OSError):\n    " + reach.split("; ")[1] + "; print('out')"
    )
    assert kubectl(state, "exec", "web", "--", "python", "-c", denied) == "", "pods reach nothing outside the machine"
    failed = "jsonpath={.status.phase}"
    until(lambda: kubectl(state, "get", "pod", "plain", "-o", failed) == "Failed", "failure of the plain pod")

    cluster.down(state, silent)
    assert traces() == before
    assert not state.root.exists()


def test_a_killed_node_is_repaired_by_up_and_by_down(state: State) -> None:
    before = traces()
    cluster.up(state, silent)
    os.kill(max(processes.running(node_plan.NODE_MODULE)), signal.SIGKILL)
    until(lambda: not cluster.status(state).running, "end of the node")
    assert cluster.status(state).leftovers

    cluster.up(state, silent)
    assert cluster.status(state).ready
    os.kill(max(processes.running(node_plan.NODE_MODULE)), signal.SIGKILL)
    cluster.down(state, silent)

    assert traces() == before


def test_an_up_that_was_killed_half_way_is_repaired(state: State) -> None:
    before = traces()
    first = subprocess.Popen([*SLUICE_DEV, "up"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: bool(cgroups.existing()), "first trace of the cluster")
    first.kill()
    first.wait(10)

    cluster.up(state, silent)

    assert cluster.status(state).ready
    cluster.down(state, silent)
    assert traces() == before


def test_taken_addresses_are_named(state: State) -> None:
    network.ip("link", "add", "sluicetest0", "type", "veth", "peer", "name", "sluicetest1")
    try:
        network.ip("addr", "add", "10.96.3.1/24", "dev", "sluicetest0")
        with pytest.raises(DevClusterError, match=r"addresses are taken: interface sluicetest0 has 10\.96\.3\.1/24"):
            cluster.up(state, silent)
    finally:
        network.ip("link", "delete", "sluicetest0")
