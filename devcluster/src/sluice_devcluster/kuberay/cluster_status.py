"""What a RayCluster lacks, and its status: pure functions of the object and its pods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sluice_devcluster.kuberay import autoscaler, names, pods
from sluice_devcluster.kuberay.quantities import total_cpu, total_memory

JSON = dict[str, Any]
EMPTY: JSON = {"desiredCPU": "0", "desiredGPU": "0", "desiredMemory": "0", "desiredTPU": "0", "head": {}}
"""What a RayJob or RayService shows of a cluster that is not there yet."""


@dataclass(frozen=True)
class Changes:
    """Pods to make, and names of pods to delete."""

    create: list[JSON] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)


def ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod runs and is ready."""
    status = pod.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    return status.get("phase") == "Running" and conditions.get("Ready") == "True"


def head_of(all_pods: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The head among a cluster's pods; one that is going away still counts, as it does for KubeRay."""
    return next((p for p in all_pods if p["metadata"]["labels"].get(names.NODE_TYPE) == "head"), None)


def replicas_wanted(group: Mapping[str, Any]) -> int:
    """A group's number of replicas, within its range."""
    replicas = int(group.get("replicas", group.get("minReplicas", 0)))
    return max(int(group.get("minReplicas", 0)), min(replicas, int(group.get("maxReplicas", replicas))))


def workers_wanted(group: Mapping[str, Any]) -> int:
    """A group's number of pods."""
    return replicas_wanted(group) * pods.hosts(group)


def plan(cluster: Mapping[str, Any], all_pods: Sequence[Mapping[str, Any]], suffix: str) -> Changes:
    """Which pods are missing, and which ended or are given back and must make room for others.

    A slice of several hosts comes and goes as a whole: where one of its pods is lost, the others go, too. `suffix`
    names what is new.
    """
    ended = {p["metadata"]["name"] for p in all_pods if p.get("status", {}).get("phase") in ("Failed", "Succeeded")}
    changes = Changes()
    for pod in all_pods:
        if pod["metadata"]["name"] in ended and "deletionTimestamp" not in pod["metadata"]:
            changes.delete.append(pod["metadata"]["name"])
    if head_of(all_pods) is None:
        changes.create.append(pods.head_pod(cluster))
    for group in cluster["spec"].get("workerGroupSpecs", []):
        mine = [p for p in all_pods if p["metadata"]["labels"].get(names.NODE_GROUP) == group["groupName"]]
        _plan_group(cluster, group, mine, changes, suffix)
    return changes


def _plan_group(
    cluster: Mapping[str, Any], group: Mapping[str, Any], mine: list[Mapping[str, Any]], changes: Changes, suffix: str
) -> None:
    replicas: dict[int, list[Mapping[str, Any]]] = {}
    for pod in mine:
        replicas.setdefault(int(pod["metadata"]["labels"].get(names.REPLICA_INDEX, 0)), []).append(pod)
    given_back = set((group.get("scaleStrategy") or {}).get("workersToDelete") or []) | set(changes.delete)
    for members in replicas.values():
        gone = any(p["metadata"]["name"] in given_back for p in members)
        incomplete = len(members) < pods.hosts(group)
        if gone or incomplete:
            changes.delete.extend(_not_going(members, changes))
    for index in [i for i in range(len(replicas) + replicas_wanted(group)) if i not in replicas]:
        if len(replicas) >= replicas_wanted(group):
            break
        replicas[index] = []
        changes.create.extend(pods.worker_pods(cluster, group, index, f"{suffix}{index}"))
    # Ray's autoscaler names the workers that may go: without a name none does.
    if not autoscaler.enabled(cluster):
        staying = [left for members in replicas.values() if (left := _not_going(members, changes))]
        for left in staying[: max(0, len(staying) - replicas_wanted(group))]:
            changes.delete.extend(left)


def _not_going(members: Sequence[Mapping[str, Any]], changes: Changes) -> list[str]:
    """Names of the pods that nobody has deleted yet."""
    left = [p["metadata"]["name"] for p in members if "deletionTimestamp" not in p["metadata"]]
    return [name for name in left if name not in changes.delete]


def status(cluster: Mapping[str, Any], all_pods: Sequence[Mapping[str, Any]], now: str) -> JSON:
    """The status. `now` is the time, RFC 3339; times of things that have not changed stay."""
    old: JSON = cluster.get("status", {})
    spec = cluster["spec"]
    groups = spec.get("workerGroupSpecs", [])
    workers = [p for p in all_pods if p["metadata"]["labels"].get(names.NODE_TYPE) == "worker"]
    wanted = sum(workers_wanted(g) for g in groups)
    head = head_of(all_pods)
    running = [p for p in workers if p.get("status", {}).get("phase") == "Running"]
    all_ready = head is not None and ready(head) and sum(map(ready, workers)) >= wanted
    provisioned = all_ready or _condition(old, "RayClusterProvisioned").get("status") == "True"
    # Once ready, a cluster stays so in its status, whatever becomes of its pods: so does KubeRay's.
    state = "ready" if provisioned else None
    new: JSON = {
        "conditions": [
            _head_condition(head),
            _provisioned_condition(provisioned),
            {"type": "RayClusterSuspended", "status": "False", "reason": "RayClusterSuspended", "message": ""},
            {"type": "RayClusterSuspending", "status": "False", "reason": "RayClusterSuspending", "message": ""},
        ],
        "desiredCPU": total_cpu(_requests(cluster, "cpu")),
        "desiredMemory": total_memory(_requests(cluster, "memory")),
        "desiredGPU": total_cpu(_requests(cluster, "nvidia.com/gpu")),
        "desiredTPU": total_cpu(_requests(cluster, "google.com/tpu")),
        "endpoints": {name: str(port) for name, port in names.HEAD_PORTS.items()},
        "head": _head(cluster, head),
        "observedGeneration": cluster["metadata"].get("generation", 1),
    }
    numbers = {
        "desiredWorkerReplicas": wanted,
        "maxWorkerReplicas": sum(int(g.get("maxReplicas", 0)) * pods.hosts(g) for g in groups),
        "minWorkerReplicas": sum(int(g.get("minReplicas", 0)) * pods.hosts(g) for g in groups),
        "availableWorkerReplicas": len(running),
        "readyWorkerReplicas": sum(map(ready, workers)),
    }
    new |= {name: number for name, number in numbers.items() if number}
    if state:
        new["state"] = state
        new["stateTransitionTimes"] = old.get("stateTransitionTimes") or {state: now}
    for condition in new["conditions"]:
        before = _condition(old, condition["type"])
        same = before.get("status") == condition["status"]
        condition["lastTransitionTime"] = before["lastTransitionTime"] if same else now
    unchanged = {k: v for k, v in old.items() if k != "lastUpdateTime"} == new
    new["lastUpdateTime"] = old["lastUpdateTime"] if unchanged else now
    return new


def _condition(found: Mapping[str, Any], kind: str) -> JSON:
    return next((c for c in found.get("conditions", []) if c["type"] == kind), {})


def _head_condition(head: Mapping[str, Any] | None) -> JSON:
    base = {"type": "HeadPodReady", "status": "False", "message": ""}
    if head is None:
        return base | {"reason": "HeadPodNotFound", "message": "Head Pod not found"}
    if ready(head):
        return base | {"status": "True", "reason": "HeadPodRunningAndReady"}
    status = head.get("status", {})
    condition = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), None)
    if condition is None:
        return base | {"reason": "Unknown"}
    reason, message = condition.get("reason", "Unknown"), condition.get("message", "")
    for container in status.get("containerStatuses", []):
        if waiting := container.get("state", {}).get("waiting"):
            reason = waiting.get("reason", reason)
            message = f"{message}; {container['name']}: {waiting.get('message', '')}"
    return base | {"reason": reason, "message": message}


