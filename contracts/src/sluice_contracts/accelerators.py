"""What GKE offers to compute on, and in which shapes: one table for the rules of the CRDs and for rendering pods.

Sources:
- Names: the values of GKE's node labels `cloud.google.com/gke-accelerator` and `cloud.google.com/gke-tpu-accelerator`
  (GKE autoscaler, cloudprovider/gke/labels).
- GPUs of a machine: the same, cloudprovider/gke/machinetypes (known GPUs), and
  cloud.google.com/compute/docs/accelerator-optimized-machines. The autoscaler rounds any other number up to the next
  machine, and the GPUs above it would be paid for and idle.
- Chips of a TPU host: the same, machinetypes (TPUs): ct5lp-hightpu-8t and ct6e-standard-8t hold a slice of 8 chips on
  one host; a slice that spans hosts has 4 chips on each, in every generation.
- Topologies: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, and of these only the ones that Ray knows
  (ray._private.accelerators.tpu, VALID_TPU_TOPOLOGY), because Ray reserves the slice.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Accelerator(StrEnum):
    """What a worker computes on: `cpu`, or the value of GKE's accelerator label."""

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


@dataclass(frozen=True)
class Gpu:
    """One type of GPU."""

    counts: tuple[int, ...]
    """GPUs of one machine, of each machine type that has them."""
    arm: bool = False
    """The machine's CPU is an Arm one (Grace): its nodes are tainted, and the images must be built for it."""


GPUS = {
    Accelerator.NVIDIA_TESLA_T4: Gpu((1, 2, 4)),
    Accelerator.NVIDIA_L4: Gpu((1, 2, 4, 8)),
    Accelerator.NVIDIA_TESLA_A100: Gpu((1, 2, 4, 8, 16)),
    Accelerator.NVIDIA_A100_80GB: Gpu((1, 2, 4, 8)),
    Accelerator.NVIDIA_H100_80GB: Gpu((1, 2, 4, 8)),
    Accelerator.NVIDIA_H100_MEGA_80GB: Gpu((8,)),
    Accelerator.NVIDIA_H200_141GB: Gpu((8,)),
    Accelerator.NVIDIA_B200: Gpu((8,)),
    Accelerator.NVIDIA_GB200: Gpu((4,), arm=True),
    Accelerator.NVIDIA_GB300: Gpu((4,), arm=True),
    Accelerator.NVIDIA_RTX_PRO_6000: Gpu((1, 2, 4, 8)),
}

CHIPS_OF_A_SHARED_SLICE = 4
"""Chips on each host of a slice that spans several."""


@dataclass(frozen=True)
class Tpu:
    """One generation of TPU."""

    topologies: tuple[str, ...]
    told: str
    """The topologies as a person is told them."""
    most_chips_of_one_host: int = 4

    def shape(self, topology: str) -> tuple[int, int]:
        """Hosts of a slice, and chips of each host. `topology` must be one of `topologies`."""
        chips = math.prod(int(side) for side in topology.split("x"))
        if chips <= self.most_chips_of_one_host:
            return 1, chips
        return chips // CHIPS_OF_A_SHARED_SLICE, CHIPS_OF_A_SHARED_SLICE


def _cubes(largest: tuple[int, int, int]) -> Iterator[str]:
    """Slices of whole 4x4x4 cubes: each side a multiple of 4, none longer than the next."""
    a_most, b_most, c_most = largest
    for a in range(4, a_most + 1, 4):
        for b in range(a, b_most + 1, 4):
            for c in range(b, c_most + 1, 4):
                yield f"{a}x{b}x{c}"


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_PARTS_OF_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


def _three_sided(largest: tuple[int, int, int]) -> Tpu:
    most = "x".join(str(side) for side in largest)
    parts = ", ".join(_PARTS_OF_A_CUBE)
    told = f"{parts}, or AxBxC in multiples of 4 with A <= B <= C, from 4x4x4 to {most}"
    return Tpu((*_PARTS_OF_A_CUBE, *_cubes(largest)), told)


def _listed(topologies: tuple[str, ...], most_chips_of_one_host: int) -> Tpu:
    return Tpu(topologies, f"{', '.join(topologies[:-1])} or {topologies[-1]}", most_chips_of_one_host)


TPUS = {
    Accelerator.TPU_V4_PODSLICE: _three_sided((12, 12, 16)),
    Accelerator.TPU_V5_LITE_PODSLICE: _listed(_FLAT, 8),
    Accelerator.TPU_V5P_SLICE: _three_sided((16, 16, 24)),
    Accelerator.TPU_V6E_SLICE: _listed(_FLAT, 8),
    Accelerator.TPU7X: _listed(
        (*_PARTS_OF_A_CUBE, "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"), CHIPS_OF_A_SHARED_SLICE
    ),
}

NO_FLEX_START = (Accelerator.CPU, Accelerator.TPU_V4_PODSLICE)
"""What flex-start does not offer: cloud.google.com/kubernetes-engine/docs/concepts/dws ("TPU v3 and v4 are not
supported"); Sluice offers it for accelerators only."""


def hosts_by_topology() -> dict[str, int]:
    """Hosts of every slice that spans several. No topology has two answers: flat slices share one rule, and so do
    three-sided ones."""
    found: dict[str, int] = {}
    for tpu in TPUS.values():
        for topology in tpu.topologies:
            hosts, _ = tpu.shape(topology)
            assert found.setdefault(topology, hosts) == hosts, f"{topology} means two things"
    return {topology: hosts for topology, hosts in found.items() if hosts > 1}
