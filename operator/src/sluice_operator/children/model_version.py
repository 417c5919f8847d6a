"""The ModelVersion a successful training run leaves behind."""

from typing import Any

from sluice_contracts.model_version import ModelVersionSpec
from sluice_contracts.names import LABEL_TRAINING_RUN
from sluice_contracts.training_run import ManifestReference

from sluice_operator.children.metadata import child, labels
from sluice_operator.kube.resources import MODEL_VERSION, TRAINING_RUN
from sluice_operator.plan import Meta


def model_version(meta: Meta, model: str, lineage: str, manifest: ManifestReference) -> dict[str, Any]:
    """The version named like its run. `publish` is left out: it belongs to whoever adds it."""
    spec = ModelVersionSpec(model=model, version=meta.name, manifest=manifest).wire()
    label = labels("version", model=model, lineage=lineage, **{LABEL_TRAINING_RUN: meta.name})
    return child(MODEL_VERSION, meta.name, TRAINING_RUN, meta, label, lineage=lineage, spec=spec)
