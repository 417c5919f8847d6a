"""The `hardware` block of a TrainingRun and an InferencePool."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract
from sluice_contracts.kubernetes import Quantity, Rule, cel


class Accelerator(StrEnum):
    """What a worker computes on: `cpu`, or the value of GKE's accelerator label.

    Sources: GKE's node labels `cloud.google.com/gke-accelerator` and `cloud.google.com/gke-tpu-accelerator`.
    """

    CPU = "cpu"
    NVIDIA_TESLA_T4 = "nvidia-tesla-t4"
    NVIDIA_L4 = "nvidia-l4"
    NVIDIA_TESLA_A100 = "nvidia-tesla-a100"
    NVIDIA_A100_80GB = "nvidia-a100-80gb"
    NVIDIA_H100_80GB = "nvidia-h100-80gb"
    NVIDIA_H100_MEGA_80GB = "nvidia-h100-mega-80gb"
    NVIDIA_H200_141GB = "nvidia-h200-141gb"
    NVIDIA_B200 = "nvidia-b200"
    NVIDIA_GB200 = "nvidia-gb200"
    NVIDIA_GB300 = "nvidia-gb300"
    NVIDIA_RTX_PRO_6000 = "nvidia-rtx-pro-6000"
    TPU_V4_PODSLICE = "tpu-v4-podslice"
    TPU_V5_LITE_PODSLICE = "tpu-v5-lite-podslice"
    TPU_V5P_SLICE = "tpu-v5p-slice"
    TPU_V6E_SLICE = "tpu-v6e-slice"
    TPU7X = "tpu7x"


HARDWARE_RULES: list[Rule] = [
    (
        "!has(self.topology) || self.accelerator.startsWith('tpu')",
        "hardware.topology is for TPUs only; leave it out, or choose an accelerator that starts with tpu",
    ),
    (
        "!self.accelerator.startsWith('tpu') || has(self.topology)",
        "a TPU needs hardware.topology, such as 2x4",
    ),
    (
        "!self.accelerator.startsWith('tpu') || !has(self.count)",
        "hardware.count is not for TPUs: the topology says how many chips there are; leave it out",
    ),
    (
        "self.accelerator != 'cpu' || !has(self.count)",
        "hardware.count is the number of GPUs; leave it out with accelerator cpu, and set hardware.resources.cpu",
    ),
]
"""CEL rules (and their messages) of both hardware blocks."""
WORKER_RULE: Rule = ("self.min <= self.max", "workers.min must not be above workers.max")


class WorkerRange(Contract):
    """How many workers a run may have; equal numbers mean a fixed size."""

    model_config = cel(WORKER_RULE)

    min: Annotated[int, Field(ge=1, le=1024)] = 1
    max: Annotated[int, Field(ge=1, le=1024)] = 1


Topology = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}x[0-9]{1,2}(x[0-9]{1,2})?$", max_length=8)]


class Resources(Contract):
    """CPU and memory of one worker or replica."""

    cpu: Quantity = "1"
    memory: Quantity = "2Gi"


class ReplicaHardware(Contract):
    """The machine one serving replica runs on."""

    model_config = cel(*HARDWARE_RULES)

    accelerator: Accelerator = Accelerator.CPU
    count: Annotated[int, Field(ge=1, le=16)] | None = None
    """GPUs of one worker. Not for TPUs (their topology tells) nor for `cpu`."""
    topology: Topology | None = None
    """TPU slice topology, such as `2x4`."""
    spot: bool = False
    resources: Resources = Resources()


class TrainingHardware(ReplicaHardware):
    """The machines a run trains on."""

    workers: WorkerRange = WorkerRange()
