"""The chart, by the real helm: what it renders, what it refuses, and what its operator may do."""

import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from sluice_devcluster.programs import built_programs
from sluice_operator.kube.resources import CHILDREN
from sluice_operator.prices import Prices, parse_prices

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "sluice"
LOCAL = ("-f", str(CHART / "values-local.yaml"))
PRODUCTION = ("--set", "storage.uri=gs://team-models", "--set", "images.registry=registry.example.com/sluice")

pytestmark = pytest.mark.apiserver


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(built_programs() / "helm"), *arguments], capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )


def rendered(*arguments: str) -> list[dict[str, Any]]:
    result = helm("template", "sluice", str(CHART), "-n", "sluice-system", *arguments)
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def the(documents: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    found = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(found) == 1, [d["metadata"]["name"] for d in found]
    return found[0]


def environment(documents: list[dict[str, Any]]) -> dict[str, str]:
    container = the(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {e["name"]: e["value"] for e in container["env"] if "value" in e}


def test_helm_finds_nothing_wrong() -> None:
    result = helm("lint", "--strict", str(CHART), *LOCAL)
    assert result.returncode == 0, result.stdout


def test_definitions_are_the_generated_ones_and_stay_on_uninstall() -> None:
    crds = {d["metadata"]["name"]: d for d in rendered(*LOCAL) if d["kind"] == "CustomResourceDefinition"}
    assert len(crds) == 3
    for file in (REPOSITORY / "crds").glob("*.yaml"):
        original = yaml.safe_load(file.read_text())
        shipped = crds[original["metadata"]["name"]]
        assert shipped["spec"] == original["spec"]
        assert shipped["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    without = rendered(*LOCAL, "--set", "crds.enabled=false")
    assert not [d for d in without if d["kind"] == "CustomResourceDefinition"]


def test_the_operator_gets_its_configuration() -> None:
    env = environment(rendered(*PRODUCTION, "--set", "watchNamespaces={a,b}", "--set-string", "gitSha=abc"))
    assert env["SLUICE_STORAGE_URI"] == "gs://team-models"
    assert env["SLUICE_RELEASES_URI"] == "gs://team-models-releases"
    assert env["SLUICE_IMAGE_TRAINER"] == "registry.example.com/sluice/sluice-trainer:0.1.0"
    assert env["SLUICE_WATCH_NAMESPACES"] == "a,b"
    assert env["SLUICE_GIT_SHA"] == "abc"
    assert "STORAGE_EMULATOR_HOST" not in env


def test_a_whole_reference_wins_over_registry_and_tag() -> None:
    digest = "example.com/gateway@sha256:" + "1" * 64
    assert environment(rendered(*PRODUCTION, "--set", f"images.gateway={digest}"))["SLUICE_IMAGE_GATEWAY"] == digest


def test_prices_reach_the_operator_and_a_change_starts_it_anew() -> None:
    def operator(*prices: str) -> tuple[str, dict[str, Any]]:
        documents = rendered(*PRODUCTION, *prices)
        pod = the(documents, "Deployment")["spec"]["template"]
        (entry,) = [e for e in pod["spec"]["containers"][0]["env"] if e["name"] == "SLUICE_PRICES"]
        source = entry["valueFrom"]["configMapKeyRef"]
        return the(documents, "ConfigMap", source["name"])["data"][source["key"]], pod["metadata"]["annotations"]

    empty, before = operator()
    assert parse_prices(empty) == Prices()
    table, after = operator("--set", "prices.currency=EUR,prices.onDemand.cpu=0.035,prices.spot.nvidia-l4=0.26")
    assert parse_prices(table) == Prices("EUR", {"cpu": Decimal("0.035")}, {"nvidia-l4": Decimal("0.26")})
    assert before != after


def test_the_operator_finds_the_prometheus_and_its_token_in_a_file() -> None:
    assert not {name for name in environment(rendered(*PRODUCTION)) if name.startswith("SLUICE_PROMETHEUS")}
    url, token = "analysis.prometheus.url=https://prometheus:9090", "analysis.prometheus.tokenSecret.name=reader"
    documents = rendered(*PRODUCTION, "--set", f"{url},{token}")
    found = environment(documents)
    assert found["SLUICE_PROMETHEUS_URL"] == "https://prometheus:9090"
    pod = the(documents, "Deployment")["spec"]["template"]["spec"]
    (secret,) = [v for v in pod["volumes"] if v.get("secret", {}).get("secretName") == "reader"]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == secret["name"]]
    assert found["SLUICE_PROMETHEUS_TOKEN_FILE"] == f"{mount['mountPath']}/token"


def test_the_operators_pod_meets_the_restricted_standard() -> None:
    pod = the(rendered(*PRODUCTION), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_the_operators_role_covers_every_kind_it_watches_and_writes() -> None:
    """Also those that a cluster need not have: a watch that is forbidden is tried again for ever."""
    rules = the(rendered(*PRODUCTION), "ClusterRole", "sluice-operator-sluice-system")["rules"]
    for kind in CHILDREN:
        verbs = [set(r["verbs"]) for r in rules if kind.group in r["apiGroups"] and kind.plural in r["resources"]]
        assert set().union(*verbs) >= {"get", "list", "watch", "create", "patch", "delete"}, str(kind)


def test_watched_namespaces_narrow_the_binding() -> None:
    documents = rendered(*PRODUCTION, "--set", "watchNamespaces={a}")
    bindings = [d for d in documents if d["kind"] == "RoleBinding" and d["metadata"]["namespace"] == "a"]
    assert len(bindings) == 1
    cluster_wide = [d["roleRef"]["name"] for d in documents if d["kind"] == "ClusterRoleBinding"]
    assert cluster_wide == ["sluice-operator-sluice-system-discovery"]


def test_the_repository_is_signed_anew_where_asked() -> None:
    assert not [d for d in rendered(*PRODUCTION) if d["kind"] == "CronJob"]
    job = the(rendered(*PRODUCTION, "--set", "releases.refresh.namespaces={support}"), "CronJob")
    assert job["metadata"]["namespace"] == "support"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    command = " ".join(container["command"] + container["args"])
    assert command == "sluice-train publish refresh --repository gs://team-models-releases --keys /etc/sluice/signing"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["volumes"][0]["secret"]["secretName"] == "sluice-signing"
    cli = subprocess.run(
        [str(Path(sys.executable).parent / "sluice-train"), *command.split()[1:3], "--help"], capture_output=True
    )
    assert cli.returncode == 0, "the command it runs exists"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "storage.uri is empty: set it to the bucket"),
        (("--set", "storage.uri=gs://bucket"), "images.registry is empty: set it to where the images are"),
        (("--set", "storage.uri=s3://bucket"), "/storage/uri"),
        ((*PRODUCTION, "--set", "storage.url=gs://bucket"), "additional properties 'url' not allowed"),
        ((*PRODUCTION, "--set", "operator.replicas=-1"), "/operator/replicas"),
        ((*PRODUCTION, "--set", "images.pullPolicy=Sometimes"), "/images/pullPolicy"),
        ((*PRODUCTION, "--set", "prices.onDemand.gpu=1"), "invalid propertyName 'gpu'"),
        ((*PRODUCTION, "--set", "prices.spot.cpu=-1"), "/prices/spot/cpu"),
        ((*PRODUCTION, "--set", "analysis.prometheus.url=http://me:secret@host"), "/analysis/prometheus/url"),
        ((*PRODUCTION, "--set-string", "prices.spot.cpu=cheap"), "/prices/spot/cpu"),
    ],
)
def test_wrong_values_are_refused_by_name(arguments: tuple[str, ...], message: str) -> None:
    result = helm("template", "sluice", str(CHART), *arguments)
    assert result.returncode != 0
    assert message in result.stderr


