"""The manifest of a distillation dataset. Its `run_id` is a pure function of its inputs."""

from typing import Annotated, Literal

from pydantic import Field

from sluice_contracts.base import Contract, Digest, Fraction, RelativePath, ShortText
from sluice_contracts.names import Domain, Task


class SliceCount(Contract):
    """How many examples of one slice a split holds."""

    domain: Domain
    task: Task
    train: Annotated[int, Field(ge=0)]
    val: Annotated[int, Field(ge=0)]
    test: Annotated[int, Field(ge=0)]


class DatasetFile(Contract):
    """One file of the dataset."""

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    sha256: Digest
    rows: Annotated[int, Field(ge=0)]


class SliceWeight(Contract):
    """How much more (or less) of a slice was generated than the recipe's share."""

    domain: Domain
    factor: Annotated[float, Field(ge=0, le=100)]
    reason: ShortText


class DatasetManifest(Contract):
    """manifest.json of `distillation_dataset/<run_id>/`."""

    schema_version: Literal[1] = 1
    run_id: ShortText
    generator: ShortText
    """Name and version of the generator, such as `synthetic/1`."""
    inputs_digest: Digest
    """Digest of the build's whole configuration, the signals' digest among it."""
    signals_digest: Digest | None = None
    signal_batches: Annotated[int, Field(ge=0)] = 0
    weights: list[SliceWeight] = []
    slices: list[SliceCount]
    files: list[DatasetFile]
    duplicates_removed: Annotated[int, Field(ge=0)] = 0
    split: dict[Literal["train", "val", "test"], Fraction]


class DatasetRow(Contract):
    """One line of train.jsonl, val.jsonl or test.jsonl: a chat and its tags."""

    id: ShortText
    messages: Annotated[list["Message"], Field(min_length=2, max_length=32)]
    domain: Domain
    task: Task
    tags: list[ShortText] = []


class Message(Contract):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1, max_length=16_384)]
