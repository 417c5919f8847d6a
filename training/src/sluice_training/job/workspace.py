"""A run's files, in its folder in storage and beside the job on disk. Fetched once, however often they are used."""

from dataclasses import dataclass
from pathlib import Path

from sluice_contracts.base import sha256
from sluice_storage import ChecksumError, open_store

from sluice_training.job.stages import StageFile


def digest_of(path: Path) -> StageFile:
    """Size and digest of a local file, under its own name."""
    data = path.read_bytes()
    return StageFile(path=path.name, size=len(data), sha256=sha256(data))


@dataclass(frozen=True)
class Workspace:
    """`local` mirrors the run folder at `run_uri`."""

    run_uri: str
    local: Path

    def path(self, relative: str) -> Path:
        """Where a file of the run lies on disk; its folder exists."""
        path = self.local / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def fetch(self, file: StageFile) -> Path:
        """The file on disk, downloaded if it is not there yet. Raises ChecksumError, StorageError."""
        path = self.path(file.path)
        if not path.exists():
            open_store(self.run_uri).download(file.path, path)
        found = digest_of(path)
        if found.sha256 != file.sha256:
            raise ChecksumError(f"{self.run_uri}/{file.path} has digest {found.sha256}, expected {file.sha256}")
        return path

    def upload(self, relative: str) -> StageFile:
        """Put a local file into the run's folder. Raises StorageError."""
        path = self.path(relative)
        open_store(self.run_uri).upload(path, relative)
        return digest_of(path).model_copy(update={"path": relative})
