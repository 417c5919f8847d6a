"""What to do about an offer: pure decisions about cohort, memory and what is there already."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from sluice_contracts.device import InstalledVersion
from sluice_contracts.names import Quantization
from sluice_contracts.release import Release, Variant

GIB = 1024**3


@dataclass(frozen=True)
class Circumstances:
    """What the decision hangs on, besides the offer."""

    cohort: int
    prefer: Sequence[Quantization]
    memory: int
    """Bytes a model may use."""
    installed: InstalledVersion | None
    rejected: Collection[str]
    """Digests of files that failed their health check on this device."""


@dataclass(frozen=True)
class Decision:
    """update: fetch `variant`. unchanged: nothing to do. waiting: not now; `message` says for what."""

    action: Literal["update", "unchanged", "waiting"]
    message: str
    variant: Variant | None = None


def decide(release: Release | None, case: Circumstances) -> Decision:
    """What to do about `release`."""
    if release is None:
        return Decision("waiting", "nothing is published for this model in this channel yet")
    installed = case.installed
    if installed is not None and installed.version == release.version and installed.lineage == release.lineage:
        wanted = choose(release.variants, case.prefer, case.memory)
        if wanted is None or wanted.sha256 == installed.sha256 or wanted.sha256 in case.rejected:
            return Decision("unchanged", f"version {release.version} is the newest")
    if case.cohort >= release.cohort.percent:
        return Decision(
            "waiting",
            f"version {release.version} is open for {release.cohort.percent} % of devices; "
            f"this one is number {case.cohort} of 0-99",
        )
    variant = choose(release.variants, case.prefer, case.memory)
    if variant is None:
        smallest = min(v.ram_bytes for v in release.variants)
        return Decision(
            "waiting",
            f"version {release.version} needs {smallest / GIB:.2f} GiB of memory, this device gives a model "
            f"{case.memory / GIB:.2f} GiB (memoryShare in config.json)",
        )
    if variant.sha256 in case.rejected:
        return Decision(
            "waiting",
            f"version {release.version} failed its health check on this device; waiting for another one "
            "(`sluice-edge sync --retry` tries it again)",
        )
    return Decision("update", f"version {release.version} ({variant.quantization}) is new", variant)


def choose(variants: Sequence[Variant], prefer: Sequence[Quantization], memory: int) -> Variant | None:
    """The variant first in `prefer` that fits into `memory` bytes; failing that, the smallest one that fits."""
    fitting = [v for v in variants if v.ram_bytes <= memory]
    for quantization in prefer:
        for variant in fitting:
            if variant.quantization == quantization:
                return variant
    return min(fitting, key=lambda v: v.size, default=None)
