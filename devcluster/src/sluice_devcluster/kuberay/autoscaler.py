"""What KubeRay adds where `enableInTreeAutoscaling` is set: Ray's autoscaler beside the head, and its rights.

Ray's autoscaler is the real one. It asks for workers by writing a RayCluster's `replicas`, and gives workers back by
naming their pods in `scaleStrategy.workersToDelete`.
"""

import copy
from collections.abc import Mapping
from typing import Any

from sluice_devcluster.kuberay import names

JSON = dict[str, Any]
CONTAINER = "autoscaler"
COMMAND = "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
LOGS = {"name": "ray-logs", "mountPath": "/tmp/ray"}
"""Where both containers write; the autoscaler finds the head's session there."""
RESOURCES = {"cpu": "500m", "memory": "512Mi"}


def enabled(cluster: Mapping[str, Any]) -> bool:
    """Whether Ray decides how many workers a RayCluster has."""
    return bool(cluster["spec"].get("enableInTreeAutoscaling"))


def add_to_head(pod: JSON, cluster: Mapping[str, Any]) -> None:
    """Put the autoscaler into a head pod that is otherwise complete."""
    options = cluster["spec"].get("autoscalerOptions") or {}
    head = pod["spec"]["containers"][0]
    container: JSON = {
        "name": CONTAINER,
        "image": options.get("image", head["image"]),
        "imagePullPolicy": options.get("imagePullPolicy", "IfNotPresent"),
        "command": options.get("command") or ["/bin/bash", "-c", "--"],
        "args": options.get("args") or [COMMAND],
        "env": [*_environment(), *copy.deepcopy(options.get("env", []))],
        "resources": copy.deepcopy(options.get("resources", {"requests": RESOURCES, "limits": RESOURCES})),
        "volumeMounts": [*copy.deepcopy(options.get("volumeMounts", [])), dict(LOGS)],
    }
    if "securityContext" in options:
        container["securityContext"] = copy.deepcopy(options["securityContext"])
    head["volumeMounts"].append(dict(LOGS))
    pod["spec"].setdefault("volumes", []).append({"name": LOGS["name"], "emptyDir": {}})
    pod["spec"]["containers"].append(container)
    pod["spec"]["serviceAccountName"] = service_account(cluster)


def service_account(cluster: Mapping[str, Any]) -> str:
    """The account the head runs as: the one its template names, or one of the cluster's own."""
    given = cluster["spec"]["headGroupSpec"]["template"]["spec"].get("serviceAccountName")
    return str(given or cluster["metadata"]["name"])


def _environment() -> list[JSON]:
    def field(name: str, path: str) -> JSON:
        return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}

    return [
        field("RAY_CLUSTER_NAME", f"metadata.labels['{names.CLUSTER}']"),
        field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
        field("RAY_HEAD_POD_NAME", "metadata.name"),
        {"name": "KUBERAY_CRD_VER", "value": "v1"},
        {"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": COMMAND},
    ]


def rights(cluster: Mapping[str, Any], owner: JSON) -> list[JSON]:
    """The account, unless the head's template names one, its role and their binding, all owned by the RayCluster."""
    name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": names.CREATED_BY | {names.CLUSTER: name},
        "ownerReferences": [owner],
    }
    account = service_account(cluster)
    rbac = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
    ]
    made = [
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        },
    ]
    if account == name:
        made.insert(0, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    return made
