"""The stand-in's pods and services are the ones the real operator made."""

import copy
from typing import Any

import pytest
from sluice_devcluster.kuberay import cluster_status, pods

JSON = dict[str, Any]
DEFAULTED_IN_POD = (
    "dnsPolicy",
    "enableServiceLinks",
    "preemptionPolicy",
    "priority",
    "restartPolicy",
    "schedulerName",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
)
"""What the API server fills in, whoever makes the pod."""
HASHES = ("ray.io/upgrade-strategy-recreate-hash", "ray.io/hash-without-replicas-and-workers-to-delete")


def as_written(pod: JSON) -> JSON:
    """A recorded pod without what the API server added."""
    spec = copy.deepcopy(pod["spec"])
    for name in DEFAULTED_IN_POD:
        spec.pop(name)
    spec["volumes"] = [v for v in spec["volumes"] if not v["name"].startswith("kube-api-access")]
    for container in spec["containers"]:
        for name in ("terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy"):
            container.pop(name)
        container["volumeMounts"] = [m for m in container["volumeMounts"] if not m["name"].startswith("kube-api")]
    return spec


def essentials(metadata: JSON) -> JSON:
    """Names, labels, owners and annotations; a digest only for being there."""
    annotations = {k: "digest" if k in HASHES else v for k, v in metadata.get("annotations", {}).items()}
    owners = [{k: v for k, v in o.items() if k != "uid"} for o in metadata["ownerReferences"]]
    return {
        "labels": metadata["labels"],
        "annotations": annotations,
        "owners": owners,
        "name": metadata.get("generateName", metadata.get("name")),
    }


@pytest.mark.parametrize("of", ["job", "service"])
def test_the_head_pod_is_the_recorded_one(recorded_objects: JSON, of: str) -> None:
    cluster, pod = recorded_objects[of]["RayCluster "], recorded_objects[of]["Pod head"]

    made = pods.head_pod(cluster)

    assert essentials(made["metadata"]) == essentials(pod["metadata"])
    assert made["spec"] == as_written(pod)


def test_the_worker_pod_is_the_recorded_one(recorded_objects: JSON) -> None:
    cluster, pod = recorded_objects["job"]["RayCluster "], recorded_objects["job"]["Pod worker"]

    made = pods.worker_pod(cluster, cluster["spec"]["workerGroupSpecs"][0], 0)

    assert essentials(made["metadata"]) == essentials(pod["metadata"])
    assert made["spec"] == as_written(pod)


@pytest.mark.parametrize("of", ["job", "service"])
def test_the_ray_cluster_carries_its_origin(recorded_objects: JSON, of: str) -> None:
    owner = recorded_objects[of]["RayJob " if of == "job" else "RayService "]
    cluster = recorded_objects[of]["RayCluster "]
    spec = owner["spec"]["rayClusterSpec" if of == "job" else "rayClusterConfig"]

    made = pods.cluster_object(owner, cluster["metadata"]["name"], spec)

    assert essentials({"annotations": {}} | made["metadata"]) == essentials({"annotations": {}} | cluster["metadata"])


@pytest.mark.parametrize(("of", "service"), [("job", "ok-w-head-svc"), ("service", "svc-head-svc")])
def test_head_services_are_the_recorded_ones(recorded_objects: JSON, of: str, service: str) -> None:
    cluster = recorded_objects[of]["RayCluster "]
    owner = recorded_objects[of]["RayJob " if of == "job" else "RayService "]
    for made, name in (
        (pods.head_service(owner, cluster["metadata"]["name"]), service),
        (pods.head_service(cluster, cluster["metadata"]["name"]), f"{cluster['metadata']['name']}-head-svc"),
    ):
        there = recorded_objects[of][f"Service {name}"]
        assert essentials(made["metadata"]) == essentials(there["metadata"])
        assert made["spec"] == {k: there["spec"][k] for k in made["spec"]}


def test_the_serve_service_is_the_recorded_one(recorded_objects: JSON) -> None:
    cluster, owner = recorded_objects["service"]["RayCluster "], recorded_objects["service"]["RayService "]
    there = recorded_objects["service"]["Service svc-serve-svc"]

    made = pods.serve_service(owner, cluster["metadata"]["name"])

    assert essentials(made["metadata"]) == essentials(there["metadata"])
    assert made["spec"] == {k: there["spec"][k] for k in made["spec"]}


