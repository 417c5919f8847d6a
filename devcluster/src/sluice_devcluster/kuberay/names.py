"""KubeRay's labels, annotations, ports and names."""

import secrets

GROUP_VERSION = "ray.io/v1"
KUBERAY_VERSION = "v1.7.0"
CREATED_BY = {"app.kubernetes.io/created-by": "kuberay-operator", "app.kubernetes.io/name": "kuberay"}
CLUSTER = "ray.io/cluster"
NODE_TYPE = "ray.io/node-type"
NODE_GROUP = "ray.io/group"
IDENTIFIER = "ray.io/identifier"
IS_RAY_NODE = "ray.io/is-ray-node"
REPLICA_INDEX = "ray.io/worker-group-replica-index"
REPLICA_NAME = "ray.io/worker-group-replica-name"
HOST_INDEX = "ray.io/replica-host-index"
HEADLESS = "ray.io/headless-worker-svc"
SERVE = "ray.io/serve"
ORIGIN_NAME = "ray.io/originated-from-cr-name"
ORIGIN_KIND = "ray.io/originated-from-crd"
JOB_FINALIZER = "ray.io/rayjob-finalizer"
SERVICE_FINALIZER = "ray.io/rayservice-finalizer"

DASHBOARD_PORT = 8265
AGENT_PORT = 52365
METRICS_PORT = 8080
SERVE_PORT = 8000
GCS_PORT = 6379
HEAD_PORTS = {
    "client": 10001,
    "dashboard": DASHBOARD_PORT,
    "gcs-server": GCS_PORT,
    "metrics": METRICS_PORT,
    "serve": SERVE_PORT,
}

MAX_NAME = 47
"""Characters of a RayJob's or RayService's name."""
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
"""What Kubernetes itself uses for random suffixes: no vowels, no look-alikes."""


def suffix() -> str:
    """Five random characters for a generated name."""
    return "".join(secrets.choice(_LETTERS) for _ in range(5))


def head_service(owner: str) -> str:
    """The name of the head's service of a RayCluster, RayJob or RayService."""
    return f"{owner}-head-svc"


def serve_service(owner: str) -> str:
    """The name of the service that reaches a RayService's applications."""
    return f"{owner}-serve-svc"
