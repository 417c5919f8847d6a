"""Packing loses no token and lets no chat see another; batches are a function of (seed, step)."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sluice_training.learn.packing import Document, batch_of, pack, rows_of_step
from sluice_training.model import files
from sluice_training.model.chat import IGNORE
from sluice_training.model.llama import packed_mask

PAD = 0
DOCUMENTS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def documents(lengths: list[int]) -> list[Document]:
    """Documents of these lengths, every token different."""
    start, made = 1, []
    for n in lengths:
        ids = list(range(start, start + n))
        made.append((ids, [*ids[1:], IGNORE]))
        start += n
    return made


@given(lengths=DOCUMENTS)
def test_every_document_lies_whole_in_one_row(lengths: list[int]) -> None:
    made = documents(lengths)
    packed = pack(made, 64, PAD)
    found = []
    for row in range(packed.rows):
        for number in range(packed.documents[row].max() + 1):
            at = packed.documents[row] == number
            found.append((packed.ids[row, at].tolist(), packed.targets[row, at].tolist()))
            assert packed.positions[row, at].tolist() == list(range(at.sum()))
    assert sorted(found) == sorted(made)
    assert (packed.ids[packed.documents < 0] == PAD).all()
    assert (packed.targets[packed.documents < 0] == IGNORE).all()


def test_rows_are_well_filled() -> None:
    lengths = np.random.default_rng(1).integers(20, 80, 2000).tolist()
    assert pack(documents(lengths), 128, PAD).fill > 0.9


def test_a_document_longer_than_a_row_keeps_its_beginning() -> None:
    packed = pack(documents([100]), 64, PAD)
    assert packed.truncated == 1
    assert packed.ids[0].tolist() == list(range(1, 65))


def test_packed_chats_have_the_logits_they_have_alone(untrained: Path) -> None:
    model, _ = files.load(untrained)
    model.eval()
    generator = np.random.default_rng(0)
    made: list[Document] = []
    for n in (20, 31, 9):
        ids = generator.integers(6, 500, n).tolist()
        made.append((ids, [*ids[1:], IGNORE]))
    packed = pack(made, 64, PAD)
    batch = batch_of(packed, np.arange(packed.rows))
    with torch.inference_mode():
        together = model(batch.ids, batch.positions, packed_mask(batch.documents))
        careless = model(batch.ids, None, None)
        for ids, _ in made:
            alone = model(torch.tensor([ids]))[0]
            row, at = next(
                (r, packed.documents[r] == d)
                for r in range(packed.rows)
                for d in range(packed.documents[r].max() + 1)
                if packed.ids[r, packed.documents[r] == d].tolist() == ids
            )
            torch.testing.assert_close(together[row, at], alone, atol=1e-4, rtol=1e-4)
    assert (careless - together).abs().max() > 0.1, "without mask and positions the chats would have mixed"


@given(rows=st.integers(1, 50), batch=st.integers(1, 20), seed=st.integers(0, 1000))
def test_each_pass_takes_every_row_once(rows: int, batch: int, seed: int) -> None:
    steps = -(-3 * rows // batch)
    taken = np.concatenate([rows_of_step(rows, batch, seed, step) for step in range(steps)])
    for start in range(0, 3 * rows, rows):
        assert sorted(taken[start : start + rows]) == list(range(rows))


def test_another_seed_or_pass_takes_another_order() -> None:
    first = rows_of_step(1000, 100, seed=1, step=0)
    assert (first == rows_of_step(1000, 100, seed=1, step=0)).all()
    assert (first != rows_of_step(1000, 100, seed=2, step=0)).any()
    assert (first != rows_of_step(1000, 100, seed=1, step=10)).any()
