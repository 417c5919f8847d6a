"""A Llama in plain PyTorch: the same parameters and names as Hugging Face's LlamaForCausalLM, no more code than that.

Written out because a small model on a CPU spends most of its time between the matrix products: this one computes
logits only where they are wanted, and shares one mask and one rotary table among all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float = 10_000.0
    epsilon: float = 1e-5
    context: int = 1024
    tied: bool = True
    """Whether input and output share one embedding."""

    def parameters(self) -> int:
        """Number of parameters."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden


def tiny(vocabulary: int) -> Shape:
    """The shape that is trained from scratch: rows divide by 256, as k-quants want, and heads have 64 channels, as
    vLLM's CPU attention wants."""
    return Shape(vocabulary, hidden=256, feed_forward=256, layers=3, heads=4, kv_heads=4, head_dim=64)


def packed_mask(documents: Tensor) -> Tensor:
    """[batch, 1, length, length], True where a position may look: itself and what precedes it in the same document.
    `documents` [batch, length] numbers the documents of each row."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


@dataclass
class Cache:
    """Keys and values of one layer so far: [batch, kv heads, length, head dim]."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append, and return all so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned gain."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        batch, length, _ = x.shape
        cos, sin = rotary

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, -1, self.shape.head_dim)

        def rotate(z: Tensor) -> Tensor:
            first, second = z.chunk(2, -1)
            return (z * cos + torch.cat((second, first), -1) * sin).transpose(1, 2)

        v = heads(self.v_proj(x)).transpose(1, 2)
        # On a CPU, where a small model learns to copy by sharp attention, bfloat16 scores cost a sixth of the accuracy
        # on grounded questions (measured); in float32 they cost no time there. On a GPU only bfloat16 is fast.
        precise = x.device.type == "cpu" and self.q_proj.weight.dtype == torch.float32
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not precise):
            if precise:
                x, v = x.float(), v.float()
            q, k = rotate(heads(self.q_proj(x))).to(v.dtype), rotate(heads(self.k_proj(x))).to(v.dtype)
            if cache is not None:
                k, v = cache.extend(k, v)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.shape.kv_heads != self.shape.heads
            )
        result: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return result


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Layer(nn.Module):
    """One block: attention, then feed-forward, each on the normalised residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.epsilon)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.epsilon)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Everything but the output head; a module of its own because its name is part of the parameters' names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.epsilon)


class Llama(nn.Module):
    """The model. Parameters are float32 unless the caller converts them."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        if not shape.tied:
            self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        frequencies = shape.theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies)
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), -1), persistent=False)
        self.register_buffer("sin", torch.cat((-angles.sin(), angles.sin()), -1), persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """What PEFT asks a model it does not know for."""
        return {"model_type": "llama", "tie_word_embeddings": self.shape.tied}

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        select: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:
        """Logits of the next token.

        ids: [batch, length] token numbers. positions: [batch, length], 0-based; None counts from 0. mask: boolean
        [batch, 1, length, seen], True where a position may look; None is plain causal attention. select: flat indices
        into batch x length; logits are computed there alone. caches: one per layer; positions already in them are not
        computed again. Returns [batch, length, vocabulary], or [len(select), vocabulary].
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        rotary = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        x = self.model.embed_tokens(ids)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, rotary, mask, None if caches is None else caches[i])
        x = self.model.norm(x)
        if select is not None:
            x = x.reshape(-1, self.shape.hidden)[select]
        head = self.model.embed_tokens.weight if self.shape.tied else self.lm_head.weight
        return F.linear(x, head)

    def caches(self, batch: int, length: int) -> list[Cache]:
        """Empty caches for `batch` sequences of up to `length` tokens."""
        weight = self.model.embed_tokens.weight
        size = (batch, self.shape.kv_heads, length, self.shape.head_dim)

        def empty() -> Tensor:
            return torch.zeros(size, dtype=weight.dtype, device=weight.device)

        return [Cache(empty(), empty()) for _ in range(self.shape.layers)]
