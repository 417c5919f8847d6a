"""The RayService that serves one version of a pool.

`upgradeStrategy: None` on purpose: KubeRay would replace the cluster by itself, on a timer and without a look at any
metric. A new version is a new RayService, named by its manifest's digest, and the gateway's weights decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from sluice_contracts import engine_arguments
from sluice_contracts.adapters import ENGINE_APPLICATION
from sluice_contracts.inference_pool import Adapters, InferencePoolSpec
from sluice_contracts.model_version import BuildsOn
from sluice_contracts.names import LABEL_MODEL_VERSION, LABEL_POOL
from sluice_contracts.training_run import ManifestReference

from sluice_operator.children.adapters import adapter_serve_application, room
from sluice_operator.children.hardware import HardwareError, Machine, machine
from sluice_operator.children.metadata import child, labels, short_name
from sluice_operator.children.pods import QUIET, SHARED_MEMORY, TMP, container, environment, overlay, pod_spec
from sluice_operator.children.ray_ready import RAY_READY
from sluice_operator.children.scaling import deployment_scaling, first_machines
from sluice_operator.kube.resources import INFERENCE_POOL, RAY_SERVICE
from sluice_operator.plan import Meta
from sluice_operator.settings import Settings

IMPORT_PATH = "sluice_serving.app:build"
SERVE_PORT = 8000
HEAD_RESOURCES = {"cpu": "1", "memory": "2Gi"}
HEADROOM = 2
"""Requests an engine takes beyond the gateway's limit: the gateway is the one that queues."""
IDLE_SECONDS = 300
"""A machine whose engine was removed stays this long: Ray's default of 60 s would give a node back in the lull between
two bursts, and loading a model on a new one takes minutes."""
AUTOSCALER: dict[str, Any] = {
    "idleTimeoutSeconds": IDLE_SECONDS,
    # KubeRay's own default, said here so that the sidecar's share is seen beside the head's.
    "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}},
    # Without it the sidecar alone would keep the pod out of a namespace that enforces the `restricted` standard.
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    "env": QUIET,
}
"""KubeRay's `autoscalerOptions` (ray.io/v1, AutoscalerOptions): the sidecar in the head pod that asks for machines."""


DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's, which writes the same text: in Python it takes two thirds of a whole look at a pool."""
SERVE_READY = {
    "httpGet": {"path": "/-/healthz", "port": SERVE_PORT},
    "initialDelaySeconds": 10,
    "periodSeconds": 5,
    "timeoutSeconds": 2,
    "failureThreshold": 1,
}
"""A worker takes requests once its Serve proxy answers. KubeRay's own probe asks the same with `wget` inside the
container (controllers/ray/common/pod.go, 1.7), and where the image has none the worker would never be ready."""


@dataclass(frozen=True)
class Version:
    """What a RayService needs to know of a ModelVersion."""

    name: str
    model: str
    lineage: str
    manifest: ManifestReference
    builds_on: BuildsOn | None = None
    """With a rank where it can also be served as an adapter on its base."""


def service_name(pool: str, digest: str) -> str:
    """`<pool>-<digest8>`: two versions can never share one."""
    return f"{pool}-{digest.removeprefix('sha256:')[:8]}"


def engine_url(service: str, namespace: str) -> str:
    """Where the version's OpenAI API answers inside the cluster, without `/v1`."""
    return f"http://{service}-serve-svc.{namespace}.svc.cluster.local:{SERVE_PORT}"


def has_worker_group(spec: InferencePoolSpec) -> bool:
    """Whether engines run in pods of their own. A single engine on CPU shares the head's pod: one less to start. One
    that sleeps does not: its machine is to go with it, and the head's stays to wake it."""
    return spec.hardware.accelerator != "cpu" or spec.replicas.max > 1 or spec.replicas.min == 0


