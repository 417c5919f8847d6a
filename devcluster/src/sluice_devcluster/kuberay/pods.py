"""The pods and services of a RayCluster, in KubeRay's shape. Pure functions of the RayCluster object."""

import copy
import json
from collections.abc import Mapping
from hashlib import sha1
from typing import Any

from sluice_devcluster.kuberay import autoscaler, names
from sluice_devcluster.kuberay.quantities import whole

JSON = dict[str, Any]
SERVE_ENVIRONMENT = {
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_gcs_server_request_timeout_seconds": "5",
    "RAY_SERVE_KV_TIMEOUT_S": "5",
}
"""KubeRay's settings for the pods of a RayService: notice soon that a part of Ray is lost."""

_WGET = "wget --tries 1 -T {} -q -O- http://localhost:{}/{} | grep success"
SERVE_PROBE = {
    "exec": {
        "command": [
            "bash",
            "-c",
            f"{_WGET.format(2, names.AGENT_PORT, 'api/local_raylet_healthz')} && "
            f"{_WGET.format(10, names.SERVE_PORT, '-/healthz')}",
        ]
    },
    "initialDelaySeconds": 10,
    "periodSeconds": 5,
    "timeoutSeconds": 2,
    "successThreshold": 1,
    "failureThreshold": 1,
}
"""A RayService's worker is ready once its Serve proxy answers: only then may the serve service send to it. KubeRay asks
with wget, which the image must have, unless the pod template brings a probe of its own."""


