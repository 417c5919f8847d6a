"""The kinds of objects the operator reads and writes, and their paths at the API server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice_contracts.names import GROUP, VERSION


@dataclass(frozen=True)
class Resource:
    """One kind of namespaced object."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """`group/version`, or `v1` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, an object, or its subresource."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace is not None:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


TRAINING_RUN = Resource(GROUP, VERSION, "trainingruns", "TrainingRun")
MODEL_VERSION = Resource(GROUP, VERSION, "modelversions", "ModelVersion")
INFERENCE_POOL = Resource(GROUP, VERSION, "inferencepools", "InferencePool")
OWN = (TRAINING_RUN, MODEL_VERSION, INFERENCE_POOL)

RAY_JOB = Resource("ray.io", "v1", "rayjobs", "RayJob")
RAY_SERVICE = Resource("ray.io", "v1", "rayservices", "RayService")
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment")
JOB = Resource("batch", "v1", "jobs", "Job")
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
SERVICE = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNT = Resource("", "v1", "serviceaccounts", "ServiceAccount")
ROLE = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDING = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
NETWORK_POLICY = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
POD_DISRUPTION_BUDGET = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
HTTP_ROUTE = Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
CHILDREN = (
    RAY_JOB,
    RAY_SERVICE,
    DEPLOYMENT,
    JOB,
    CONFIG_MAP,
    SERVICE,
    SERVICE_ACCOUNT,
    ROLE,
    ROLE_BINDING,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    HTTP_ROUTE,
)
"""Watched by the label `app.kubernetes.io/managed-by=sluice`, so that nobody else's objects are ever cached."""

OPTIONAL = (HTTP_ROUTE,)
"""Children whose kind a cluster need not have: what asks for one says so, and the rest goes on."""

POD = Resource("", "v1", "pods", "Pod")
EVENT = Resource("", "v1", "events", "Event")
LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease")

BY_KIND = {(r.api_version, r.kind): r for r in (*OWN, *CHILDREN, POD, EVENT, LEASE)}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """The resource of an object that carries apiVersion and kind. Raises KeyError for a kind that is not in use."""
    return BY_KIND[obj["apiVersion"], obj["kind"]]