def _provisioned_condition(provisioned: bool) -> JSON:
    if provisioned:
        return {
            "type": "RayClusterProvisioned",
            "status": "True",
            "reason": "AllPodRunningAndReadyFirstTime",
            "message": "All Ray Pods are ready for the first time",
        }
    return {
        "type": "RayClusterProvisioned",
        "status": "False",
        "reason": "RayClusterPodsProvisioning",
        "message": "RayCluster Pods are being provisioned for first time",
    }


def _head(cluster: Mapping[str, Any], head: Mapping[str, Any] | None) -> JSON:
    found = {"serviceName": names.head_service(cluster["metadata"]["name"])}
    if head is not None:
        found["podName"] = head["metadata"]["name"]
        if address := head.get("status", {}).get("podIP"):
            found |= {"podIP": address, "serviceIP": address}
    return found


def _requests(cluster: Mapping[str, Any], resource: str) -> list[Any]:
    """What the head and every worker ask for of a resource; a limit is a request where none is given."""
    spec = cluster["spec"]
    found = []
    for group in [
        spec["headGroupSpec"],
        *(g for g in spec.get("workerGroupSpecs", []) for _ in range(workers_wanted(g))),
    ]:
        for container in group["template"]["spec"]["containers"]:
            resources = container.get("resources", {})
            amount = resources.get("requests", {}).get(resource) or resources.get("limits", {}).get(resource)
            if amount is not None:
                found.append(amount)
    return found
