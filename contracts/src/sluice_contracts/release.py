"""The release: the small signed document a device trusts, naming files by the digests of their pieces."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sluice_contracts.base import Contract, Digest, Fraction, Name, ShortText, Timestamp
from sluice_contracts.names import Quantization

PIECE_SIZE = 256 * 1024
"""Bytes of a piece: a broken download loses little, and a 5 GB file is still a list of only 20,000."""


class Variant(Contract):
    """One quantised file, cut into pieces of equal size (the last may be shorter)."""

    quantization: Quantization
    size: Annotated[int, Field(ge=1)]
    sha256: Digest
    piece_size: Annotated[int, Field(ge=1024, le=67_108_864)] = PIECE_SIZE
    pieces: Annotated[list[Digest], Field(min_length=1, max_length=200_000)]
    ram_bytes: Annotated[int, Field(ge=0)]
    """Memory the engine needs at `context` tokens, roughly."""
    context: Annotated[int, Field(ge=64)]
    mean_kld: float
    same_top: Fraction


class CohortStage(Contract):
    """The release is for devices whose cohort number (0-99) is below `percent`."""

    percent: Annotated[int, Field(ge=0, le=100)]


class Release(Contract):
    """A TUF target: `<channel>/<model>.json`."""

    schema_version: Literal[1] = 1
    model: Name
    version: Annotated[str, StringConstraints(max_length=63)]
    lineage: ShortText
    manifest_digest: Digest
    dataset_run_id: ShortText
    git_sha: ShortText
    evaluation_digest: Digest
    evaluation_passed: bool
    evaluation: dict[str, float] = {}
    """Headline metrics, such as `intent.accuracy`."""
    variants: Annotated[list[Variant], Field(min_length=1, max_length=8)]
    cohort: CohortStage = CohortStage(percent=100)
    licence: ShortText = "Apache-2.0"
    published_at: Timestamp


def piece_path(digest: str) -> str:
    """Where a piece lies below the repository's root: `pieces/sha256/ab/abcd…`."""
    value = digest.removeprefix("sha256:")
    return f"pieces/sha256/{value[:2]}/{value}"


def target_path(channel: str, model: str) -> str:
    """The TUF target path of a model's release."""
    return f"{channel}/{model}.json"
