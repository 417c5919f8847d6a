"""file://: a folder of this machine, or one mounted from somewhere."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from sluice_storage.store import NotFoundError, StorageError, write_atomically

CHUNK = 1024 * 1024


class FileStore:
    """A `Store` in a folder."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.root = Path(unquote(urlparse(uri).path))

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise StorageError(f"{key!r} would lie outside {self.uri}")
        return path

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"{self.uri}/{key} does not exist") from None
        except OSError as error:
            raise StorageError(f"cannot read {self.uri}/{key}: {error.strerror}") from error

    def stream(self, key: str) -> Iterator[bytes]:
        try:
            yield from _chunks(self._path(key))
        except FileNotFoundError:
            raise NotFoundError(f"{self.uri}/{key} does not exist") from None
        except OSError as error:
            raise StorageError(f"cannot read {self.uri}/{key}: {error.strerror}") from error

    def write(self, key: str, data: bytes) -> None:
        self._put(key, iter([data]))

    def list(self, prefix: str = "") -> Iterator[str]:
        keys = (
            p.relative_to(self.root).as_posix()
            for p in self.root.rglob("*")
            if p.is_file() and not p.name.startswith(".")
        )
        return iter(sorted(k for k in keys if k.startswith(prefix)))

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            raise NotFoundError(f"{self.uri}/{key} does not exist") from None
        except OSError as error:
            raise StorageError(f"cannot look at {self.uri}/{key}: {error.strerror}") from error

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def upload(self, path: Path, key: str) -> None:
        self._put(key, _chunks(path))

    def download(self, key: str, path: Path) -> None:
        source = self._path(key)
        if not source.is_file():
            raise NotFoundError(f"{self.uri}/{key} does not exist")
        try:
            write_atomically(path, _chunks(source))
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _put(self, key: str, chunks: Iterator[bytes]) -> None:
        try:
            write_atomically(self._path(key), chunks)
        except OSError as error:
            raise StorageError(f"cannot write {self.uri}/{key}: {error.strerror}") from error


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
