"""An answer that is kept for requests that come again."""

from dataclasses import dataclass

ENTRY_OVERHEAD = 512
"""What an entry costs beside its bytes, roughly: key, figures, places in the table."""


@dataclass(frozen=True)
class Kept:
    """An answer as it went out, and what it took to make it."""

    body: bytes
    content_type: bytes
    prompt_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None

    @property
    def size(self) -> int:
        """What it counts towards the bound, in bytes."""
        return len(self.body) + ENTRY_OVERHEAD
