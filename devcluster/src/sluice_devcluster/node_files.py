"""Writes everything the node reads: keys, settings, images, and the plan."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sluice_devcluster import images, network, node_config, node_plan, pki, preflight, runtime
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.files import write_file, write_json
from sluice_devcluster.places import State

KUBECONFIGS = ("controller-manager", "scheduler", "kube-proxy", "kubelet", "coredns", "kuberay")


def write_node_files(state: State, programs: Path) -> dict[str, Any]:
    """Write the files of a new life of the cluster and return its plan. Raises DevClusterError."""
    state.root.chmod(0o700)
    for folder in (state.run, state.etc, state.pki, state.logs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    (state.run / "tmp").mkdir()
    for bucket in node_plan.BUCKETS:
        (state.run / "buckets" / bucket).mkdir(parents=True)
    _write_identities(state)
    mounts = runtime.host_mounts()
    spec = runtime.base_spec(_default_spec(programs), mounts)
    host_spec = state.etc / "sluice-host-spec.json"
    write_json(host_spec, spec)
    (state.etc / "cni").mkdir()
    write_json(state.etc / "cni" / "10-pods.conflist", node_config.pod_network())
    runc = preflight.find_tool("runc")
    if runc is None:
        raise DevClusterError("runc is not installed")
    settings = runtime.containerd_config(runc, programs, state.etc / "cni", host_spec)
    write_file(state.etc / "containerd.toml", runtime.to_toml(settings))
    write_json(state.etc / "kubelet.json", node_config.kubelet(state))
    write_json(state.etc / "kube-proxy.json", node_config.kube_proxy(state.etc / "kube-proxy.kubeconfig"))
    write_file(state.etc / "Corefile", node_config.corefile(state.etc / "coredns.kubeconfig"))
    write_file(state.etc / "resolv.conf", "")
    objects = {"apiVersion": "v1", "kind": "List", "items": node_config.bootstrap_objects()}
    write_json(state.etc / "bootstrap.json", objects)
    tars = [state.etc / "pause.tar", state.etc / "sluice.tar"]
    images.pause_image(tars[0], (programs / "pause").read_bytes())
    images.sluice_image(tars[1], Path(sys.prefix) / "bin", runtime.root_links())
    keep = [state.root, programs, *mounts]
    plan = node_plan.node_plan(state, programs, tars, keep)
    write_json(state.plan, plan)
    return plan


def _write_identities(state: State) -> None:
    hosts = pki.api_server_hosts(network.KUBERNETES_SERVICE, network.NODE_ADDRESS)
    pki.write_pki(state.pki, pki.component_identities(network.NODE_NAME, hosts))
    authority = (state.pki / "ca.crt").read_bytes()
    for name in KUBECONFIGS:
        text = pki.kubeconfig(network.API_SERVER, authority, pki.certificate_user(state.pki, name))
        write_file(state.etc / f"{name}.kubeconfig", text, mode=0o600)
    admin = pki.kubeconfig(network.API_SERVER, authority, pki.certificate_user(state.pki, "admin"))
    write_file(state.kubeconfig, admin, mode=0o600)


def _default_spec(programs: Path) -> dict[str, Any]:
    done = subprocess.run(
        [str(programs / "ctr"), "oci", "spec"], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        raise DevClusterError(f"`ctr oci spec` failed: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))
