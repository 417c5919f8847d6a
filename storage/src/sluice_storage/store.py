"""The interface, its errors, and the choice of a back-end by the URI's scheme."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


class StorageError(Exception):
    """An object could not be read or written; the message says which, why, and what to do."""


class NotFoundError(StorageError):
    """The object or bucket is not there."""


class ChecksumError(StorageError):
    """The object's bytes are not the ones that were promised."""


class Store(Protocol):
    """A folder of objects. Keys are relative paths with forward slashes."""

    uri: str

    def read(self, key: str) -> bytes:
        """The object's bytes. Raises NotFoundError, StorageError."""

    def stream(self, key: str) -> Iterator[bytes]:
        """The object's bytes, some MiB at a time: for what does not fit into memory. Raises as `read`, also midway."""

    def write(self, key: str, data: bytes) -> None:
        """Put the object there, whole or not at all. Raises StorageError."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that start with `prefix`, sorted. An absent folder is an empty one."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    def size(self, key: str) -> int:
        """The object's length in bytes, without reading it. Raises NotFoundError, StorageError."""

    def delete(self, key: str) -> None:
        """Remove the object; none there is fine."""

    def upload(self, path: Path, key: str) -> None:
        """Put a local file there, whole or not at all."""

    def download(self, key: str, path: Path) -> None:
        """Fetch an object into a local file: a temporary name, fsynced, renamed."""


def join(uri: str, *parts: str) -> str:
    """`uri` and `parts` with exactly one slash between each."""
    return "/".join([uri.rstrip("/"), *(p.strip("/") for p in parts if p.strip("/"))])


def split(uri: str) -> tuple[str, str]:
    """The folder and the last component of a URI. Raises StorageError if there is no last component."""
    folder, _, name = uri.rpartition("/")
    if not name or "://" not in f"{folder}/" or folder in {"gs:/", "file:/", "file://"}:
        raise StorageError(f"{uri!r} names no object; expected gs://bucket/path or file:///path")
    return folder, name


def open_store(uri: str) -> Store:
    """The folder at `uri`. Nothing is created and nothing is asked yet. Raises StorageError for an unknown scheme."""
    if uri.startswith("gs://"):
        from sluice_storage.gcs import GcsStore  # the client library costs 40 MB; only its users pay

        return GcsStore(uri)
    if uri.startswith("file:///"):
        from sluice_storage.files import FileStore

        return FileStore(uri)
    raise StorageError(f"cannot open {uri!r}: use gs://bucket/path or file:///path")


def read_bytes(uri: str, digest: str | None = None) -> bytes:
    """One object's bytes, checked against `digest` (`sha256:…`) where one is given.

    Raises NotFoundError, ChecksumError, StorageError.
    """
    folder, name = split(uri)
    data = open_store(folder).read(name)
    if digest is not None:
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != digest:
            raise ChecksumError(f"{uri} has digest {found}, expected {digest}: it was changed after it was recorded")
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Put one object there. Raises StorageError."""
    folder, name = split(uri)
    open_store(folder).write(name, data)


def write_atomically(path: Path, chunks: Iterator[bytes]) -> None:
    """Write `chunks` to `path` through a temporary file in the same folder: fsynced, then renamed, then the folder
    fsynced. A crash leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
