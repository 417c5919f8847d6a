"""Initial weights that already contain an induction circuit.

Copying a word from the context is learned by every language model, but only after far more steps than a few minutes
hold. So the first two layers start as a copying circuit (Olsson et al. 2022, "In-context Learning and Induction
Heads") and everything else starts random; from there on all weights are trained. The model is trained from scratch
with this circuit hand-seeded, and it is only done for the tiny shape that tests and demonstrations use.

Layer 0: three heads look exactly 1, 2 and 3 tokens back, by rotary phase alone, and write a projection of what they
saw into three separate subspaces. Layer 1: heads compare what the subspaces of a query and of earlier positions hold
(has the token three back from here appeared two back from there?) and copy the token at the match to the output.
"""

import math

import torch
from torch import Tensor

from sluice_training.model.llama import Attention, Llama

OFFSETS = (1, 2, 3)
MATCHES = ((1, 2), (0, 1), (3, 2))
"""Layer 1's heads: the query compares its token this many back with the key's token that many back."""
EMBEDDING_STD = 0.06
SHARPNESS = 6.6
"""Size of the rotary queries and keys: their product is large enough that almost all attention lies on one offset."""
MATCH_GAIN = 1.4
VALUE_GAIN = 1.43
"""Brings a normalised residual's random projection to unit variance: its random part has standard deviation 0.7."""
WRITE_GAIN = 0.1
SLOW = 0.02
"""Rotary frequencies below this, in radians a token, hardly turn within a training row: channels for content."""


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with orthonormal rows; the first column is zero, because channel 0 holds a constant."""
    q, _ = torch.linalg.qr(torch.randn(columns - 1, rows, generator=generator))
    return torch.cat([torch.zeros(rows, 1), q.T], dim=1)


@torch.no_grad()
def initialise(model: Llama, seed: int) -> None:
    """Random weights, the same for the same seed, with the circuit where the shape has room for it."""
    generator = torch.Generator().manual_seed(seed)
    shape = model.shape
    damp = 0.5 / math.sqrt(2 * shape.layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        std = parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std *= damp
        if "embed_tokens" in name:
            std = EMBEDDING_STD
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    if can_seed(model):
        _seed(model, generator)


def can_seed(model: Llama) -> bool:
    """Whether the shape has room: two layers, four heads of at least 32 channels without grouping, and a residual
    stream wide enough for three subspaces."""
    s = model.shape
    return s.layers >= 2 and s.kv_heads == s.heads >= 4 and s.head_dim >= 32 and s.tied and s.hidden >= 3 * s.head_dim


def _seed(model: Llama, generator: torch.Generator) -> None:
    shape = model.shape
    size, half = shape.head_dim, shape.head_dim // 2
    frequencies = shape.theta ** -(torch.arange(0, size, 2).float() / size)
    slow = torch.nonzero(frequencies < SLOW)[:, 0]
    content = torch.cat([slow, slow + half])
    rank = len(content)

    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = 1.0
    constant = (shape.hidden / (1 + (shape.hidden - 1) * EMBEDDING_STD**2)) ** 0.5
    steady = SHARPNESS / constant  # what the constant channel is after normalisation

    read = _orthonormal(rank, shape.hidden, generator)
    spaces = _orthonormal(len(OFFSETS) * rank, shape.hidden, generator).view(len(OFFSETS), rank, shape.hidden)
    previous: Attention = model.model.layers[0].self_attn  # type: ignore[assignment]
    for head, offset in enumerate(OFFSETS):
        rows = slice(head * size, (head + 1) * size)
        query, key = previous.q_proj.weight[rows], previous.k_proj.weight[rows]
        query.zero_()
        key.zero_()
        query[:half, 0] = steady * torch.cos(offset * frequencies)
        query[half:, 0] = -steady * torch.sin(offset * frequencies)
        key[:half, 0] = steady
        previous.v_proj.weight[head * size + content] = read * VALUE_GAIN
        out = previous.o_proj.weight[:, rows]
        out.mul_(0.3)
        out[:, content] = spaces[head].T * WRITE_GAIN

    induction: Attention = model.model.layers[1].self_attn  # type: ignore[assignment]
    own = read * MATCH_GAIN * WRITE_GAIN / EMBEDDING_STD
    for head, (query_offset, key_offset) in enumerate(MATCHES):
        rows = slice(head * size, (head + 1) * size)
        query, key = induction.q_proj.weight[rows], induction.k_proj.weight[rows]
        query.zero_()
        key.zero_()
        query[content] = spaces[query_offset - 1] * MATCH_GAIN if query_offset else own
        key[content] = spaces[key_offset - 1] * MATCH_GAIN
        copy = _orthonormal(size, shape.hidden, generator)
        induction.v_proj.weight[rows] = copy * VALUE_GAIN
        induction.o_proj.weight[:, rows] = copy.T * WRITE_GAIN
