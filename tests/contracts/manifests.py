"""Manifests that the API server takes, and how a test changes them."""

import copy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
Changes = dict[str, Any]
Case = tuple[str, Manifest, Changes, list[str]]
"""What is wrong, what it is wrong in, the fields that make it so (None removes one), words the refusal must contain."""

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
RUN: Manifest = yaml.safe_load((EXAMPLES / "trainingrun-v1.yaml").read_text())
TUNED: Manifest = yaml.safe_load((EXAMPLES / "trainingrun-v2.yaml").read_text())
POOL: Manifest = yaml.safe_load((EXAMPLES / "inferencepool.yaml").read_text())
DIGEST = "sha256:" + "1" * 64
STORED: Changes = {"spec.gateway.interactions": {"databaseSecretRef": {"name": "db", "key": "url"}}}
VERSION: Manifest = {
    "apiVersion": "sluice.dev/v1alpha1",
    "kind": "ModelVersion",
    "metadata": {"name": "support-bot-v1", "namespace": "support"},
    "spec": {
        "model": "support-bot",
        "version": "support-bot-v1",
        "manifest": {"uri": "gs://sluice/runs/1/manifest.json", "digest": DIGEST},
    },
}


def changed(manifest: Manifest, changes: Changes) -> Manifest:
    """A copy of `manifest` with some fields set, by dotted path; None removes one."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *folders, last = path.split(".")
        inner: Any = result
        for name in folders:
            inner = inner[int(name)] if isinstance(inner, list) else inner.setdefault(name, {})
        if value is None:
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value
    return result


def hardware(**fields: Any) -> Changes:
    return {"spec.hardware": fields}


def tpu(accelerator: str, topology: str, **fields: Any) -> Changes:
    return hardware(accelerator=accelerator, topology=topology, **fields)
