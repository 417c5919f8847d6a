"""The stand-in beside what the real operator made of Sluice's own objects: autoscaled workers, slices, pools."""

import copy
import json
from typing import Any

import pytest
from sluice_devcluster import node_config
from sluice_devcluster.kuberay import autoscaler, cluster_status, pods

JSON = dict[str, Any]
DEFAULTS = {
    "dnsPolicy": "ClusterFirst",
    "enableServiceLinks": True,
    "preemptionPolicy": "PreemptLowerPriority",
    "priority": 0,
    "restartPolicy": "Always",
    "schedulerName": "default-scheduler",
    "serviceAccountName": "default",
    "terminationGracePeriodSeconds": 30,
}
"""What the API server fills into a pod that says nothing else."""
NODE_TAINTS = {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
HASHES = ("ray.io/upgrade-strategy-recreate-hash", "ray.io/hash-without-replicas-and-workers-to-delete")


def as_asked(pod: JSON) -> JSON:
    """A recorded pod's spec without what the API server added."""
    spec: JSON = copy.deepcopy(pod["spec"])
    spec.pop("serviceAccount")
    for name, value in DEFAULTS.items():
        if spec.get(name) == value:
            del spec[name]
    spec["tolerations"] = [t for t in spec["tolerations"] if t["key"] not in NODE_TAINTS]
    if not spec["tolerations"]:
        del spec["tolerations"]
    spec["volumes"] = [v for v in spec["volumes"] if not v["name"].startswith("kube-api-access")]
    for volume in spec["volumes"]:
        volume.get("configMap", {}).pop("defaultMode", None)
    for container in spec["containers"]:
        del container["terminationMessagePath"], container["terminationMessagePolicy"]
        container["volumeMounts"] = [m for m in container["volumeMounts"] if not m["name"].startswith("kube-api")]
        # The API server asks for what is limited.
        limits = container["resources"].get("limits", {})
        requests = container["resources"]["requests"]
        assert limits.items() <= (limits | requests).items()
    return spec


def metadata_of(thing: JSON) -> JSON:
    """Labels, annotations, owner and name; digests only for being there."""
    metadata = thing["metadata"]
    annotations = {k: "digest" if k in HASHES else v for k, v in metadata.get("annotations", {}).items()}
    return {
        "labels": metadata["labels"],
        "annotations": annotations,
        "owner": metadata["ownerReferences"],
        "name": metadata.get("generateName", metadata.get("name")),
    }


@pytest.mark.parametrize("of", ["elastic", "pool"])
def test_the_head_with_the_autoscaler_is_the_recorded_one(recorded_autoscaled: JSON, of: str) -> None:
    there = recorded_autoscaled[of]

    made = pods.head_pod(there["RayCluster"])

    assert metadata_of(made) == metadata_of(there["head"])
    assert made["spec"] == as_asked(there["head"])


@pytest.mark.parametrize("of", ["elastic", "slice", "pool"])
def test_the_workers_are_the_recorded_ones(recorded_autoscaled: JSON, of: str) -> None:
    there = recorded_autoscaled[of]

    made = pods.worker_pods(there["RayCluster"], there["RayCluster"]["spec"]["workerGroupSpecs"][0], 0, "x")
    for pod in (made[0], there["workers"][0]):
        assert pod["metadata"]["labels"].pop("ray.io/worker-group-replica-name", "workers-x").startswith("workers-")

    assert metadata_of(made[0]) == metadata_of(there["workers"][0])
    assert made[0]["spec"] == as_asked(there["workers"][0])


def test_a_slices_hosts_are_numbered_and_share_a_name(recorded_autoscaled: JSON) -> None:
    there = recorded_autoscaled["slice"]
    group = there["RayCluster"]["spec"]["workerGroupSpecs"][0]

    made = [p["metadata"]["labels"] for p in pods.worker_pods(there["RayCluster"], group, 0, "x")]

    recorded = [p["metadata"]["labels"] for p in there["workers"]]
    for key in ("ray.io/replica-host-index", "ray.io/worker-group-replica-index"):
        assert [labels[key] for labels in made] == [labels[key] for labels in recorded]
    for labels in (made, recorded):
        assert len({each["ray.io/worker-group-replica-name"] for each in labels}) == 1


@pytest.mark.parametrize(("of", "owner"), [("elastic", "RayJob"), ("slice", "RayJob"), ("pool", "RayService")])
def test_the_ray_cluster_has_its_owners_labels_and_annotations(recorded_autoscaled: JSON, of: str, owner: str) -> None:
    there, cluster = recorded_autoscaled[of][owner], recorded_autoscaled[of]["RayCluster"]
    spec = there["spec"]["rayClusterSpec" if owner == "RayJob" else "rayClusterConfig"]

    made = pods.cluster_object(there, cluster["metadata"]["name"], spec)

    assert metadata_of(made) == metadata_of(cluster)
    assert made["spec"] == cluster["spec"]


@pytest.mark.parametrize("of", ["elastic", "pool"])
def test_the_autoscalers_rights_are_the_recorded_ones(recorded_autoscaled: JSON, of: str) -> None:
    there = recorded_autoscaled[of]
    cluster = there["RayCluster"]

    made = {m["kind"]: m for m in autoscaler.rights(cluster, pods.owner_reference(cluster))}

    assert set(made) == {"ServiceAccount", "Role", "RoleBinding"}
    for kind, thing in made.items():
        assert metadata_of(thing) == metadata_of(there[kind])
        for part in ("rules", "roleRef", "subjects"):
            assert thing.get(part) == there[kind].get(part)


def test_the_autoscaler_uses_the_account_that_the_template_names(recorded_autoscaled: JSON) -> None:
    cluster = copy.deepcopy(recorded_autoscaled["elastic"]["RayCluster"])
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["serviceAccountName"] = "trainer"

    made = autoscaler.rights(cluster, pods.owner_reference(cluster))

    assert [m["kind"] for m in made] == ["Role", "RoleBinding"]
    assert made[1]["subjects"][0]["name"] == "trainer"


@pytest.mark.apiserver
def test_the_stand_in_holds_the_rights_that_it_gives(kubectl: Any, recorded_autoscaled: JSON) -> None:
    own = [o for o in node_config.bootstrap_objects() if o["metadata"]["name"].endswith("kuberay-stand-in")]
    assert {o["kind"] for o in own} == {"ClusterRole", "ClusterRoleBinding"}
    for thing in own:
        kubectl.applied(thing)
    cluster = recorded_autoscaled["elastic"]["RayCluster"]
    cluster["metadata"]["namespace"] = "support"

    for thing in autoscaler.rights(cluster, pods.owner_reference(cluster)):
        made = kubectl("apply", "--server-side", "--as=kuberay-stand-in", "-f", "-", stdin=thing)
        assert made.returncode == 0, made.stderr


def test_the_service_of_a_slice_is_the_recorded_one(recorded_autoscaled: JSON) -> None:
    there = recorded_autoscaled["slice"]

    made = pods.headless_service(there["RayCluster"])

    assert metadata_of(made) == metadata_of(there["headless"])
    assert made["spec"] == {k: there["headless"]["spec"][k] for k in made["spec"]}


def named(pod: JSON, name: str, **labels: str) -> JSON:
    """A running pod of this name."""
    metadata = pod["metadata"] | {"name": name, "labels": pod["metadata"]["labels"] | labels}
    return {"metadata": metadata, "status": {"phase": "Running"}}


def workers_of(there: JSON, count: int) -> list[JSON]:
    group = there["RayCluster"]["spec"]["workerGroupSpecs"][0]
    made = [p for i in range(count) for p in pods.worker_pods(there["RayCluster"], group, i, f"r{i}")]
    return [named(pod, f"w{number}") for number, pod in enumerate(made)]


def with_group(there: JSON, **changes: Any) -> JSON:
    cluster: JSON = json.loads(json.dumps(there["RayCluster"]))
    cluster["spec"]["workerGroupSpecs"][0] |= changes
    return cluster


def planned(cluster: JSON, there: JSON, workers: list[JSON]) -> tuple[int, list[str]]:
    """How many pods would be made beside a head and these workers, and which of them would go."""
    head = named(pods.head_pod(there["RayCluster"]), "head")
    changes = cluster_status.plan(cluster, [head, *workers], "abcde")
    return len(changes.create), changes.delete


def test_only_the_workers_that_the_autoscaler_names_go(recorded_autoscaled: JSON) -> None:
    there = recorded_autoscaled["elastic"]
    workers = workers_of(there, 3)

    assert planned(with_group(there, replicas=2), there, workers) == (0, [])
    named_one = with_group(there, replicas=2, scaleStrategy={"workersToDelete": ["w1"]})
    assert planned(named_one, there, workers) == (0, ["w1"])
    assert planned(named_one, there, [workers[0], workers[2]]) == (0, [])


def test_without_an_autoscaler_a_smaller_number_takes_pods_away(recorded_autoscaled: JSON) -> None:
    there = recorded_autoscaled["elastic"]
    cluster = with_group(there, replicas=1)
    cluster["spec"]["enableInTreeAutoscaling"] = False
    workers = workers_of(there, 3)

    assert planned(cluster, there, workers) == (0, ["w0", "w1"])
    workers[0]["metadata"]["deletionTimestamp"] = "2026-11-21T07:00:00Z"
    assert planned(cluster, there, workers) == (0, ["w1"])


def test_a_slice_goes_and_comes_as_a_whole(recorded_autoscaled: JSON) -> None:
    there = recorded_autoscaled["slice"]
    two = with_group(there, replicas=2, maxReplicas=2)
    workers = workers_of(there, 2)

    assert planned(two, there, workers) == (0, [])
    assert planned(two, there, [])[0] == 8
    assert planned(two, there, workers[:6]) == (0, ["w4", "w5"])
    assert planned(two, there, workers[:4])[0] == 4
    workers[1]["status"]["phase"] = "Failed"
    assert planned(two, there, workers) == (0, ["w1", "w0", "w2", "w3"])


def test_a_slices_hosts_are_counted_as_kuberay_counts_them(recorded_autoscaled: JSON) -> None:
    there = recorded_autoscaled["slice"]
    status = cluster_status.status(there["RayCluster"], workers_of(there, 1), "2026-11-21T07:00:00Z")

    counts = {k: v for k, v in status.items() if k.endswith("Replicas")}
    assert counts == {
        "desiredWorkerReplicas": 4,
        "minWorkerReplicas": 4,
        "maxWorkerReplicas": 4,
        "availableWorkerReplicas": 4,
    }
    assert (status["desiredTPU"], status["desiredCPU"], status["desiredMemory"]) == ("16", "5", "10Gi")
