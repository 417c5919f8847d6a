"""Markers: which stage of a run is done, for which inputs, with which files.

A marker counts only if it was written for the same inputs and its files still have their bytes; else the stage is done
again. Each run has a folder of its own, `<lineage>/<run>`; a training that another run of the lineage has finished is
copied, not repeated: equal inputs, equal bytes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

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

    def adopt(self, name: str, inputs: str, lineage: str) -> Marker | None:
        """The stage as another run of the lineage has done it for these inputs, copied into this run's folder; None
        where there is none that is whole, or one goes away meanwhile. Raises StorageError."""
        parent, _, mine = self.run_uri.rpartition("/")
        if parent.rpartition("/")[2] != lineage:
            return None
        others = {key.split("/", 1)[0] for key in open_store(parent).list() if key.endswith(f"/stages/{name}.json")}
        for other in sorted(others - {mine}):
            try:
                found = Markers(f"{parent}/{other}").done(name, inputs)
                if found is not None:
                    self._copy(f"{parent}/{other}", found)
                    return self.write(name, inputs, found.files)
            except NotFoundError:
                continue
        return None

    def _copy(self, uri: str, marker: Marker) -> None:
        with tempfile.TemporaryDirectory(prefix="sluice-adopt-") as folder:
            for file in marker.files:
                path = Path(folder) / Path(file.path).name
                open_store(uri).download(file.path, path)
                open_store(self.run_uri).upload(path, file.path)
                path.unlink()

    def put(self, path: str, data: bytes) -> StageFile:
        """Write one of the run's files. Raises StorageError."""
        open_store(self.run_uri).write(path, data)
        return StageFile(path=path, size=len(data), sha256=sha256(data))
