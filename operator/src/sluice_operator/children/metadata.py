"""Names, labels and owners of children."""

import hashlib
from collections.abc import Mapping
from typing import Any

from sluice_contracts.lineage import lineage_label
from sluice_contracts.names import (
    ANNOTATION_LINEAGE,
    LABEL_COMPONENT,
    LABEL_LINEAGE,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    MANAGED_BY,
)

from sluice_operator.kube.resources import Resource
from sluice_operator.plan import Meta

LABEL_LIMIT = 63


def owner_reference(owner: Resource, meta: Meta) -> dict[str, Any]:
    """The reference by which the garbage collector removes the child with its owner."""
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def labels(component: str, *, model: str, lineage: str | None, **own: str) -> dict[str, str]:
    """The labels of a child: who manages it, what it is, and the lineage it serves."""
    found = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: component, LABEL_MODEL: model, **own}
    if lineage is not None:
        found[LABEL_LINEAGE] = lineage_label(lineage)
    return found


def child(
    resource: Resource,
    name: str,
    owner: Resource,
    meta: Meta,
    label: Mapping[str, str],
    *,
    lineage: str | None = None,
    **body: Any,
) -> dict[str, Any]:
    """A child object of `owner` with its metadata; `body` is what follows: spec, data, rules and so on."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": meta.namespace,
        "labels": dict(label),
        "ownerReferences": [owner_reference(owner, meta)],
    }
    if lineage is not None:
        metadata["annotations"] = {ANNOTATION_LINEAGE: lineage}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **body}


def short_name(name: str, limit: int = LABEL_LIMIT) -> str:
    """`name`, or where it is too long its beginning and a digest of the whole."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"
