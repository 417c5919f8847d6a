"""Device files to measure with: a random Llama in GGUF Q8_0 that llama.cpp loads, and ways it changes between versions.

The weights are random, so nothing compresses by luck: real quantised weights are as good as random to a compressor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

HIDDEN, FEED, HEADS = 512, 1408, 8
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Model:
    """What a device file is written from."""

    weights: Weights
    template: str = TEMPLATE
    card: str = ""
    """Free text in the header."""
    layers: int = 3


def random_model(seed: int, layers: int = 3) -> Model:
    """Weights drawn anew."""
    random = np.random.default_rng(seed)
    names: dict[str, tuple[int, int]] = {
        "token_embd.weight": (len(tokens()), HIDDEN),
        "output.weight": (len(tokens()), HIDDEN),
    }
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            names[f"blk.{layer}.{name}.weight"] = (HIDDEN, HIDDEN)
        names[f"blk.{layer}.ffn_gate.weight"] = (FEED, HIDDEN)
        names[f"blk.{layer}.ffn_up.weight"] = (FEED, HIDDEN)
        names[f"blk.{layer}.ffn_down.weight"] = (HIDDEN, FEED)
    weights = {name: random.standard_normal(shape, dtype=np.float32) * 0.05 for name, shape in names.items()}
    return Model(weights, layers=layers)


def other_tensor(model: Model, name: str, seed: int) -> Model:
    """One tensor drawn anew: what a fine-tune of one matrix does."""
    old = model.weights[name]
    new = np.random.default_rng(seed).standard_normal(old.shape, dtype=np.float32) * 0.05
    return Model({**model.weights, name: new}, model.template, model.card, model.layers)


def nudged(model: Model, share: float, seed: int) -> Model:
    """Every weight moved by noise of `share` of its tensor's spread: what a light fine-tune of everything does."""
    random = np.random.default_rng(seed)
    moved = {
        name: w + share * w.std() * random.standard_normal(w.shape, dtype=np.float32)
        for name, w in model.weights.items()
    }
    return Model(moved, model.template, model.card, model.layers)


def tokens() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, in the order of the bytes, and an end."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)] + ["<|end|>"]


def write(model: Model, path: Path) -> Path:
    """The model as a GGUF file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("benchmark")
    writer.add_description(model.card)
    settings: list[tuple[Callable[[int], None], int]] = [
        (writer.add_context_length, 256),
        (writer.add_embedding_length, HIDDEN),
        (writer.add_block_count, model.layers),
        (writer.add_feed_forward_length, FEED),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, HEADS),
        (writer.add_rope_dimension_count, HIDDEN // HEADS),
        (writer.add_vocab_size, len(tokens())),
        (writer.add_eos_token_id, 256),
        (writer.add_bos_token_id, 256),
    ]
    for add, value in settings:
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens())
    writer.add_token_types([1] * 256 + [3])
    writer.add_token_merges(["h e"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(model.template)
    norms = ["output_norm.weight"]
    norms += [f"blk.{i}.{name}.weight" for i in range(model.layers) for name in ("attn_norm", "ffn_norm")]
    for name in norms:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))
    for name, values in model.weights.items():
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
