"""Markers: which stage of a run is done, for which inputs, with which files.

A marker counts only if it was written for the same inputs and its files still have their bytes; else the stage is done
again. Two runs with one lineage share a folder, so a marker of other gates or limits must not be believed.
"""

from dataclasses import dataclass

from pydantic import ValidationError
from sluice_contracts.base import Contract, Digest, RelativePath, sha256
from sluice_storage import NotFoundError, open_store


class StageFile(Contract):
    """A file that a stage made."""

    path: RelativePath
    size: int
    sha256: Digest


class Marker(Contract):
    """stages/<name>.json."""

    inputs: Digest
    files: list[StageFile] = []


@dataclass(frozen=True)
class Markers:
    """The markers of a run folder."""

    run_uri: str

    def done(self, name: str, inputs: str) -> Marker | None:
        """The stage's marker, if the stage was done for these inputs and its files are whole."""
        store = open_store(self.run_uri)
        try:
            marker = Marker.model_validate_json(store.read(f"stages/{name}.json"))
            if marker.inputs != inputs:
                return None
            if all(sha256(store.read(file.path)) == file.sha256 for file in marker.files):
                return marker
        except (NotFoundError, ValidationError):
            return None
        return None

    def write(self, name: str, inputs: str, files: list[StageFile]) -> Marker:
        """Say that the stage is done. Raises StorageError."""
        marker = Marker(inputs=inputs, files=files)
        open_store(self.run_uri).write(f"stages/{name}.json", marker.canonical())
        return marker

    def put(self, path: str, data: bytes) -> StageFile:
        """Write one of the run's files. Raises StorageError."""
        open_store(self.run_uri).write(path, data)
        return StageFile(path=path, size=len(data), sha256=sha256(data))
