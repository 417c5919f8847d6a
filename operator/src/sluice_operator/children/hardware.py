"""From a `hardware` block to GKE's node selectors, tolerations, resources and TPU host counts.

Sources: GKE's accelerator labels and TPU machine types (cloud.google.com/kubernetes-engine/docs/concepts/tpus),
KubeRay's sample ray-job.tpu-v6e-16-multihost.yaml, ray.util.tpu.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from sluice_contracts.hardware import Accelerator, ReplicaHardware

GPU_RESOURCE = "nvidia.com/gpu"
TPU_RESOURCE = "google.com/tpu"
SPOT_LABEL = "cloud.google.com/gke-spot"
GPU_LABEL = "cloud.google.com/gke-accelerator"
TPU_LABEL = "cloud.google.com/gke-tpu-accelerator"
TPU_TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"

CHIPS_PER_HOST = 4
"""Chips of one host of a slice that spans several hosts, for every generation."""
SINGLE_HOST_CHIPS = {
    Accelerator.TPU_V4_PODSLICE: 4,
    Accelerator.TPU_V5_LITE_PODSLICE: 8,
    Accelerator.TPU_V5P_SLICE: 4,
    Accelerator.TPU_V6E_SLICE: 8,
    Accelerator.TPU7X: 4,
}
"""The largest slice that one host holds: ct5lp-hightpu-8t and ct6e-standard-8t have 8 chips, the others 4."""
DIMENSIONS = {
    Accelerator.TPU_V4_PODSLICE: 3,
    Accelerator.TPU_V5_LITE_PODSLICE: 2,
    Accelerator.TPU_V5P_SLICE: 3,
    Accelerator.TPU_V6E_SLICE: 2,
    Accelerator.TPU7X: 3,
}


class HardwareError(ValueError):
    """The block asks for something that does not exist; the message names the field and the right values."""


@dataclass(frozen=True)
class Machine:
    """What one pod of a group needs, and how many pods make one replica."""

    resources: dict[str, dict[str, str]]
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, str]] = field(default_factory=list)
    hosts: int = 1
    """Pods a replica: more than one for a TPU slice that spans hosts (KubeRay's numOfHosts)."""
    cpus: int = 1
    """Whole CPUs, for Ray's own accounting."""
    gpus: int = 0
    tpu_chips: int = 0

    def pod_fields(self) -> dict[str, Any]:
        """The scheduling fields of a pod spec."""
        fields: dict[str, Any] = {}
        if self.node_selector:
            fields["nodeSelector"] = self.node_selector
        if self.tolerations:
            fields["tolerations"] = self.tolerations
        return fields


def machine(hardware: ReplicaHardware) -> Machine:
    """The machine of one worker or serving replica. Raises HardwareError."""
    resources = {"cpu": hardware.resources.cpu, "memory": hardware.resources.memory}
    selector: dict[str, str] = {}
    tolerations: list[dict[str, str]] = []
    hosts, gpus, chips = 1, 0, 0
    if hardware.accelerator.startswith("nvidia"):
        gpus = hardware.count or 1
        resources[GPU_RESOURCE] = str(gpus)
        selector[GPU_LABEL] = hardware.accelerator.value
        tolerations.append({"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"})
    elif hardware.accelerator.startswith("tpu"):
        hosts, chips = slice_shape(hardware.accelerator, hardware.topology)
        resources[TPU_RESOURCE] = str(chips)
        selector[TPU_LABEL] = hardware.accelerator.value
        selector[TPU_TOPOLOGY_LABEL] = str(hardware.topology)
        tolerations.append({"key": TPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"})
    if hardware.spot:
        selector[SPOT_LABEL] = "true"
        tolerations.append({"key": SPOT_LABEL, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    # CPU is requested, never limited: a limit throttles a start-up and a training step even on an idle node.
    limits = {name: amount for name, amount in resources.items() if name != "cpu"}
    return Machine(
        resources={"requests": resources, "limits": limits},
        node_selector=selector,
        tolerations=tolerations,
        hosts=hosts,
        cpus=max(1, math.ceil(quantity(hardware.resources.cpu))),
        gpus=gpus,
        tpu_chips=chips,
    )


def slice_shape(accelerator: Accelerator, topology: str | None) -> tuple[int, int]:
    """Hosts of a TPU slice, and chips of each host. Raises HardwareError."""
    if topology is None:
        raise HardwareError(f"hardware.topology is missing: {accelerator.value} needs one, such as 2x4")
    sides = [int(side) for side in topology.split("x")]
    wanted = DIMENSIONS[accelerator]
    if len(sides) != wanted or 0 in sides:
        example = "2x4" if wanted == 2 else "2x2x1"
        raise HardwareError(
            f"hardware.topology {topology} does not fit {accelerator.value}: it takes {wanted} numbers, as {example}"
        )
    chips = math.prod(sides)
    if chips <= SINGLE_HOST_CHIPS[accelerator]:
        return 1, chips
    if chips % CHIPS_PER_HOST:
        raise HardwareError(
            f"hardware.topology {topology} has {chips} chips: several hosts need a multiple of {CHIPS_PER_HOST}"
        )
    return chips // CHIPS_PER_HOST, CHIPS_PER_HOST


_FACTORS = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if match is None or match[2] not in _FACTORS:
        raise ValueError(f"{text!r} is no quantity; write it like 2, 500m or 4Gi")
    return float(match[1]) * _FACTORS[match[2]]
