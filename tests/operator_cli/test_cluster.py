"""Reaching the API server: each way it can fail is one clear line."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from sluice_contracts.names import ANNOTATION_ROLLOUT
from sluice_operator.cli.app import PLUGIN
from sluice_operator.cli.cluster import ApiCluster
from sluice_operator.cli.errors import CliError
from sluice_operator.kube.resources import INFERENCE_POOL

REPOSITORY = Path(__file__).parents[2]


def kubeconfig(path: Path, server: str) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(content))
    return path


def test_without_a_kubeconfig_the_variable_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(CliError, match=r"no Kubernetes cluster: cannot use .*absent.*; set KUBECONFIG"):
        ApiCluster()


def test_a_dead_server_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "http://127.0.0.1:1")))
    cluster = ApiCluster()
    assert cluster.namespace == "team"
    with pytest.raises(CliError, match=r"cannot reach the API server http://127.0.0.1:1 .*is the cluster up"):
        cluster.everything(INFERENCE_POOL, "team")


class ApiServer(BaseHTTPRequestHandler):
    """Stands in for the parts of an API server that need a kubelet behind them: logs, and a pod's own pages."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        path, _, query = self.path.partition("?")
        if path.endswith("/silent/log"):
            return self.answer(400, b'{"kind": "Status", "message": "container \\"main\\" is waiting to start"}')
        if path.endswith("/log"):
            lines = b"one\ntwo\nthr" + ("é\nfour".encode() if "follow=true" in query else b"ee\n")
            return self.answer(200, lines)
        if path.endswith("/pods/gateway:8081/proxy/analysis"):
            return self.answer(200, b"{'not': 'parsed'}")
        if path.endswith("/pods/secret:8081/proxy/analysis"):
            return self.answer(403, b'{"kind": "Status", "message": "pods secret is forbidden"}')
        if path.endswith("/pods"):
            return self.answer(200, b'{"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "p"}}]}')
        return self.answer(404, b"{}")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def api_server(monkeypatch, tmp_path):
    """A cluster behind ApiServer, and the paths that were asked for."""
    ApiServer.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), ApiServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.server_port}")))
        yield ApiCluster()
        server.shutdown()


@pytest.mark.parametrize(("follow", "last"), [(False, ["three"]), (True, ["thré", "four"])])
def test_a_log_is_whole_lines(api_server, follow, last):
    lines = list(api_server.pod_log("team", "p", "main", 20, follow=follow))
    assert lines == ["one", "two", *last]
    (asked,) = ApiServer.asked
    assert asked.startswith("/api/v1/namespaces/team/pods/p/log?")
    assert "container=main" in asked
    assert "tailLines=20" in asked


def test_a_log_that_cannot_be_had_says_what_the_api_server_says(api_server):
    with pytest.raises(CliError, match=r"read the log of pod team/silent: .* 400 .*is waiting to start"):
        list(api_server.pod_log("team", "silent", "main", 20, follow=False))


def test_a_pods_page_comes_as_it_is(api_server):
    assert api_server.ask("team", "gateway", 8081, "analysis") == b"{'not': 'parsed'}"


def test_a_pods_page_that_goes_on_is_read_by_lines(api_server):
    assert list(api_server.ask_lines("team", "gateway", 8081, "analysis")) == ["{'not': 'parsed'}"]
    with pytest.raises(CliError, match=r"follow port 1 of pod team/gateway .*the pod is gone"):
        list(api_server.ask_lines("team", "gateway", 1, "x"))


def test_a_pods_page_that_cannot_be_had_is_one_line(api_server):
    with pytest.raises(CliError, match=r"no access: you may not reach port 8081 of pod team/secret"):
        api_server.ask("team", "secret", 8081, "analysis")
    with pytest.raises(
        CliError, match=r"cannot reach port 1 of pod team/gateway .*does not know /x, or the pod is gone"
    ):
        api_server.ask("team", "gateway", 1, "x")


def test_pods_are_listed_by_label(api_server):
    assert [p["metadata"]["name"] for p in api_server.pods("team", "a=b,c=d")] == ["p"]
    assert "labelSelector=a%3Db%2Cc%3Dd" in ApiServer.asked[0]