def owner_reference(owner: Mapping[str, Any]) -> JSON:
    """The controller's reference to a ray.io object."""
    return {
        "apiVersion": names.GROUP_VERSION,
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def origin(cluster: Mapping[str, Any]) -> str:
    """The kind that a RayCluster was made for: RayJob, RayService, or RayCluster itself."""
    return str(cluster["metadata"].get("labels", {}).get(names.ORIGIN_KIND, "RayCluster"))


def spec_hash(spec: Mapping[str, Any]) -> str:
    """A short digest of a cluster's specification, for the annotations where KubeRay keeps its own."""
    return sha1(json.dumps(spec, sort_keys=True).encode(), usedforsecurity=False).hexdigest()[:32].upper()


def start_command(parameters: Mapping[str, str], *, head: bool) -> str:
    """The `ray start` command line, flags in alphabetical order; a flag with the value true stands alone."""
    flags = "".join(f" --{k} " if v == "true" else f" --{k}={v} " for k, v in sorted(parameters.items()))
    return f"ray start --head {flags}" if head else f"ray start {flags}"


def start_parameters(given: Mapping[str, str], limits: Mapping[str, Any], address: str | None) -> dict[str, str]:
    """`rayStartParams` completed from the container's limits. `address` is the head's, None for the head itself."""
    parameters = {k: str(v) for k, v in given.items()}
    if address is None:
        parameters.setdefault("dashboard-host", "0.0.0.0")
    else:
        parameters["address"] = address
    parameters.setdefault("block", "true")
    parameters.setdefault("dashboard-agent-listen-port", str(names.AGENT_PORT))
    parameters.setdefault("metrics-export-port", str(names.METRICS_PORT))
    if "memory" in limits:
        parameters.setdefault("memory", str(whole(limits["memory"])))
    if "cpu" in limits:
        parameters.setdefault("num-cpus", str(whole(limits["cpu"])))
    if "nvidia.com/gpu" in limits:
        parameters.setdefault("num-gpus", str(limits["nvidia.com/gpu"]))
    if "google.com/tpu" in limits:
        parameters.setdefault("resources", f"'{{\"TPU\":{whole(limits['google.com/tpu'])}}}'")
    return parameters


def head_address(cluster: Mapping[str, Any]) -> str:
    """The head's full name in the cluster's DNS."""
    metadata = cluster["metadata"]
    return f"{names.head_service(metadata['name'])}.{metadata['namespace']}.svc.cluster.local"


def head_pod(cluster: Mapping[str, Any]) -> JSON:
    """The head pod. A RayService's starts outside its serve service, until its proxy answers."""
    group = cluster["spec"]["headGroupSpec"]
    more = {names.SERVE: "false"} if origin(cluster) == "RayService" else {}
    pod = _pod(cluster, group, "head", "headgroup", f"{cluster['metadata']['name']}-head-", more)
    pod["metadata"]["annotations"] |= {
        "ray.io/ft-enabled": "false",
        "ray.io/kuberay-version": names.KUBERAY_VERSION,
        "ray.io/upgrade-strategy-recreate-hash": spec_hash(cluster["spec"]),
    }
    container = pod["spec"]["containers"][0]
    limits = container.get("resources", {}).get("limits", {})
    parameters = start_parameters(group.get("rayStartParams", {}), limits, None)
    if autoscaler.enabled(cluster):
        parameters["no-monitor"] = "true"
    command = start_command(parameters, head=True)
    tags = f"kuberay_version={names.KUBERAY_VERSION};kuberay_crd={origin(cluster)}"
    environment = {
        "KUBERAY_GEN_RAY_START_CMD": command,
        "RAY_PORT": str(names.GCS_PORT),
        **(SERVE_ENVIRONMENT if origin(cluster) == "RayService" else {}),
        "RAY_ADDRESS": f"127.0.0.1:{names.GCS_PORT}",
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_USAGE_STATS_EXTRA_TAGS": tags,
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }
    _finish(pod, command, [], environment, probe_timeout=5)
    if autoscaler.enabled(cluster):
        autoscaler.add_to_head(pod, cluster)
    return pod


def worker_pods(cluster: Mapping[str, Any], group: Mapping[str, Any], index: int, suffix: str) -> list[JSON]:
    """The pods of one replica of a group: one for each host, which the labels number and join by a name."""
    if hosts(group) == 1:
        return [worker_pod(cluster, group, index)]
    found = [worker_pod(cluster, group, index) for _ in range(hosts(group))]
    for number, pod in enumerate(found):
        pod["metadata"]["labels"] |= {
            names.REPLICA_NAME: f"{group['groupName']}-{suffix}",
            names.HOST_INDEX: str(number),
        }
    return found


def hosts(group: Mapping[str, Any]) -> int:
    """Pods of one replica of a group: more than one for a TPU slice of several hosts."""
    return max(1, int(group.get("numOfHosts", 1)))


def worker_pod(cluster: Mapping[str, Any], group: Mapping[str, Any], index: int) -> JSON:
    """One worker pod of a group."""
    name = cluster["metadata"]["name"]
    more = {names.REPLICA_INDEX: str(index)}
    if origin(cluster) == "RayService":
        more[names.SERVE] = "true"
    pod = _pod(cluster, group, "worker", group["groupName"], f"{name}-{group['groupName']}-worker-", more)
    container = pod["spec"]["containers"][0]
    limits = container.get("resources", {}).get("limits", {})
    address = f"{head_address(cluster)}:{names.GCS_PORT}"
    command = start_command(start_parameters(group.get("rayStartParams", {}), limits, address), head=False)
    first = [_variable("FQ_RAY_IP", head_address(cluster)), _variable("RAY_IP", names.head_service(name))]
    environment = {
        "KUBERAY_GEN_RAY_START_CMD": command,
        "RAY_PORT": str(names.GCS_PORT),
        **(SERVE_ENVIRONMENT if origin(cluster) == "RayService" else {}),
        "RAY_ADDRESS": address,
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }
    if origin(cluster) == "RayService":
        container.setdefault("readinessProbe", SERVE_PROBE)
    _finish(pod, command, first, environment, probe_timeout=2)
    return pod


def _pod(
    cluster: Mapping[str, Any],
    group: Mapping[str, Any],
    kind: str,
    group_name: str,
    prefix: str,
    labels: Mapping[str, str],
) -> JSON:
    template = copy.deepcopy(group["template"])
    name = cluster["metadata"]["name"]
    given = template.get("metadata", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": prefix,
            "namespace": cluster["metadata"]["namespace"],
            "labels": given.get("labels", {})
            | names.CREATED_BY
            | {
                names.CLUSTER: name,
                names.NODE_GROUP: group_name,
                names.IDENTIFIER: f"{name}-{kind}",
                names.IS_RAY_NODE: "yes",
                names.NODE_TYPE: kind,
            }
            | labels,
            "annotations": dict(given.get("annotations", {})),
            "ownerReferences": [owner_reference(cluster)],
        },
        "spec": template["spec"],
    }


def _variable(name: str, value: str) -> JSON:
    return {"name": name, "value": value}


def _field(name: str, path: str) -> JSON:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _finish(pod: JSON, command: str, first: list[JSON], environment: Mapping[str, str], probe_timeout: int) -> None:
    """Complete the Ray container, the first of the pod: command, environment, port, probes, shared memory."""
    container = pod["spec"]["containers"][0]
    container["command"] = ["/bin/bash", "-c", "--"]
    container["args"] = ["ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; " + command]
    added = [
        *first,
        _field("RAY_CLUSTER_NAME", f"metadata.labels['{names.CLUSTER}']"),
        _field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
        _field("RAY_CLOUD_INSTANCE_ID", "metadata.name"),
        _field("RAY_NODE_TYPE_NAME", f"metadata.labels['{names.NODE_GROUP}']"),
        *(_variable(k, v) for k, v in environment.items()),
    ]
    given = container.get("env", [])
    there = {variable["name"] for variable in given}
    container["env"] = given + [variable for variable in added if variable["name"] not in there]
    ports = container.setdefault("ports", [])
    if not any(port.get("name") == "metrics" for port in ports):
        ports.append({"containerPort": names.METRICS_PORT, "name": "metrics", "protocol": "TCP"})
    container.setdefault("livenessProbe", _probe(30, 120, probe_timeout))
    container.setdefault("readinessProbe", _probe(10, 10, probe_timeout))
    mounts = container.setdefault("volumeMounts", [])
    if not any(mount["mountPath"] == "/dev/shm" for mount in mounts):
        resources = container.get("resources", {})
        size = resources.get("limits", {}).get("memory") or resources.get("requests", {}).get("memory")
        volume = {"medium": "Memory"} | ({"sizeLimit": size} if size else {})
        pod["spec"].setdefault("volumes", []).append({"name": "shared-mem", "emptyDir": volume})
        mounts.append({"name": "shared-mem", "mountPath": "/dev/shm"})


