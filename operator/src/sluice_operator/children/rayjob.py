"""The RayJob of one attempt of a training run.

Settings that were found to matter: HTTPMode needs no submitter pod; backoffLimit 0 because attempts are ours (KubeRay's
retries make a new cluster each, without a pause); RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=10 cuts Ray Train's recovery
after a lost node from a minute to a third of it; the drain time must end inside a spot node's 15 s.

Elastic runs (`workers.min` below `max`) start with the fewest workers: KubeRay submits a job only once all replicas it
was asked for are there. Ray Train then asks Ray's autoscaler for the most (ray.train, ElasticScalingPolicy), KubeRay's
in-tree autoscaler adds what nodes there are, and Ray Train takes them in, and does without those that are taken back.
"""

from typing import Any

from sluice_contracts.names import LABEL_TRAINING_RUN
from sluice_contracts.training_run import TrainingRunSpec

from sluice_operator.children.hardware import Machine, machine
from sluice_operator.children.job_config import config_map_name
from sluice_operator.children.metadata import child, labels
from sluice_operator.children.pods import QUIET, SHARED_MEMORY, TMP, container, environment, overlay, pod_spec
from sluice_operator.children.ray_ready import RAY_READY
from sluice_operator.kube.resources import RAY_JOB, TRAINING_RUN
from sluice_operator.plan import Meta
from sluice_operator.settings import Settings

TRAINER = "trainer"
"""Component label of a run's children."""
ENTRYPOINT = "sluice-train job --config /etc/sluice/run.json"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TTL_SECONDS = 10
"""How long the cluster of a finished job stays, for its last log lines: its machines cost, and may be waited for."""
DRAIN_SECONDS = 12
GRACE_SECONDS = 15
"""GKE gives user pods 15 s when it takes a spot node back."""
LOGICAL_CPUS = 2
"""CPUs that Ray may hand out on a CPU-only head: they admit the worker and limit nobody. No more than needed, because
Ray starts a Python process for each at once."""
HEAD_RESOURCES = {"cpu": "1", "memory": "2Gi"}
"""Of a head that only coordinates."""
AUTOSCALER: dict[str, Any] = {
    "env": QUIET,
    # KubeRay gives this container of the head's pod no security context of its own.
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
    # Idle workers cost as much as busy ones: they go once training is over and the model is being judged and exported.
    "idleTimeoutSeconds": 60,
}


def attempt_name(run: str, attempt: int) -> str:
    """`<run>`, then `<run>-2`, `<run>-3` and so on."""
    return run if attempt == 1 else f"{run}-{attempt}"


def attempt_number(run: str, name: str) -> int | None:
    """Which attempt a RayJob is, or None if it is none of this run's."""
    if name == run:
        return 1
    tail = name.removeprefix(f"{run}-")
    return int(tail) if tail != name and tail.isdigit() and int(tail) > 1 else None


def ray_job(meta: Meta, spec: TrainingRunSpec, lineage: str, attempt: int, settings: Settings) -> dict[str, Any]:
    """The RayJob of attempt number `attempt`. Raises HardwareError."""
    box = machine(spec.hardware)
    alone = _fits_the_head(spec)
    label = labels(TRAINER, model=spec.model, lineage=lineage, **{LABEL_TRAINING_RUN: meta.name})
    head_resources = box.resources if alone else {"requests": HEAD_RESOURCES, "limits": HEAD_RESOURCES}
    cluster: dict[str, Any] = {
        "rayVersion": settings.ray_version,
        "headGroupSpec": {
            "rayStartParams": {
                "dashboard-host": "0.0.0.0",
                "num-cpus": str(max(LOGICAL_CPUS, box.cpus) if alone else 0),
            },
            "template": _template("ray-head", spec, box if alone else None, head_resources, label, settings),
        },
    }
    if not alone:
        lowest, highest = box.groups(spec.hardware.workers)
        if lowest < highest:
            cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": AUTOSCALER}
        # Logical CPUs: Ray Train starts a process for each GPU, and each of them asks for as many as the pod has.
        start = {"num-cpus": str(box.cpus * max(1, box.gpus))} | ({"num-gpus": str(box.gpus)} if box.gpus else {})
        cluster["workerGroupSpecs"] = [
            {
                "groupName": "workers",
                "replicas": lowest,
                "minReplicas": lowest,
                "maxReplicas": highest,
                "numOfHosts": box.hosts,
                "rayStartParams": start,
                "template": _template("ray-worker", spec, box, box.resources, label, settings),
            }
        ]
    body = {
        "entrypoint": ENTRYPOINT,
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_SECONDS,
        "backoffLimit": 0,
        "rayClusterSpec": cluster,
    }
    if spec.queue_name is not None:
        label = label | {QUEUE_LABEL: spec.queue_name}
    return child(RAY_JOB, attempt_name(meta.name, attempt), TRAINING_RUN, meta, label, lineage=lineage, spec=body)


def suspended(meta: Meta, name: str, suspend: bool) -> dict[str, Any]:
    """Only `spec.suspend` of a RayJob: applied by a manager of its own, so that nothing else of a running job moves."""
    return {
        "apiVersion": RAY_JOB.api_version,
        "kind": RAY_JOB.kind,
        "metadata": {"name": name, "namespace": meta.namespace},
        "spec": {"suspend": suspend},
    }


def most_pods(spec: TrainingRunSpec) -> int:
    """Pods of one attempt at its largest: the head, and a pod for each worker."""
    return 1 if _fits_the_head(spec) else 1 + spec.hardware.workers.max


def _fits_the_head(spec: TrainingRunSpec) -> bool:
    """One CPU worker trains in the head pod: a second pod would only wait."""
    return spec.hardware.accelerator == "cpu" and spec.hardware.workers.max == 1


def _template(
    name: str,
    spec: TrainingRunSpec,
    box: Machine | None,
    resources: dict[str, dict[str, str]],
    label: dict[str, str],
    settings: Settings,
) -> dict[str, Any]:
    env = environment(
        settings,
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="10",
        RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=str(DRAIN_SECONDS),
    )
    main = container(
        name,
        settings.images.trainer,
        settings,
        env=env,
        resources=resources,
        readinessProbe=RAY_READY,
        volumeMounts=[
            {"name": "job", "mountPath": "/etc/sluice", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    )
    fields: dict[str, Any] = {"terminationGracePeriodSeconds": GRACE_SECONDS} | (box.pod_fields() if box else {})
    if settings.service_account:
        fields["serviceAccountName"] = settings.service_account
    run = label[LABEL_TRAINING_RUN]
    volumes = [{"name": "job", "configMap": {"name": config_map_name(run)}}, TMP, SHARED_MEMORY]
    pod = {"metadata": {"labels": dict(label)}, "spec": pod_spec(settings, [main], volumes, **fields)}
    return overlay(pod, spec.pod_template)
