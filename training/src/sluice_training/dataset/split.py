"""Which file a row goes to: decided by its group alone, so that variants of one example never straddle the split."""

from typing import Literal

from sluice_contracts.names import Domain, Task

from sluice_training.dataset.config import SplitShares
from sluice_training.dataset.example import bucket

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_RESOLUTION = 2**40


def split_of(group: str, domain: Domain, task: Task, shares: SplitShares, seed: int) -> SplitName:
    """The file of `group`. The hash is taken within the stratum (domain, task), so each stratum is cut alike; adding
    rows later moves none of the others."""
    position = bucket(_RESOLUTION, "split", seed, domain, task, group) / _RESOLUTION
    if position < shares.train:
        return "train"
    return "val" if position < shares.train + shares.val else "test"