def _probe(delay: int, failures: int, timeout: int) -> JSON:
    return {
        "httpGet": {"path": "/api/healthz", "port": names.AGENT_PORT, "scheme": "HTTP"},
        "initialDelaySeconds": delay,
        "periodSeconds": 5,
        "timeoutSeconds": timeout,
        "successThreshold": 1,
        "failureThreshold": failures,
    }


def cluster_object(owner: Mapping[str, Any], name: str, spec: Mapping[str, Any]) -> JSON:
    """The RayCluster of a RayJob or RayService, with all of that one's labels and annotations."""
    given = owner["metadata"]
    labels = {**given.get("labels", {}), names.ORIGIN_NAME: given["name"], names.ORIGIN_KIND: owner["kind"]}
    metadata: JSON = {
        "name": name,
        "namespace": given["namespace"],
        "labels": labels,
        "ownerReferences": [owner_reference(owner)],
    }
    if given.get("annotations"):
        metadata["annotations"] = dict(given["annotations"])
    if owner["kind"] == "RayJob":
        labels["ray.io/job-submission-mode"] = owner["spec"]["submissionMode"]
    else:
        metadata["annotations"] = dict(given.get("annotations", {})) | {
            "ray.io/hash-without-replicas-and-workers-to-delete": spec_hash(spec),
            "ray.io/kuberay-version": names.KUBERAY_VERSION,
            "ray.io/num-worker-groups": str(len(spec.get("workerGroupSpecs", []))),
        }
    body = copy.deepcopy(dict(spec))
    for group in body.get("workerGroupSpecs", []):
        group.setdefault("scaleStrategy", {})
    return {"apiVersion": names.GROUP_VERSION, "kind": "RayCluster", "metadata": metadata, "spec": body}


def head_selector(cluster_name: str) -> dict[str, str]:
    """The labels of a cluster's head pod that services select by."""
    return names.CREATED_BY | {
        names.CLUSTER: cluster_name,
        names.IDENTIFIER: f"{cluster_name}-head",
        names.NODE_TYPE: "head",
    }


def head_service(owner: Mapping[str, Any], cluster_name: str) -> JSON:
    """The headless service of a cluster's head, for the RayCluster itself or for the object that made it."""
    name = owner["metadata"]["name"]
    if owner["kind"] == "RayCluster":
        labels = head_selector(cluster_name)
    else:
        labels = {
            names.IDENTIFIER: f"{name}-head",
            names.NODE_TYPE: "head",
            names.ORIGIN_NAME: name,
            names.ORIGIN_KIND: owner["kind"],
        }
    ports = [
        {"name": k, "port": v, "targetPort": v, "protocol": "TCP", "appProtocol": "tcp"}
        for k, v in names.HEAD_PORTS.items()
    ]
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "ports": ports,
        "selector": head_selector(cluster_name),
        "type": "ClusterIP",
    }
    return _service(owner, names.head_service(name), labels, spec)


def headless_service(cluster: Mapping[str, Any]) -> JSON:
    """The service by which the hosts of a slice find each other."""
    name = cluster["metadata"]["name"]
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {names.CLUSTER: name, names.NODE_TYPE: "worker"},
        "type": "ClusterIP",
    }
    return _service(cluster, f"{name}-headless", {names.HEADLESS: name}, spec)


def serve_service(owner: Mapping[str, Any], cluster_name: str) -> JSON:
    """The service that reaches a RayService's applications on the pods that take part."""
    name = owner["metadata"]["name"]
    labels = {names.ORIGIN_NAME: name, names.ORIGIN_KIND: owner["kind"], names.SERVE: f"{name}-serve"}
    spec = {
        "ports": [{"name": "serve", "port": names.SERVE_PORT, "targetPort": names.SERVE_PORT, "protocol": "TCP"}],
        "selector": {names.CLUSTER: cluster_name, names.SERVE: "true"},
        "type": "ClusterIP",
    }
    return _service(owner, names.serve_service(name), labels, spec)


def _service(owner: Mapping[str, Any], name: str, labels: dict[str, str], spec: JSON) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": spec,
    }
