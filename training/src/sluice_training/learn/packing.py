"""Several chats in one row of fixed length, without any of them seeing another, and the batch of each step.

Which rows make up a step is a pure function of (seed, step): a resumed run sees exactly the batches it would have
seen, without a data loader's state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sluice_training.model.chat import IGNORE

OPEN_ROWS = 24
"""Rows kept open for best-fit: more fill better and take longer to search."""
MIN_SPACE = 10
"""A row with less space left is closed."""
Document = tuple[list[int], list[int]]
"""Tokens and targets, equally long."""


@dataclass(frozen=True)
class Packed:
    """Rows of `length` tokens: int32 arrays [rows, length]. `documents` is -1 where there is padding."""

    ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    documents: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    truncated: int = 0
    """Documents that were longer than a row and lost their end."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @property
    def fill(self) -> float:
        """Share of tokens that are not padding."""
        return float((self.documents >= 0).mean())


@dataclass(frozen=True)
class Batch:
    """Rows of one step: [rows, length] each."""

    ids: Tensor
    targets: Tensor
    documents: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(*(t.to(device) for t in (self.ids, self.targets, self.documents, self.positions)))


def pack(documents: Sequence[Document], length: int, pad: int) -> Packed:
    """Best-fit packing. A document longer than `length` keeps its beginning. Raises ValueError without documents."""
    if not documents:
        raise ValueError("nothing to pack")
    closed: list[list[Document]] = []
    rows: list[tuple[int, list[Document]]] = []
    truncated = 0
    for i in np.random.default_rng(0).permutation(len(documents)):  # neighbours are alike and would fit badly
        ids, targets = documents[i]
        if len(ids) > length:
            truncated += 1
            ids, targets = ids[:length], targets[:length]
        size = len(ids)
        fitting = [(space, r) for r, (space, _) in enumerate(rows) if space >= size]
        if fitting:
            space, best = min(fitting)
            rows[best][1].append((ids, targets))
            rows[best] = (space - size, rows[best][1])
        else:
            best = len(rows)
            rows.append((length - size, [(ids, targets)]))
        if rows[best][0] < MIN_SPACE:
            closed.append(rows.pop(best)[1])
        elif len(rows) > OPEN_ROWS:
            closed.append(rows.pop(rows.index(min(rows, key=lambda row: row[0])))[1])
    closed += [content for _, content in rows]
    shape = (len(closed), length)
    packed = Packed(
        ids=np.full(shape, pad, np.int32),
        targets=np.full(shape, IGNORE, np.int32),
        documents=np.full(shape, -1, np.int32),
        positions=np.zeros(shape, np.int32),
        truncated=truncated,
    )
    for r, content in enumerate(closed):
        start = 0
        for number, (ids, targets) in enumerate(content):
            span = slice(start, start + len(ids))
            packed.ids[r, span] = ids
            packed.targets[r, span] = targets
            packed.documents[r, span] = number
            packed.positions[r, span] = np.arange(len(ids))
            start += len(ids)
    return packed


def rows_of_step(rows: int, batch: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Indices of the `batch` rows of `step` (0-based). Each pass over the data takes every row once, in an order drawn
    from (seed, pass)."""
    wanted = np.arange(step * batch, (step + 1) * batch)
    passes = wanted // rows
    out = np.empty(batch, np.int64)
    for number in np.unique(passes):
        order = np.random.default_rng((seed, int(number))).permutation(rows)
        chosen = passes == number
        out[chosen] = order[wanted[chosen] % rows]
    return out


def batch_of(packed: Packed, rows: npt.NDArray[np.int64]) -> Batch:
    """The rows as tensors."""

    def take(array: npt.NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array[rows].astype(np.int64))

    return Batch(take(packed.ids), take(packed.targets), take(packed.documents), take(packed.positions))
