"""ggml's quantisers, called in the shared library that the xllamacpp wheel ships: the same kernels, hence the same
bytes, as llama.cpp's own tool.

A failed assertion inside ggml aborts the process: call this in a child only (`gguf_file` does).
"""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType


@cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise RuntimeError("the xllamacpp package is not installed")
    found = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
    if not found:
        raise RuntimeError(f"no shared library lies beside {spec.origin}")
    library = ctypes.CDLL(str(found[0]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # type
        ctypes.c_void_p,  # source, float32
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # first row
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # weights a row
        ctypes.c_void_p,  # importance of each column, or null
    ]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    return library


def quantize(weights: npt.NDArray[np.float32], kind: GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """[rows, columns] float32 as [rows, bytes a row]. Raises ValueError for a type that cannot be made this way."""
    library = _library()
    if library.ggml_quantize_requires_imatrix(int(kind)):
        raise ValueError(f"{kind.name} needs an importance matrix")
    block, size = GGML_QUANT_SIZES[kind]
    rows, columns = weights.shape
    if columns % block:
        raise ValueError(f"rows of {columns} weights do not divide by the block of {block} of {kind.name}")
    source = np.ascontiguousarray(weights, dtype=np.float32)
    out = np.zeros((rows, columns // block * size), dtype=np.uint8)
    written = library.ggml_quantize_chunk(int(kind), source.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    if written != out.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {kind.name}, expected {out.nbytes}")
    return out
