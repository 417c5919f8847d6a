"""How much memory a device file needs in the engine, read from the file's own header.

The gguf package is loaded where a file is read: with all it brings along it would be half of every command's start.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice_training.publish.errors import PublishError

MAX_CONTEXT = 8192
"""Devices do not open longer contexts than this, whatever the model could do."""
ENGINE_BYTES = 64 * 1024 * 1024
"""The engine's code, tokenizer and compute buffers for a batch of 512, roughly."""


@dataclass(frozen=True)
class Footprint:
    """What the engine needs at `context` tokens."""

    ram_bytes: int
    context: int


def footprint(path: Path) -> Footprint:
    """The file (it is mapped whole), a key/value cache in f16 and the engine itself. Raises PublishError if `path` is
    no GGUF."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
        arch = str(fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise PublishError(f"{path.name} is no GGUF file: {error}") from error

    def number(key: str, default: int) -> int:
        field: Any = fields.get(f"{arch}.{key}")
        return default if field is None else int(field.contents())

    context = max(64, min(MAX_CONTEXT, number("context_length", 2048)))
    heads = number("attention.head_count", 1)
    head_size = number("attention.key_length", number("embedding_length", 0) // max(heads, 1))
    per_token = 2 * 2 * number("block_count", 0) * number("attention.head_count_kv", heads) * head_size
    return Footprint(path.stat().st_size + per_token * context + ENGINE_BYTES, context)
