"""The pool's gateway: Deployment, Service, disruption budget, and the least rights it can live with.

Its ServiceAccount may read exactly one object: the pool's routes ConfigMap.
"""

from collections.abc import Sequence
from typing import Any

from sluice_contracts.inference_pool import InferencePoolSpec
from sluice_contracts.names import LABEL_POOL

from sluice_operator.children.boundaries import (
    API_PORT,
    INTERNAL_PORT,
    engine_policy,
    gateway_policy,
    pod_labels,
)
from sluice_operator.children.gateway_data import data_parts
from sluice_operator.children.metadata import child, labels
from sluice_operator.children.pods import TMP, container, environment, overlay, pod_spec
from sluice_operator.children.routes import routes_name
from sluice_operator.kube.resources import (
    DEPLOYMENT,
    INFERENCE_POOL,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Resource,
)
from sluice_operator.plan import Meta
from sluice_operator.settings import Settings

GRACE_SECONDS = 330
"""More than the gateway takes to stop: SLUICE_DRAIN_DELAY_SECONDS, SLUICE_DRAIN_SECONDS, and writing its records."""
SERVICE_PORT = 80
TLS_SERVICE_PORT = 443
JUDGE = "/etc/sluice/judge"
TLS = "/etc/sluice/tls"


def gateway_name(pool: str) -> str:
    """Name of the pool's Deployment, Service, PodDisruptionBudget, ServiceAccount, Role and RoleBinding."""
    return f"{pool}-gateway"


def gateway_url(meta: Meta, spec: InferencePoolSpec) -> str:
    """Where applications in the cluster send requests."""
    scheme = "https" if spec.gateway.tls else "http"
    return f"{scheme}://{gateway_name(meta.name)}.{meta.namespace}.svc.cluster.local"


def gateway_objects(
    meta: Meta, spec: InferencePoolSpec, settings: Settings, borrowers: Sequence[str] = ()
) -> list[tuple[Resource, dict[str, Any]]]:
    """All objects of the gateway but its routes, in the order they are applied. `borrowers` are the pools that this one
    answers for when they cannot."""
    return [
        (SERVICE_ACCOUNT, _child(SERVICE_ACCOUNT, meta, spec, automountServiceAccountToken=False)),
        (ROLE, _role(meta, spec)),
        (ROLE_BINDING, _role_binding(meta, spec)),
        (NETWORK_POLICY, gateway_policy(meta, spec, gateway_name(meta.name))),
        (NETWORK_POLICY, engine_policy(meta, spec, borrowers)),
        (SERVICE, _service(meta, spec)),
        (POD_DISRUPTION_BUDGET, _disruption_budget(meta, spec)),
        (DEPLOYMENT, _deployment(meta, spec, settings)),
    ]


def _child(resource: Resource, meta: Meta, pool: InferencePoolSpec, /, **body: Any) -> dict[str, Any]:
    label = labels("gateway", model=pool.model, lineage=None, **{LABEL_POOL: meta.name})
    return child(resource, gateway_name(meta.name), INFERENCE_POOL, meta, label, **body)


def _disruption_budget(meta: Meta, spec: InferencePoolSpec) -> dict[str, Any]:
    """Drains take the gateways one after the other. A single gateway may be drained: it would else never be, and its
    answers that have begun are finished first. One that is not ready answers nobody, and holds up nothing."""
    body = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": pod_labels("gateway", meta.name)},
    }
    return _child(POD_DISRUPTION_BUDGET, meta, spec, spec=body)


def _role(meta: Meta, spec: InferencePoolSpec) -> dict[str, Any]:
    rule = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [routes_name(meta.name)],
        "verbs": ["get", "list", "watch"],
    }
    return _child(ROLE, meta, spec, rules=[rule])


def _role_binding(meta: Meta, spec: InferencePoolSpec) -> dict[str, Any]:
    name = gateway_name(meta.name)
    return _child(
        ROLE_BINDING,
        meta,
        spec,
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        subjects=[{"kind": "ServiceAccount", "name": name, "namespace": meta.namespace}],
    )


def _service(meta: Meta, spec: InferencePoolSpec) -> dict[str, Any]:
    name, port = ("https", TLS_SERVICE_PORT) if spec.gateway.tls else ("http", SERVICE_PORT)
    return _child(
        SERVICE,
        meta,
        spec,
        spec={
            "type": "ClusterIP",
            "selector": pod_labels("gateway", meta.name),
            "ports": [{"name": name, "port": port, "targetPort": API_PORT, "protocol": "TCP"}],
        },
    )


def _deployment(meta: Meta, spec: InferencePoolSpec, settings: Settings) -> dict[str, Any]:
    label = labels("gateway", model=spec.model, lineage=None, **{LABEL_POOL: meta.name})
    data = data_parts(spec.gateway)
    env = {
        "SLUICE_ROUTES_CONFIGMAP": f"{meta.namespace}/{routes_name(meta.name)}",
        "SLUICE_PORT": str(API_PORT),
        "SLUICE_INTERNAL_PORT": str(INTERNAL_PORT),
        **data.env,
    }
    mounts: list[dict[str, Any]] = [*data.mounts, {"name": "tmp", "mountPath": "/tmp"}]
    volumes: list[dict[str, Any]] = [*data.volumes, TMP]
    if spec.gateway.tracing is not None:
        env["SLUICE_TRACING_SERVICE"] = gateway_name(meta.name)
    judge = spec.rollout.mirror.judge
    if judge is not None and judge.token_secret_ref is not None:
        env["SLUICE_JUDGE_TOKEN_FILE"] = f"{JUDGE}/{judge.token_secret_ref.key}"
        mounts.append({"name": "judge", "mountPath": JUDGE, "readOnly": True})
        volumes.append({"name": "judge", "secret": {"secretName": judge.token_secret_ref.name}})
    if spec.gateway.tls is not None:
        env["SLUICE_TLS_DIR"] = TLS
        mounts.append({"name": "tls", "mountPath": TLS, "readOnly": True})
        volumes.append({"name": "tls", "secret": {"secretName": spec.gateway.tls.secret_ref.name}})
    cache = spec.gateway.cache
    kept = cache.max_megabytes if cache.max_entries else 0
    main = container(
        "gateway",
        settings.images.gateway,
        settings,
        command=["sluice-gateway"],
        env=environment(settings, **env),
        ports=[
            {"name": "http", "containerPort": API_PORT, "protocol": "TCP"},
            {"name": "internal", "containerPort": INTERNAL_PORT, "protocol": "TCP"},
        ],
        volumeMounts=mounts,
        readinessProbe=_probe("/readyz", period=2, failures=3),
        livenessProbe=_probe("/healthz", period=10, failures=6),
        startupProbe=_probe("/healthz", period=1, failures=120),
        resources={"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": f"{512 + kept}Mi"}},
    )
    fields = {
        "serviceAccountName": gateway_name(meta.name),
        "automountServiceAccountToken": True,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }
    pod = {"metadata": {"labels": label}, "spec": pod_spec(settings, [main], volumes, **fields)}
    return _child(
        DEPLOYMENT,
        meta,
        spec,
        spec={
            "replicas": spec.gateway.replicas,
            "selector": {"matchLabels": pod_labels("gateway", meta.name)},
            "template": overlay(pod, spec.gateway.pod_template),
        },
    )


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "internal"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