def test_what_the_user_gave_stays(recorded_objects: JSON) -> None:
    cluster = copy.deepcopy(recorded_objects["job"]["RayCluster "])
    template = cluster["spec"]["headGroupSpec"]["template"]
    template["metadata"] = {"labels": {"team": "a"}, "annotations": {"note": "b"}}
    template["spec"] |= {"runtimeClassName": "sluice-host", "securityContext": {"runAsUser": 1000}}
    container = template["spec"]["containers"][0]
    container["env"].append({"name": "RAY_ADDRESS", "value": "mine"})
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    container["readinessProbe"] = {"exec": {"command": ["true"]}}

    made = pods.head_pod(cluster)

    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["annotations"]["note"] == "b"
    assert made["spec"]["runtimeClassName"] == "sluice-host"
    assert made["spec"]["securityContext"] == {"runAsUser": 1000}
    ray = made["spec"]["containers"][0]
    assert [v["value"] for v in ray["env"] if v["name"] == "RAY_ADDRESS"] == ["mine"]
    assert not any(v["name"] == "shared-mem" for v in made["spec"]["volumes"])
    assert ray["readinessProbe"] == {"exec": {"command": ["true"]}}


def running_pod(pod: JSON, address: str) -> JSON:
    conditions = [{"type": "Ready", "status": "True"}]
    return pod | {"status": {"phase": "Running", "podIP": address, "conditions": conditions}}


def test_a_ready_clusters_status_is_the_recorded_one(recorded_objects: JSON) -> None:
    cluster = recorded_objects["job"]["RayCluster "]
    wanted = cluster["status"]
    fresh = {k: v for k, v in cluster.items() if k != "status"}
    all_pods = [
        running_pod(recorded_objects["job"]["Pod head"], wanted["head"]["podIP"]),
        running_pod(recorded_objects["job"]["Pod worker"], "10.244.0.9"),
    ]

    made = cluster_status.status(fresh, all_pods, "2026-11-21T07:21:55Z")

    def without_times(status: JSON) -> JSON:
        conditions = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in status["conditions"]]
        return status | {"conditions": conditions}

    assert without_times(made) == without_times(wanted)


def test_a_lost_head_is_replaced_and_the_cluster_still_counts_as_ready(recorded_objects: JSON) -> None:
    cluster = recorded_objects["job"]["RayCluster "]
    worker = running_pod(recorded_objects["job"]["Pod worker"], "10.244.0.9")

    changes = cluster_status.plan(cluster, [worker], "abcde")
    status = cluster_status.status(cluster, [worker], "2026-11-21T08:00:00Z")

    assert [p["metadata"]["generateName"] for p in changes.create] == ["ok-w-j4m5v-head-"]
    assert changes.delete == []
    assert status["state"] == "ready"
    assert next(c for c in status["conditions"] if c["type"] == "HeadPodReady")["status"] == "False"


def test_a_failed_pod_makes_room_first(recorded_objects: JSON) -> None:
    cluster = recorded_objects["job"]["RayCluster "]
    head = recorded_objects["job"]["Pod head"] | {"status": {"phase": "Failed"}}
    worker = running_pod(recorded_objects["job"]["Pod worker"], "10.244.0.9")

    changes = cluster_status.plan(cluster, [head, worker], "abcde")

    assert changes.delete == [head["metadata"]["name"]]
    assert changes.create == []


def test_nothing_is_written_when_nothing_changed(recorded_objects: JSON) -> None:
    cluster = recorded_objects["job"]["RayCluster "]
    head = running_pod(recorded_objects["job"]["Pod head"], "10.244.0.4")
    worker = running_pod(recorded_objects["job"]["Pod worker"], "10.244.0.9")
    once = cluster | {"status": cluster_status.status(cluster, [head, worker], "2026-11-21T08:00:00Z")}

    assert cluster_status.status(once, [head, worker], "2026-11-21T09:00:00Z") == once["status"]
