"""Reaching the API server: each way it can fail is one clear line."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from sluice_contracts.names import ANNOTATION_ROLLOUT
from sluice_operator.cli.cluster import ApiCluster
from sluice_operator.cli.errors import CliError
from sluice_operator.kube.resources import INFERENCE_POOL


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
