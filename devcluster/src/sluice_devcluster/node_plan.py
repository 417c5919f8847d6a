"""What the node's first process does, written down as data before it starts.

`node_plan` decides; `node` carries out, in namespaces where nothing of this package but the standard library should be
needed. The plan is a file, so it can be read when something goes wrong.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sluice_devcluster import control_plane as cp
from sluice_devcluster import network
from sluice_devcluster.places import State
from sluice_devcluster.runtime import CONTAINERD_SOCKET

ENDPOINTS = cp.Endpoints(2379, 2380, 6443, bind="0.0.0.0", advertise=network.NODE_ADDRESS)
NODE_MODULE = "sluice_devcluster.node"
"""The node's first process, and the mark by which it is found among this machine's processes."""
BUCKETS = ("sluice", "sluice-releases")
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet wants to find below /proc/sys, and would else write: these belong to the whole machine."""


def start(name: str, command: Sequence[str], **environment: str) -> dict[str, Any]:
    """A step: start a program, keep it running, its output in `<name>.log`."""
    return {"do": "start", "name": name, "command": list(command), "environment": environment}


def run(name: str, command: Sequence[str], deadline_s: float) -> dict[str, Any]:
    """A step: run a command until it succeeds; after `deadline_s` seconds the node gives up."""
    return {"do": "run", "name": name, "command": list(command), "deadline_s": deadline_s}


def node_plan(state: State, programs: Path, images: Sequence[Path], keep: Sequence[Path]) -> dict[str, Any]:
    """The plan. `keep` are paths that must stay visible even below /var and /run, which the node gets anew."""
    etc, pki = state.etc, state.pki

    def config(component: str) -> Path:
        return etc / f"{component}.kubeconfig"

    ctr = [str(programs / "ctr"), f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io"]
    kubectl = [str(programs / "kubectl"), f"--kubeconfig={state.kubeconfig}", "--request-timeout=5s"]
    api_server = cp.api_server_command(programs, pki, ENDPOINTS, network.SERVICE_RANGE) + cp.kubelet_access(pki)
    steps = [
        start("etcd", cp.etcd_command(programs, state.run / "etcd", ENDPOINTS)),
        start("containerd", [str(programs / "containerd"), f"--config={etc / 'containerd.toml'}"]),
        start("kube-apiserver", api_server),
        start("storage", storage_command(state, programs)),
        *(run(f"import of {i.stem}", [*ctr, "images", "import", "--local", str(i)], 60) for i in images),
        start("kubelet", kubelet_command(state, programs)),
        run("API server", [*kubectl, "get", "--raw=/readyz"], 90),
        run("first objects", [*kubectl, "apply", "--server-side", f"--filename={etc / 'bootstrap.json'}"], 60),
        start(
            "kube-controller-manager",
            cp.controller_manager_command(
                programs, pki, config("controller-manager"), state.run / "controller-manager"
            ),
        ),
        start("kube-scheduler", cp.scheduler_command(programs, config("scheduler"), state.run / "scheduler")),
        start("kube-proxy", [str(programs / "kube-proxy"), f"--config={etc / 'kube-proxy.json'}"]),
        start("coredns", [str(programs / "coredns"), f"-conf={etc / 'Corefile'}"]),
        start("kuberay", [sys.executable, "-m", "sluice_devcluster.kuberay", str(config("kuberay"))]),
    ]
    return {
        "link": network.NODE_LINK,
        "address": f"{network.NODE_ADDRESS}/30",
        "path": str(programs),
        "private": {"/var": str(state.run / "var"), "/run": None, "/dev/shm": None},
        "keep": [str(path) for path in keep],
        "kernel_settings": {"folder": str(state.run / "kernel-settings"), "values": KERNEL_SETTINGS},
        "scratch": str(state.run / "tmp"),
        "logs": str(state.logs),
        "started": str(state.started),
        "failure": str(state.failure),
        "steps": steps,
    }


def kubelet_command(state: State, programs: Path) -> list[str]:
    """The kubelet; its settings are in a file, the rest has only flags."""
    return [
        str(programs / "kubelet"),
        f"--config={state.etc / 'kubelet.json'}",
        f"--kubeconfig={state.etc / 'kubelet.kubeconfig'}",
        f"--node-ip={network.NODE_ADDRESS}",
        f"--hostname-override={network.NODE_NAME}",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
        "--v=1",
    ]


def storage_command(state: State, programs: Path) -> list[str]:
    """The emulator of Cloud Storage. Every folder below its root is a bucket."""
    return [
        str(programs / "fake-gcs-server"),
        "-scheme=http",
        "-host=0.0.0.0",
        f"-port={network.STORAGE_PORT}",
        "-backend=filesystem",
        f"-filesystem-root={state.run / 'buckets'}",
        f"-public-host={network.NODE_ADDRESS}:{network.STORAGE_PORT}",
        f"-external-url={network.STORAGE}",
        "-log-level=warn",
    ]


def unshare_command(state: State) -> list[str]:
    """How the node's first process is started: apart from its parent, in namespaces of its own, all ended with it."""
    return [
        "setsid",
        "--fork",
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--ipc",
        "--uts",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation=private",
        sys.executable,
        "-m",
        NODE_MODULE,
        str(state.plan),
    ]
