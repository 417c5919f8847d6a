"""A model folder as one GGUF file.

`python -m sluice_training.export.gguf_file FOLDER QUANTIZATION OUT` does the work in a process of its own, because
ggml aborts on what it does not like; `write` runs that and turns its death into an error. Only that process loads the
gguf package, which brings a second of other packages along.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sluice_contracts.names import Quantization

DEADLINE = 3600.0
"""Seconds one file may take."""
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3


class ExportError(Exception):
    """A file for devices could not be made or run; the message says which and why."""


def write(folder: Path, quantization: Quantization, out: Path) -> None:
    """Quantise the model in `folder` into `out`, in a child process. Raises ExportError."""
    command = [sys.executable, "-m", "sluice_training.export.gguf_file", str(folder), quantization.value, str(out)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    except subprocess.TimeoutExpired:
        raise ExportError(f"quantising to {quantization} took longer than {DEADLINE:.0f} s") from None
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"quantising to {quantization} failed (exit {result.returncode}): {last}")


def file_name(name: str) -> str:
    """A tensor's name in GGUF. Raises ValueError for one that is unknown."""
    if name in NAMES:
        return NAMES[name]
    parts = name.split(".")
    inner = ".".join(parts[3:-1])
    if parts[:2] != ["model", "layers"] or inner not in LAYER_NAMES:
        raise ValueError(f"no name in GGUF is known for {name}")
    return f"blk.{parts[2]}.{LAYER_NAMES[inner]}.weight"


def interleaved(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Query and key rows in the order that llama.cpp's rotary embedding wants: Hugging Face turns channel i with
    i + half, llama.cpp neighbours."""
    rows, columns = weights.shape
    half = rows // heads // 2
    return np.ascontiguousarray(weights.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(rows, columns))


def _write(folder: Path, quantization: Quantization, out: Path) -> None:
    from gguf import GGUFWriter

    from sluice_training.export import ggml
    from sluice_training.export.gguf_types import FILE_TYPE, tensor_type
    from sluice_training.model import files
    from sluice_training.model.chat import SPECIAL, TEMPLATE

    model, tokenizer = files.load(folder)
    shape = model.shape
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    writer = GGUFWriter(temporary, "llama")
    writer.add_name(out.stem)
    writer.add_file_type(FILE_TYPE[quantization])
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocabulary)
    vocabulary = json.loads(tokenizer.tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(vocabulary["vocab"].items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL_TOKEN if t in SPECIAL else NORMAL_TOKEN for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in vocabulary["merges"]])
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.end)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        weights: npt.NDArray[np.float32] = tensor.numpy()
        target = file_name(name)
        if weights.ndim == 1:
            writer.add_tensor(target, weights)
            continue
        if target.endswith(("attn_q.weight", "attn_k.weight")):
            weights = interleaved(weights, shape.heads if "attn_q" in target else shape.kv_heads)
        kind = tensor_type(target, weights.shape[1], quantization, shape.layers, shape.tied)
        writer.add_tensor(target, ggml.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(out)


if __name__ == "__main__":
    try:
        _write(Path(sys.argv[1]), Quantization(sys.argv[2]), Path(sys.argv[3]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
