"""The three kinds: names, columns, and the definition around their schemas."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sluice_contracts.base import NAME_PATTERN
from sluice_contracts.crd.structural import Schema, structural_schema
from sluice_contracts.inference_pool import InferencePoolSpec, InferencePoolStatus
from sluice_contracts.kubernetes import Rule
from sluice_contracts.model_version import ModelVersionSpec, ModelVersionStatus
from sluice_contracts.names import GROUP, VERSION
from sluice_contracts.training_run import TrainingRunSpec, TrainingRunStatus

CATEGORY = "sluice"
NAME_LIMIT = 38
"""KubeRay allows a RayService 47 characters, and `-<first 8 digits of a digest>` is appended."""


@dataclass(frozen=True)
class Column:
    """One column of `kubectl get`; priority 1 shows with `-o wide` only."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True)
class Kind:
    """One of our kinds and the models of its spec and status."""

    name: str
    plural: str
    short_name: str
    description: str
    spec: type[BaseModel]
    status: type[BaseModel]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    """Of the whole object: for what its spec may say only in view of its name."""


def _condition(condition: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{condition}")].{field}'


_MESSAGE = Column("Message", _condition("Ready", "message"), priority=1)
_AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS = (
    Kind(
        name="TrainingRun",
        plural="trainingruns",
        short_name="trun",
        description="One attempt to make a model, from a dataset to an exported, evaluated version",
        spec=TrainingRunSpec,
        status=TrainingRunStatus,
        columns=(
            Column("Model", ".spec.model"),
            Column("Stage", ".status.progress.stage"),
            Column("Step", ".status.progress.step", "integer"),
            Column("Of", ".status.progress.totalSteps", "integer"),
            Column("Loss", ".status.progress.loss", "number"),
            Column("ETA", ".status.eta"),
            Column("Cost", ".status.cost.total"),
            Column("Ready", _condition("Ready")),
            Column("Reason", _condition("Ready", "reason")),
            Column("Attempts", ".status.attempts", "integer", priority=1),
            Column("Lineage", ".status.lineage", priority=1),
            _MESSAGE,
            _AGE,
        ),
    ),
    Kind(
        name="ModelVersion",
        plural="modelversions",
        short_name="mver",
        description="One finished model: verified, promoted by a pool, published to devices",
        spec=ModelVersionSpec,
        status=ModelVersionStatus,
        columns=(
            Column("Model", ".spec.model"),
            Column("Version", ".spec.version"),
            Column("Verified", _condition("Verified")),
            Column("Promoted", _condition("Promoted")),
            Column("Published", _condition("Published")),
            Column("Percent", ".status.release.percent", "integer"),
            Column("Ready", _condition("Ready")),
            Column("Lineage", ".status.lineage", priority=1),
            _MESSAGE,
            _AGE,
        ),
    ),
    Kind(
        name="InferencePool",
        plural="inferencepools",
        short_name="ipool",
        description="The place where one model is served, and where a new version must prove itself on live traffic",
        spec=InferencePoolSpec,
        status=InferencePoolStatus,
        columns=(
            Column("Model", ".spec.model"),
            Column("Stable", ".status.stable.modelVersion"),
            Column("Candidate", ".status.candidate.modelVersion"),
            Column("Weight", ".status.weights[1].percent", "integer"),  # stable comes first, the candidate second
            Column("Step", ".status.step", "integer"),
            Column("Ready", _condition("Ready")),
            Column("Reason", _condition("Ready", "reason")),
            Column("URL", ".status.url", priority=1),
            _MESSAGE,
            _AGE,
        ),
        rules=(
            (
                "!has(self.spec.gateway.fallback) || !has(self.spec.gateway.fallback.model) || "
                "self.spec.gateway.fallback.model.pool != self.metadata.name",
                "gateway.fallback.model.pool names the pool itself: name another InferencePool of its namespace",
            ),
        ),
    ),
)


def definition(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of `kind`, as plain data in the order people read it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": _object_schema(kind)},
                }
            ],
        },
    }


def _object_schema(kind: Kind) -> Schema:
    return {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {NAME_LIMIT} && self.metadata.name.matches('{NAME_PATTERN}')",
                "message": (
                    f"metadata.name must have at most {NAME_LIMIT} lower-case letters, digits and '-' and begin with a "
                    "letter: the names of its children are made from it"
                ),
            },
            *({"rule": rule, "message": message} for rule, message, *_ in kind.rules),
        ],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(kind.spec),
            "status": structural_schema(kind.status),
        },
    }


def _column(column: Column) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return shown | ({"priority": column.priority} if column.priority else {})
