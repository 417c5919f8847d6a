"""Training state in the run's folder: written whole or not at all, found again by whoever goes on.

A checkpoint is a folder `checkpoints/step-<n>/` with state.safetensors and, written last, complete.json. Only what is
complete, belongs to this very training, and still has the bytes it was written with is resumed from.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from sluice_contracts.base import canonical_json, sha256
from sluice_storage import StorageError, open_store
from torch import Tensor

STATE, COMPLETE = "state.safetensors", "complete.json"


@dataclass(frozen=True)
class State:
    """Everything a step depends on: weights, the optimiser's state, how many steps are done. There is no random state:
    batches are a function of the step."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, run_uri: str, identity: str, keep: int) -> None:
        """`identity` is a digest of what determines the training; checkpoints of another one are passed over."""
        self._store = open_store(f"{run_uri}/checkpoints")
        self._identity = identity
        self._keep = keep

    def save(self, state: State) -> None:
        """Write a checkpoint, then remove those that are older than the newest `keep`. Raises StorageError."""
        tensors = {f"model.{k}": v for k, v in state.model.items()}
        tensors |= {f"optimizer.{k}": v for k, v in state.optimizer.items()}
        folder = f"step-{state.step:08d}"
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / STATE
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
            self._store.upload(path, f"{folder}/{STATE}")
            digest = sha256(path.read_bytes())
        mark = {"step": state.step, "identity": self._identity, "sha256": digest}
        self._store.write(f"{folder}/{COMPLETE}", canonical_json(mark))
        for step in self._steps()[self._keep :]:
            self._remove(f"step-{step:08d}")

    def newest(self) -> State | None:
        """The newest complete checkpoint of this training; None if there is none."""
        for step in self._steps():
            if (state := self._load(step)) is not None:
                return state
        return None

    def _steps(self) -> list[int]:
        """Steps of all complete checkpoints, newest first."""
        names = {key.split("/")[0] for key in self._store.list("step-") if key.endswith(f"/{COMPLETE}")}
        return sorted((int(n.removeprefix("step-")) for n in names), reverse=True)

    def _load(self, step: int) -> State | None:
        folder = f"step-{step:08d}"
        try:
            mark = json.loads(self._store.read(f"{folder}/{COMPLETE}"))
            if mark["identity"] != self._identity:
                return None
            data = self._store.read(f"{folder}/{STATE}")
            if sha256(data) != mark["sha256"]:
                return None
            tensors = load(data)
        except (StorageError, SafetensorError, ValueError, KeyError):
            return None  # half deleted or damaged: an older one, or the beginning, is always right as well
        return State(
            step=step,
            model={k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")},
            optimizer={k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")},
        )

    def _remove(self, folder: str) -> None:
        self._store.delete(f"{folder}/{COMPLETE}")
        self._store.delete(f"{folder}/{STATE}")
