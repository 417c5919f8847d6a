"""Bad input, tried as a user would: each ends with the right exit code and names the thing and the remedy.

Every case runs a real command in a process of its own, or asks the real API server. Datasets and training jobs are in
test_bad_data.py, publishing and devices in test_bad_devices.py.
"""

import copy
import json
from typing import Any

import pytest
import yaml
from sluice_devcluster.ports import free_port, free_ports

from tests.integration.user import BIN, REPOSITORY, ZEROS, User, answers, helps, running, taken_port, until


def gateway_environment(user: User, port: int, internal: int) -> dict[str, str]:
    (user.folder / "api-keys").mkdir(exist_ok=True)
    return {
        "SLUICE_ROUTES_FILE": str(user.folder / "routes.json"),
        "SLUICE_KEYS_DIR": str(user.folder / "api-keys"),
        "SLUICE_DATABASE_URL": f"sqlite:///{user.folder}/interactions.db",
        "SLUICE_HOST": "127.0.0.1",
        "SLUICE_PORT": str(port),
        "SLUICE_INTERNAL_PORT": str(internal),
    }


SETTINGS = {
    "no routes": ({"SLUICE_ROUTES_FILE": ""}, ["SLUICE_ROUTES_CONFIGMAP (namespace/name)", "SLUICE_ROUTES_FILE"]),
    "no keys": ({"SLUICE_KEYS_DIR": ""}, ["SLUICE_KEYS_DIR is not set", "one API key per file"]),
    "a wrong port": ({"SLUICE_PORT": "http"}, ["SLUICE_PORT is 'http'; expected a port number"]),
    "a wrong database": (
        {"SLUICE_DATABASE_URL": "mysql://me:secret@db/x"},
        ["SLUICE_DATABASE_URL must start with postgresql:// or sqlite:///"],
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_gateway_with_wrong_settings(user: User, case: str) -> None:
    changes, words = SETTINGS[case]
    ended = user.run("sluice-gateway", **{**gateway_environment(user, 8080, 8081), **changes})
    helps(ended, 2, *words)
    assert "secret" not in ended.said


@pytest.mark.parametrize("variable", ["SLUICE_PORT", "SLUICE_INTERNAL_PORT"])
def test_a_gateway_whose_port_is_taken(user: User, variable: str) -> None:
    port, internal = free_ports(2)
    with taken_port() as taken:
        environment = {**gateway_environment(user, port, internal), variable: str(taken)}
        ended = user.run("sluice-gateway", **environment)
    helps(ended, 1, f"cannot listen on 127.0.0.1 port {taken}", f"set {variable} to another")


def test_a_gateway_with_a_bad_routing_table_says_so_and_takes_the_mended_one(user: User) -> None:
    port, internal = free_ports(2)
    backend = {"modelVersion": "v1", "lineage": "a" * 64, "manifestDigest": ZEROS, "url": "http://x", "weight": 40}
    table = {"pool": "p", "namespace": "here", "model": "bot", "backends": [backend]}
    user.file("routes.json", json.dumps(table))
    user.file("api-keys/me", "a-key")
    environment = user.environment(gateway_environment(user, port, internal))
    log = user.folder / "gateway.log"
    ready = f"http://127.0.0.1:{internal}/readyz"
    with running([str(BIN / "sluice-gateway")], log, lambda: answers(ready) == 503, environment):
        until(lambda: "weights must sum to 100" in log.read_text(), "the log names what is wrong with the table")
        assert "routes.json" in log.read_text()
        user.file("routes.json", json.dumps({**table, "backends": [{**backend, "weight": 100}]}))
        until(lambda: answers(ready) == 200, "the mended table is in force")


def test_an_operator_without_its_settings(user: User) -> None:
    ended = user.run("sluice-operator")
    helps(ended, ended.code or 1, "SLUICE_STORAGE_URI is not set", "the Helm chart sets it")


def test_no_cluster_to_speak_of(user: User) -> None:
    helps(user.run("sluice", "status", KUBECONFIG="absent"), 1, "cannot use absent", "set KUBECONFIG")


def test_a_cluster_that_does_not_answer(user: User) -> None:
    port = free_port()
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [context],
        "current-context": "x",
    }
    user.file("config", json.dumps(config))
    ended = user.run("sluice", "lineage", "bot-1", KUBECONFIG="config")
    helps(ended, 1, f"cannot reach the API server https://127.0.0.1:{port}", "is the cluster up")


@pytest.mark.apiserver
def test_a_lineage_of_an_unknown_name(user: User, kubectl: Any) -> None:
    run = yaml.safe_load((REPOSITORY / "manifests/examples/trainingrun-v1.yaml").read_text())
    run["metadata"]["name"] = "known-name"
    kubectl.applied(run)
    ended = user.run("sluice", "lineage", "unknown-name", "-n", "support", KUBECONFIG=str(kubectl.kubeconfig))
    helps(ended, 1, "'unknown-name' in namespace support", "did you mean 'known-name'?", "There are: ")
    elsewhere = user.run("sluice", "lineage", "known-name", "-n", "default", KUBECONFIG=str(kubectl.kubeconfig))
    helps(elsewhere, 1, "in namespace default", "`sluice status -A` shows all")


def test_a_local_cluster_without_root(nobody: User) -> None:
    ended = nobody.run("sluice-dev", "up")
    helps(ended, 1, "needs root", "sudo", "SLUICE_CLUSTER=existing")


@pytest.mark.parametrize("command", [["kubectl", "get", "pods"], ["logs", "kubelet"]], ids=lambda c: c[0])
def test_a_local_cluster_that_was_not_started(user: User, command: list[str]) -> None:
    ended = user.run("sluice-dev", *command, SLUICE_STATE=str(user.folder / "state"))
    assert ended.code == 1
    assert "sluice-dev up" in ended.said or "has not been started" in ended.said, ended.said


def test_a_load_without_a_key_or_with_a_wrong_duration(user: User) -> None:
    options = ("--url", "http://127.0.0.1:1/v1", "--model", "bot", "--duration")
    helps(user.run("sluice-load", *options, "1s"), 2, "SLUICE_API_KEY is not set")
    helps(user.run("sluice-load", *options, "soon", SLUICE_API_KEY="k"), 2, "'soon' is no duration", "30s")


def test_a_benchmark_that_does_not_exist(user: User) -> None:
    ended = user.run("python", "-m", "benchmarks", "speed", PYTHONPATH=str(REPOSITORY))
    helps(ended, 2, "no benchmark is named speed", "edge_update")


RUN: dict[str, Any] = yaml.safe_load((REPOSITORY / "manifests/examples/trainingrun-v1.yaml").read_text())
OBJECTS: dict[str, tuple[str, object, list[str]]] = {
    "unknown accelerator": (
        "hardware",
        {"accelerator": "nvidia-h900"},
        ["spec.hardware.accelerator", 'Unsupported value: "nvidia-h900"', '"nvidia-l4"'],
    ),
    "TPU without topology": ("hardware", {"accelerator": "tpu-v6e-slice"}, ["needs hardware.topology, such as 2x4"]),
    "GPUs of a CPU": ("hardware", {"count": 2}, ["leave it out with accelerator cpu", "hardware.resources.cpu"]),
    "dataset digest": ("dataset", {"uri": "gs://b/d", "digest": "abc"}, ["spec.dataset.digest", "sha256:"]),
    "dataset URI": ("dataset", {"uri": "s3://b/d", "digest": ZEROS}, ["spec.dataset.uri", "gs://"]),
    "lora without its block": ("recipe", {"method": "lora", "steps": 10}, ["`lora: {}`"]),
    "no steps": ("recipe", {"method": "scratch", "steps": 0}, ["spec.recipe.steps", "greater than or equal to 1"]),
    "gate without a bound": (
        "evaluation",
        {"suites": ["intent"], "gates": [{"metric": "intent.accuracy"}]},
        ["a gate needs a bound: min, max or nonInferiorTo"],
    ),
    "unknown field": ("speed", "fast", ["spec.speed"]),
}  # fmt: skip


@pytest.mark.apiserver
@pytest.mark.parametrize("case", OBJECTS)
def test_an_object_with_a_wrong_field(kubectl: Any, case: str) -> None:
    field_, value, words = OBJECTS[case]
    run = copy.deepcopy(RUN)
    run["metadata"]["name"] = "bad-input"
    run["spec"][field_] = value
    said = kubectl.refusal(run)
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} is not in: {said}"
