"""What this process computes on, and in which precision: found by a look at the machine, once."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from sluice_contracts.hardware import Accelerator

CPU_INFO = Path("/proc/cpuinfo")
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", " bf16")
"""Flags of x86 and Arm CPUs whose matrix products are faster in bfloat16; without them it is several times slower."""


@dataclass(frozen=True)
class Compute:
    """A device and the type of its matrix products."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Context in which matrix products run in `dtype`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)


def cpu_has_bf16(cpuinfo: str) -> bool:
    """Whether /proc/cpuinfo's text names a CPU with native bfloat16 products."""
    flags = next((line for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return any(flag in flags for flag in NATIVE_BF16)


def find_compute(accelerator: Accelerator) -> Compute:
    """What to train on. A GPU that was asked for must be there: RuntimeError if it is not."""
    if accelerator.startswith("nvidia"):
        if not torch.cuda.is_available():
            raise RuntimeError(f"hardware.accelerator is {accelerator}, but this worker sees no GPU")
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return Compute(torch.device("cuda", torch.cuda.current_device()), dtype)
    text = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.exists() else ""
    return Compute(torch.device("cpu"), torch.bfloat16 if cpu_has_bf16(text) else torch.float32)


def use_cpus(wanted: float) -> int:
    """Let this process compute with `wanted` CPUs, rounded up, or with as many as there are. Returns the number.

    Needed because Ray gives a worker one thread, and a process that is not told takes all cores of the node.
    """
    threads = max(1, min(math.ceil(wanted), len(os.sched_getaffinity(0))))
    torch.set_num_threads(threads)
    return threads