OPERATOR = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "sluice-operator",
        "namespace": "support",
        "labels": {"app.kubernetes.io/name": "sluice-operator"},
    },
    "spec": {
        "selector": {"matchLabels": {"app": "operator"}},
        "template": {
            "metadata": {"labels": {"app": "operator"}},
            "spec": {
                "containers": [
                    {
                        "name": "operator",
                        "image": "example.com/operator",
                        "env": [
                            {"name": "SLUICE_STORAGE_URI", "value": "gs://team"},
                            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        ],
                    }
                ]
            },
        },
    },
}


@pytest.mark.apiserver
def test_a_real_api_server(kubectl, monkeypatch, tmp_path):
    """Objects are read and annotated; a missing definition and refused credentials are told apart."""
    monkeypatch.setenv("KUBECONFIG", str(kubectl.kubeconfig))
    cluster = ApiCluster()
    older = dataclasses.replace(INFERENCE_POOL, version="v0")
    with pytest.raises(CliError, match=r"does not know inferencepools.sluice.dev: install Sluice there"):
        cluster.everything(older, None)

    name = "annotated-by-hand"
    pool = {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "support"},
        "spec": {"model": "bot", "modelVersion": "bot-1", "gateway": {"auth": {"secretRef": {"name": "keys"}}}},
    }
    kubectl.applied(pool)
    assert name in [item["metadata"]["name"] for item in cluster.everything(INFERENCE_POOL, None)]
    assert cluster.get(INFERENCE_POOL, "support", "absent") is None

    def annotation() -> str | None:
        found = cluster.get(INFERENCE_POOL, "support", name)
        assert found is not None
        return (found["metadata"].get("annotations") or {}).get(ANNOTATION_ROLLOUT)

    cluster.annotate(INFERENCE_POOL, "support", name, ANNOTATION_ROLLOUT, "pause")
    assert annotation() == "pause"
    cluster.annotate(INFERENCE_POOL, "support", name, ANNOTATION_ROLLOUT, None)
    assert annotation() is None
    assert cluster.events(INFERENCE_POOL, "support", name) == []

    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "waits", "namespace": "support", "labels": {"app": "waits"}},
        "spec": {"containers": [{"name": "main", "image": "example.com/x"}], "automountServiceAccountToken": False},
    }
    kubectl("create", "serviceaccount", "default", "-n", "support")
    kubectl.applied(pod)
    (found,) = cluster.pods("support", "app=waits")
    assert found["metadata"]["name"] == "waits"
    assert cluster.pods("support", "app=none") == []
    with pytest.raises(CliError, match="read the log of pod support/absent: it is gone"):
        list(cluster.pod_log("support", "absent", "main", 1, follow=False))
    with pytest.raises(CliError, match=r"reach port 8081 of pod support/waits .*the API server answered"):
        cluster.ask("support", "waits", 8081, "analysis")
    kubectl("delete", "pod", "waits", "-n", "support", "--now")

    assert cluster.operator_environment() == {}
    kubectl.applied(OPERATOR)
    try:
        assert cluster.operator_environment() == {"SLUICE_STORAGE_URI": "gs://team"}
    finally:
        kubectl("delete", "deployment", "sluice-operator", "-n", "support")

    stranger = yaml.safe_load(kubectl.kubeconfig.read_text())
    stranger["users"][0]["user"]["token"] = "wrong"
    (tmp_path / "config").write_text(yaml.safe_dump(stranger))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(CliError, match="refused your credentials"):
        ApiCluster().everything(INFERENCE_POOL, "support")


@pytest.mark.apiserver
def test_kubectl_finds_it_as_a_plugin(kubectl, monkeypatch, tmp_path):
    """The script that the package installs under this name, and kubectl's own search for it."""
    scripts = tomllib.loads((REPOSITORY / "operator/pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[PLUGIN].partition(":")
    script = tmp_path / PLUGIN
    script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECONFIG", str(kubectl.kubeconfig))
    found = subprocess.run([kubectl.program, "sluice", "status", "-n", "nowhere"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "InferencePools  none in namespace nowhere" in found.stdout
    usage = subprocess.run([kubectl.program, "sluice", "explain"], capture_output=True, text=True)
    assert "Usage: kubectl sluice explain" in usage.stderr
