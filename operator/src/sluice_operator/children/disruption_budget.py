"""The PodDisruptionBudget of a run's pods while they train: upgrades, consolidation and drains wait for it.

It holds back evictions only; a spot node that the cloud takes back asks nobody. `minAvailable` as a number is the one
form that Kubernetes honours for pods of a controller it does not know, such as a RayCluster
(kubernetes.io/docs/tasks/run-application/configure-pdb, "Arbitrary workloads and arbitrary selectors"). It is the
largest number of pods the run may have, so that none of them may go, however many there are now.
"""

from typing import Any

from sluice_contracts.names import LABEL_COMPONENT, LABEL_TRAINING_RUN
from sluice_contracts.training_run import TrainingRunSpec

from sluice_operator.children.metadata import child, labels
from sluice_operator.children.rayjob import TRAINER, most_pods
from sluice_operator.kube.resources import POD_DISRUPTION_BUDGET, TRAINING_RUN
from sluice_operator.plan import Meta


def budget_name(run: str) -> str:
    """The budget of a run: one for all of its attempts."""
    return f"{run}-pods"


def disruption_budget(meta: Meta, spec: TrainingRunSpec, lineage: str) -> dict[str, Any]:
    """`<run>-pods`. Pods that are not ready may be evicted: they do no work, and must not hold up a drain for ever."""
    label = labels(TRAINER, model=spec.model, lineage=lineage, **{LABEL_TRAINING_RUN: meta.name})
    body = {
        "minAvailable": most_pods(spec),
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {LABEL_COMPONENT: TRAINER, LABEL_TRAINING_RUN: meta.name}},
    }
    name = budget_name(meta.name)
    return child(POD_DISRUPTION_BUDGET, name, TRAINING_RUN, meta, label, lineage=lineage, spec=body)
