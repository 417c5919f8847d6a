"""The few Kubernetes types that appear inside our own kinds."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from sluice_contracts.base import Contract, Timestamp

ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", max_length=16)]
"""An amount of a resource: `2`, `500m`, `4Gi`."""


Rule = tuple[str, str] | tuple[str, str, str]
"""A CEL expression that must hold of `self`, and the message for whoever broke it. A third text is a CEL expression
that makes a message from the values at hand; the second is then what is said if it cannot."""


def cel(*rules: Rule) -> ConfigDict:
    """A model's configuration that carries CEL rules into its CRD schema. They hold at the API server, with every
    operator down; inside Python they are not evaluated."""
    keys = ("rule", "message", "messageExpression")
    written: list[Any] = [dict(zip(keys, rule, strict=False)) for rule in rules]
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": written})


def immutable(kind: str, *fields: str) -> list[Rule]:
    """Rules for a spec: none of `fields` may change once the object exists. Fields are named as on the wire."""
    return [
        (
            f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            f"spec.{field} cannot be changed: apply a new {kind} under another name",
        )
        for field in fields
    ]


class Condition(Contract):
    """One condition, as the API conventions define it."""

    type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]+$", max_length=64)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=64)]
    message: Annotated[str, StringConstraints(max_length=4096)] = ""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    last_transition_time: Timestamp


Conditions = Annotated[list[Condition], Field(max_length=16, json_schema_extra={"x-list-map-keys": ["type"]})]


class SecretReference(Contract):
    """A Secret of the object's own namespace, by name."""

    name: ObjectName


class SecretKeyReference(Contract):
    """One key of a Secret of the object's own namespace."""

    name: ObjectName
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]


class ConfigMapKeyReference(Contract):
    """One key of a ConfigMap of the object's own namespace."""

    name: ObjectName
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]


PodTemplate = Annotated[
    dict[str, Any],
    Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "x-opaque": True}),
]
"""A pod template overlay, merged into the rendered pod. Validated by the API server where the pod is made."""
