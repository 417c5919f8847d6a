"""Which type each tensor gets in a quantised file: llama.cpp's own mixes, redone as a pure function.

Source: llama.cpp, src/llama-quant.cpp, `llama_tensor_get_type`, for dense models of the Llama family.
"""

from typing import TypeAlias

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from sluice_contracts.names import Quantization

Type: TypeAlias = GGMLQuantizationType
BASE = {
    Quantization.Q8_0: Type.Q8_0,
    Quantization.Q6_K: Type.Q6_K,
    Quantization.Q5_K_M: Type.Q5_K,
    Quantization.Q4_K_M: Type.Q4_K,
}
FILE_TYPE = {
    Quantization.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Quantization.Q6_K: LlamaFileType.MOSTLY_Q6_K,
    Quantization.Q5_K_M: LlamaFileType.MOSTLY_Q5_K_M,
    Quantization.Q4_K_M: LlamaFileType.MOSTLY_Q4_K_M,
}
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""For rows that do not divide by the 256 weights of a super-block."""


def more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is one of those whose values and down projections llama.cpp gives more bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def tensor_type(name: str, columns: int, quantization: Quantization, layers: int, tied: bool) -> Type:
    """The type of a matrix. `name` is its name in the file, such as `blk.0.attn_v.weight`; `columns` its row length.

    Raises ValueError if no type fits the row length.
    """
    chosen = BASE[quantization]
    if quantization is not Quantization.Q8_0:
        kind = name.split(".")
        if name == "output.weight" or (name == "token_embd.weight" and tied):
            chosen = Type.Q6_K
        elif quantization is not Quantization.Q6_K and kind[0] == "blk" and kind[2] in ("attn_v", "ffn_down"):
            chosen = Type.Q6_K if more_bits(int(kind[1]), layers) else chosen
    if columns % GGML_QUANT_SIZES[chosen][0]:
        chosen = FALLBACK.get(chosen, chosen)
    if columns % GGML_QUANT_SIZES[chosen][0]:
        raise ValueError(
            f"{name} has rows of {columns} weights, which no type of {quantization} fits; use multiples of 32"
        )
    return chosen