@pytest.fixture
def installed(kubectl: Any) -> Iterator[Any]:
    """The API server with all of the chart in it; afterwards only the definitions stay, as on uninstall."""
    kubectl("create", "namespace", "sluice-system")
    documents = rendered(*LOCAL, "--set", "releases.refresh.namespaces={support}")
    for document in documents:
        kubectl.applied(document)
    yield kubectl
    mine = [d for d in documents if d["kind"] != "CustomResourceDefinition"]
    gone = kubectl("delete", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": mine})
    assert gone.returncode == 0, gone.stderr


def test_the_api_server_accepts_all_of_it_and_grants_no_more_than_needed(installed: Any) -> None:
    user = "--as=system:serviceaccount:sluice-system:sluice-operator"

    def may(*question: str) -> bool:
        return bool(installed("auth", "can-i", *question, user).stdout.strip() == "yes")

    assert may("patch", "trainingruns.sluice.dev", "--subresource=status", "-n", "support")
    assert may("create", "deployments.apps", "-n", "support")
    assert may("delete", "poddisruptionbudgets.policy", "-n", "support")
    assert may("update", "leases.coordination.k8s.io/sluice-operator", "-n", "sluice-system")
    for verb, resource in [
        ("get", "secrets"),
        ("create", "pods"),
        ("delete", "inferencepools.sluice.dev"),
        ("create", "trainingruns.sluice.dev"),
        ("escalate", "roles.rbac.authorization.k8s.io"),
        ("bind", "clusterroles.rbac.authorization.k8s.io"),
        ("update", "leases.coordination.k8s.io/another"),
        ("*", "*"),
    ]:
        assert not may(verb, resource, "-n", "support"), f"{verb} {resource}"
