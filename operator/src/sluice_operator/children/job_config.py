"""The ConfigMap that tells a training job what to do."""

from typing import Any

from sluice_contracts.job import JOB_FILE, JobConfig
from sluice_contracts.names import LABEL_TRAINING_RUN

from sluice_operator.children.metadata import child, labels
from sluice_operator.kube.resources import CONFIG_MAP, TRAINING_RUN
from sluice_operator.plan import Meta


def config_map_name(run: str) -> str:
    """The ConfigMap of a run: one for all of its attempts."""
    return f"{run}-job"


def job_config_map(meta: Meta, config: JobConfig) -> dict[str, Any]:
    """`<run>-job` with key run.json."""
    label = labels("trainer", model=config.spec.model, lineage=config.lineage, **{LABEL_TRAINING_RUN: meta.name})
    return child(
        CONFIG_MAP,
        config_map_name(meta.name),
        TRAINING_RUN,
        meta,
        label,
        lineage=config.lineage,
        data={JOB_FILE: config.canonical().decode() + "\n"},
    )
