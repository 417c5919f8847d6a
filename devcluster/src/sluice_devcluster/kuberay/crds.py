"""Custom resource definitions for the stand-in: the kinds of ray.io/v1 that Sluice writes, loosely typed.

The real ones are 1 MB of pod schema; these keep unknown fields, set the defaults that the real ones set, and show the
same columns.
"""

from typing import Any

_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _column(name: str, path: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "jsonPath": path, "type": kind}


def _definition(kind: str, spec: dict[str, Any], columns: list[dict[str, Any]]) -> dict[str, Any]:
    plural = kind.lower() + "s"
    schema = {"type": "object", "properties": {"spec": spec, "status": _OPEN}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.ray.io",
            "annotations": {"sluice.dev/stand-in": "local development only; install KubeRay's own chart elsewhere"},
        },
        "spec": {
            "group": "ray.io",
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": kind.lower(),
                "listKind": f"{kind}List",
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [*columns, _column("age", ".metadata.creationTimestamp", "date")],
                }
            ],
        },
    }


def _cluster_spec() -> dict[str, Any]:
    group = _OPEN | {
        "properties": {
            "numOfHosts": {"type": "integer", "default": 1},
            "minReplicas": {"type": "integer", "default": 0},
            "maxReplicas": {"type": "integer", "default": 2147483647},
        }
    }
    return _OPEN | {"properties": {"headGroupSpec": _OPEN, "workerGroupSpecs": {"type": "array", "items": group}}}


def definitions() -> list[dict[str, Any]]:
    """The three definitions, ready to apply."""
    job = _OPEN | {
        "properties": {
            "backoffLimit": {"type": "integer", "default": 0},
            "ttlSecondsAfterFinished": {"type": "integer", "default": 0},
            "submissionMode": {"type": "string", "default": "K8sJobMode"},
            "rayClusterSpec": _cluster_spec(),
        }
    }
    service = _OPEN | {"properties": {"rayClusterConfig": _cluster_spec()}}
    return [
        _definition(
            "RayCluster",
            _cluster_spec(),
            [
                _column("desired workers", ".status.desiredWorkerReplicas", "integer"),
                _column("available workers", ".status.availableWorkerReplicas", "integer"),
                _column("status", ".status.state"),
            ],
        ),
        _definition(
            "RayJob",
            job,
            [
                _column("job status", ".status.jobStatus"),
                _column("deployment status", ".status.jobDeploymentStatus"),
                _column("ray cluster name", ".status.rayClusterName"),
                _column("start time", ".status.startTime"),
                _column("end time", ".status.endTime"),
            ],
        ),
        _definition(
            "RayService",
            service,
            [
                _column("service status", ".status.serviceStatus"),
                _column("num serve endpoints", ".status.numServeEndpoints"),
            ],
        ),
    ]
