"""Reading a dataset back: every byte checked against the manifest, every line against the schema."""

import json

from pydantic import ValidationError
from sluice_contracts.base import sha256
from sluice_contracts.dataset import DatasetManifest, DatasetRow
from sluice_contracts.training_run import DatasetReference
from sluice_storage import ChecksumError, NotFoundError, join, open_store, read_bytes

from sluice_training.dataset.config import describe
from sluice_training.dataset.split import SplitName
from sluice_training.errors import InvalidInputError


def read_manifest(reference: DatasetReference) -> DatasetManifest:
    """The manifest of the dataset. Raises InvalidInputError if it is not there, not the one meant, or no manifest."""
    uri = join(reference.uri, "manifest.json")
    try:
        data = read_bytes(uri, reference.digest)
    except NotFoundError as error:
        raise InvalidInputError(f"dataset.uri: {error}; build it with `sluice-train dataset build`") from None
    except ChecksumError as error:
        raise InvalidInputError(f"dataset.digest: {error}") from None
    try:
        return DatasetManifest.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInputError(f"{uri} is no dataset manifest: {describe(error)}") from None


def parse_rows(data: bytes, source: str) -> list[DatasetRow]:
    """The rows of a JSON Lines file. Raises InvalidInputError naming `source`, the line and the field."""
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{source}, line {number}: not JSON ({error})") from None
        try:
            row = DatasetRow.model_validate(raw)
        except ValidationError as error:
            raise InvalidInputError(f"{source}, line {number}: {describe(error)}") from None
        if row.messages[-1].role != "assistant":
            raise InvalidInputError(f"{source}, line {number}: messages: the last one must be the assistant's answer")
        rows.append(row)
    return rows


def read_rows(uri: str, manifest: DatasetManifest, name: SplitName) -> list[DatasetRow]:
    """The rows of one file of the dataset at `uri`. Raises InvalidInputError, StorageError."""
    path = f"{name}.jsonl"
    file = next((f for f in manifest.files if f.path == path), None)
    if file is None:
        raise InvalidInputError(f"{uri}/manifest.json lists no {path}")
    try:
        data = open_store(uri).read(path)
    except NotFoundError as error:
        raise InvalidInputError(f"the manifest lists {path}, but {error}") from None
    rows = parse_rows(data, f"{uri}/{path}")
    if (found := sha256(data)) != file.sha256:
        raise InvalidInputError(f"{uri}/{path} has digest {found}, its manifest says {file.sha256}: it was changed")
    return rows
