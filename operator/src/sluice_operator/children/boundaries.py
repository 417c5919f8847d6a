"""Who may reach a pool's pods over the network: the gateway's callers its API, and only the gateway the engines.

NetworkPolicies, so they hold where the cluster's network plug-in enforces them (GKE: Dataplane V2, or network policy
enforcement switched on). The kubelet's probes are let through by every plug-in.
"""

from collections.abc import Sequence
from typing import Any

from sluice_contracts.inference_pool import InferencePoolSpec
from sluice_contracts.names import LABEL_COMPONENT, LABEL_POOL

from sluice_operator.children.metadata import child, labels
from sluice_operator.children.rayservice import SERVE_PORT
from sluice_operator.kube.resources import INFERENCE_POOL, NETWORK_POLICY
from sluice_operator.plan import Meta

API_PORT = 8080
INTERNAL_PORT = 8081
DASHBOARD_PORT = 8265
"""KubeRay configures Serve there, and asks how it is."""
RAY_METRICS_PORT = 8080

OPERATOR = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "sluice-operator"}}}
METRICS = {"namespaceSelector": {"matchLabels": {"sluice.dev/metrics": "allowed"}}}
KUBERAY = [
    # KubeRay's Helm chart and its kustomization both label its pods so (v1.7.0).
    {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}},
    # Where a provider runs it outside the cluster, it comes in through an agent there.
    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
]


def pod_labels(component: str, pool: str) -> dict[str, str]:
    """The labels that select a pool's pods of one kind: `gateway` or `engine`."""
    return {LABEL_COMPONENT: component, LABEL_POOL: pool}


def gateway_policy(meta: Meta, spec: InferencePoolSpec, name: str) -> dict[str, Any]:
    """Callers reach the API: all, or those of the named namespaces. Metrics and counts are for fewer."""
    api: dict[str, Any] = {"ports": _ports(API_PORT)}
    if spec.gateway.allowed_namespaces:
        wanted = {
            "key": "kubernetes.io/metadata.name", "operator": "In", "values": sorted(spec.gateway.allowed_namespaces)
        }  # fmt: skip
        api["from"] = [{"namespaceSelector": {"matchExpressions": [wanted]}}]
    inside = {"ports": _ports(INTERNAL_PORT), "from": [OPERATOR, METRICS]}
    return _policy(meta, spec, name, "gateway", [api, inside])


def engine_policy(meta: Meta, spec: InferencePoolSpec, borrowers: Sequence[str] = ()) -> dict[str, Any]:
    """Requests come from the pool's gateway only, and from those of the pools whose fallback it is. Ray's own ports,
    which ask for no key, are open to the pool's engines among themselves and, as far as it needs them, to KubeRay."""
    ray = {"podSelector": {"matchLabels": pod_labels("engine", meta.name)}}
    gateways = [{"podSelector": {"matchLabels": pod_labels("gateway", pool)}} for pool in (meta.name, *borrowers)]
    rules = [
        {"from": [ray]},
        {"ports": _ports(SERVE_PORT), "from": gateways},
        {"ports": _ports(SERVE_PORT, DASHBOARD_PORT), "from": KUBERAY},
        {"ports": _ports(RAY_METRICS_PORT), "from": [METRICS]},
    ]
    return _policy(meta, spec, f"{meta.name}-engines", "engine", rules)


def _ports(*numbers: int) -> list[dict[str, Any]]:
    return [{"port": number, "protocol": "TCP"} for number in numbers]


def _policy(
    meta: Meta, spec: InferencePoolSpec, name: str, component: str, ingress: list[dict[str, Any]]
) -> dict[str, Any]:
    label = labels(component, model=spec.model, lineage=None, **{LABEL_POOL: meta.name})
    body = {
        "podSelector": {"matchLabels": pod_labels(component, meta.name)},
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    }
    return child(NETWORK_POLICY, name, INFERENCE_POOL, meta, label, spec=body)