def ray_service(
    meta: Meta,
    spec: InferencePoolSpec,
    version: Version,
    settings: Settings,
    *,
    awake: bool = False,
    adapters: Sequence[Version] = (),
) -> dict[str, Any]:
    """The RayService of `version`, with `adapters` beside it on its engines. `awake`: it keeps an engine though the
    pool may sleep. Raises HardwareError.

    An adapter is one more application: the RayCluster and the engine's application are the same with and without, so
    KubeRay and Ray Serve change nothing about what runs."""
    box = machine(spec.hardware)
    try:
        engine_arguments.parallelism(
            engine_arguments.parsed(spec.engine.args), box.gpus or box.tpu_chips * box.hosts or 1
        )
    except ValueError as error:
        raise HardwareError(f"engine.args: {error}") from None
    alone = not has_worker_group(spec)
    own = {LABEL_POOL: meta.name, LABEL_MODEL_VERSION: short_name(version.name)}
    label = labels("engine", model=version.model, lineage=version.lineage, **own)
    head_resources = box.resources if alone else {"requests": HEAD_RESOURCES, "limits": HEAD_RESOURCES}
    cluster: dict[str, Any] = {
        "rayVersion": settings.ray_version,
        "headGroupSpec": {
            "rayStartParams": {
                "dashboard-host": "0.0.0.0",
                # One replica takes one; Serve's own actors take none. Ray starts a Python process for each at once.
                "num-cpus": str(box.cpus if alone else 0),
            },
            "template": _template(
                "ray-head", spec, box if alone else None, head_resources, label, settings, readinessProbe=RAY_READY
            ),
        },
    }
    if not alone:
        # An engine takes one of Ray's CPUs. On CPU that is what keeps a second engine out of the same machine.
        cpus = 1 if spec.hardware.accelerator == "cpu" else max(2, box.cpus)
        start = {"num-cpus": str(cpus)} | ({"num-gpus": str(box.gpus)} if box.gpus else {})
        lowest = spec.replicas.min + spec.replicas.warm
        if spec.replicas.max > lowest:
            cluster["enableInTreeAutoscaling"] = True
            cluster["autoscalerOptions"] = AUTOSCALER
        cluster["workerGroupSpecs"] = [
            {
                "groupName": "engines",
                "replicas": first_machines(spec.replicas),
                "minReplicas": lowest,
                "maxReplicas": spec.replicas.max,
                "numOfHosts": box.hosts,
                "rayStartParams": start,
                "template": _template(
                    "ray-worker", spec, box, box.resources, label, settings, readinessProbe=SERVE_READY
                ),
            }
        ]
    ranks = [a.builds_on.rank for a in adapters if a.builds_on is not None and a.builds_on.rank is not None]
    applications = [_application(spec, version, awake, room(spec.engine.adapters, ranks))]
    for a in adapters:
        found = adapter_serve_application(a.model, a.name, a.lineage, a.manifest, version.manifest.digest)
        applications.append(found)
    body = {
        "upgradeStrategy": {"type": "None"},
        "serveConfigV2": yaml.dump({"applications": applications}, Dumper=DUMPER, sort_keys=True),
        "rayClusterConfig": cluster,
    }
    name = service_name(meta.name, version.manifest.digest)
    return child(RAY_SERVICE, name, INFERENCE_POOL, meta, label, lineage=version.lineage, spec=body)


def _application(spec: InferencePoolSpec, version: Version, awake: bool, adapters: Adapters | None) -> dict[str, Any]:
    args: dict[str, Any] = {
        "model": version.model,
        "modelVersion": version.name,
        "lineage": version.lineage,
        "manifestUri": version.manifest.uri,
        "manifestDigest": version.manifest.digest,
        "maxModelLen": spec.engine.max_model_len,
        "dtype": spec.engine.dtype,
        "engineArgs": dict(spec.engine.args),
        "maxOutputTokens": spec.limits.max_output_tokens,
        "maxOngoing": spec.limits.in_flight_per_replica + HEADROOM,
        "accelerator": spec.hardware.accelerator.value,
    }
    if adapters is not None:
        args["adapterSlots"] = adapters.slots
        args["maxAdapterRank"] = adapters.max_rank
    if spec.hardware.count is not None:
        args["count"] = spec.hardware.count
    if spec.hardware.topology is not None:
        args["topology"] = spec.hardware.topology
    tracing = spec.gateway.tracing
    if tracing is not None and tracing.engines:
        args["tracesEndpoint"] = tracing.endpoint
    return {
        "name": ENGINE_APPLICATION,
        "import_path": IMPORT_PATH,
        "route_prefix": "/",
        "args": args,
        "deployments": [{"name": version.model} | deployment_scaling(spec.replicas, awake=awake)],
    }


def _template(
    name: str,
    spec: InferencePoolSpec,
    box: Machine | None,
    resources: dict[str, dict[str, str]],
    label: dict[str, str],
    settings: Settings,
    **more: Any,
) -> dict[str, Any]:
    main = container(
        name,
        settings.images.serve,
        settings,
        env=environment(settings),
        resources=resources,
        volumeMounts=[
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        **more,
    )
    fields: dict[str, Any] = box.pod_fields() if box else {}
    if settings.service_account:
        fields["serviceAccountName"] = settings.service_account
    pod = {"metadata": {"labels": dict(label)}, "spec": pod_spec(settings, [main], [TMP, SHARED_MEMORY], **fields)}
    return overlay(pod, spec.pod_template)
