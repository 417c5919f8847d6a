"""From a `hardware` block to GKE's node selectors, tolerations, resources and TPU host counts.

The shapes are in `sluice_contracts.accelerators`; the CRD refuses what is not there. What is checked here again is for
objects that came past those rules: HardwareError becomes a condition.

Sources: GKE's labels and taints (GKE autoscaler, cloudprovider/gke/labels; cloud.google.com/kubernetes-engine/docs:
concepts/spot-vms, concepts/dws, concepts/about-custom-compute-classes, how-to/consuming-reservations), KubeRay's sample
ray-job.tpu-v6e-16-multihost.yaml.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from sluice_contracts.accelerators import GPUS, TPUS, Accelerator
from sluice_contracts.hardware import BUILT_IN_CLASSES, ReplicaHardware, WorkerRange, one_of

GPU_RESOURCE = "nvidia.com/gpu"
TPU_RESOURCE = "google.com/tpu"
GPU_LABEL = "cloud.google.com/gke-accelerator"
TPU_LABEL = "cloud.google.com/gke-tpu-accelerator"
TPU_TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"
SPOT_LABEL = "cloud.google.com/gke-spot"
FLEX_START_LABEL = "cloud.google.com/gke-flex-start"
COMPUTE_CLASS_LABEL = "cloud.google.com/compute-class"
RESERVATION_NAME_LABEL = "cloud.google.com/reservation-name"
RESERVATION_PROJECT_LABEL = "cloud.google.com/reservation-project"
RESERVATION_BLOCKS_LABEL = "cloud.google.com/reservation-blocks"
RESERVATION_AFFINITY_LABEL = "cloud.google.com/reservation-affinity"
ARCHITECTURE_LABEL = "kubernetes.io/arch"

Toleration = dict[str, str]


class HardwareError(ValueError):
    """The block asks for something that does not exist; the message names the field and the right values."""


@dataclass(frozen=True)
class Machine:
    """What one pod of a group needs, and how many pods make one replica."""

    resources: dict[str, dict[str, str]]
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)
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

    def groups(self, workers: WorkerRange) -> tuple[int, int]:
        """The range of workers as a range of KubeRay's replicas, each of `hosts` pods. Raises HardwareError."""
        if workers.min % self.hosts or workers.max % self.hosts:
            raise HardwareError(
                f"hardware.workers counts hosts: min and max must be multiples of {self.hosts}, the hosts of one slice"
            )
        return workers.min // self.hosts, workers.max // self.hosts


def machine(hardware: ReplicaHardware) -> Machine:
    """The machine of one worker or serving replica. Raises HardwareError."""
    _check_capacity(hardware)
    resources = {"cpu": hardware.resources.cpu, "memory": hardware.resources.memory}
    selector, tolerations = _capacity(hardware)
    hosts, gpus, chips = 1, 0, 0
    if hardware.accelerator in GPUS:
        gpus = gpu_count(hardware.accelerator, hardware.count)
        resources[GPU_RESOURCE] = str(gpus)
        tolerations.append(_exists(GPU_RESOURCE))
        if GPUS[hardware.accelerator].arm:
            tolerations.append(_equal(ARCHITECTURE_LABEL, "arm64"))
        if not _own_class(hardware):  # GKE rejects a pod that selects both, as the class says which GPU
            selector[GPU_LABEL] = hardware.accelerator.value
    elif hardware.accelerator in TPUS:
        hosts, chips = slice_shape(hardware.accelerator, hardware.topology)
        resources[TPU_RESOURCE] = str(chips)
        tolerations.append(_exists(TPU_RESOURCE))
        # Also with a class of one's own: GKE's TPU webhook for Ray reads the topology here.
        selector[TPU_LABEL] = hardware.accelerator.value
        selector[TPU_TOPOLOGY_LABEL] = str(hardware.topology)
    # CPU is requested, never limited: a limit throttles a start-up and a training step even on an idle node.
    limits = {name: amount for name, amount in resources.items() if name != "cpu"}
    return Machine(
        resources={"requests": resources, "limits": limits},
        node_selector=dict(sorted(selector.items())),
        tolerations=tolerations,
        hosts=hosts,
        cpus=max(1, math.ceil(quantity(hardware.resources.cpu))),
        gpus=gpus,
        tpu_chips=chips,
    )


def gpu_count(accelerator: Accelerator, count: int | None) -> int:
    """GPUs of one worker. Raises HardwareError."""
    found = 1 if count is None else count
    if found not in GPUS[accelerator].counts:
        counts = one_of(GPUS[accelerator].counts)
        raise HardwareError(
            f"hardware.count must be {counts} for {accelerator.value}: its machines have that many GPUs"
        )
    return found


def slice_shape(accelerator: Accelerator, topology: str | None) -> tuple[int, int]:
    """Hosts of a TPU slice, and chips of each host. Raises HardwareError."""
    tpu = TPUS[accelerator]
    if topology is None:
        raise HardwareError(f"hardware.topology is missing: {accelerator.value} takes {tpu.told}")
    if topology not in tpu.topologies:
        raise HardwareError(f"hardware.topology of {accelerator.value} must be {tpu.told}; it is {topology}")
    return tpu.shape(topology)


def _check_capacity(hardware: ReplicaHardware) -> None:
    ways = {
        "spot": hardware.spot,
        "flexStart": hardware.flex_start,
        "reservation": hardware.reservation is not None,
        "computeClass": _own_class(hardware),
    }
    chosen = [name for name, wanted in ways.items() if wanted]
    if len(chosen) > 1:
        raise HardwareError(f"hardware.{' and hardware.'.join(chosen)} exclude each other: leave all but one out")


def _own_class(hardware: ReplicaHardware) -> bool:
    """Whether a ComputeClass that a team defined decides on the hardware."""
    return hardware.compute_class is not None and hardware.compute_class not in BUILT_IN_CLASSES


def _capacity(hardware: ReplicaHardware) -> tuple[dict[str, str], list[Toleration]]:
    """Node selector and tolerations of where the machines come from."""
    selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    if hardware.compute_class is not None:
        selector[COMPUTE_CLASS_LABEL] = hardware.compute_class
        tolerations.append(_equal(COMPUTE_CLASS_LABEL, hardware.compute_class))
    if hardware.spot:
        selector[SPOT_LABEL] = "true"
    if hardware.spot or _own_class(hardware):  # such a class may choose spot nodes
        tolerations.append(_equal(SPOT_LABEL, "true"))
    if hardware.flex_start:
        selector[FLEX_START_LABEL] = "true"
        tolerations.append(_equal(FLEX_START_LABEL, "true"))  # an optional taint
    if hardware.reservation is not None:
        selector[RESERVATION_NAME_LABEL] = hardware.reservation.name
        selector[RESERVATION_AFFINITY_LABEL] = "specific"
        if hardware.reservation.project is not None:
            selector[RESERVATION_PROJECT_LABEL] = hardware.reservation.project
        if hardware.reservation.block is not None:
            selector[RESERVATION_BLOCKS_LABEL] = hardware.reservation.block
    return selector, tolerations


def _exists(key: str) -> Toleration:
    return {"key": key, "operator": "Exists", "effect": "NoSchedule"}


def _equal(key: str, value: str) -> Toleration:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}


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
