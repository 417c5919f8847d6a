"""Device files cut into content-addressed pieces: what two versions have in common is stored and fetched once."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sluice_contracts.release import PIECE_SIZE, piece_path
from sluice_storage import Store

SMALL_PIECE = 64 * 1024
MAX_PIECES = 20_000
"""A list of this many digests is a release of about 1.5 MB, well within what devices accept."""
WORKERS = 8
"""Requests in flight at a time: storage answers small writes in tens of milliseconds."""


@dataclass(frozen=True)
class Cut:
    """A file's pieces in order."""

    piece_size: int
    digests: list[str]


@dataclass(frozen=True)
class Upload:
    """What storing a file's pieces took."""

    uploaded: int
    bytes_uploaded: int


def piece_size_for(size: int) -> int:
    """Bytes of a piece for a file of `size` bytes: small where the file is small, so that a little change costs
    little; larger where the list of digests would become too long."""
    piece = SMALL_PIECE if size <= 256 * SMALL_PIECE else PIECE_SIZE
    while size > piece * MAX_PIECES:
        piece *= 2
    return piece


def cut(path: Path, piece_size: int) -> Cut:
    """The digests of the file's pieces."""
    return Cut(piece_size, ["sha256:" + hashlib.sha256(piece).hexdigest() for piece in _pieces(path, piece_size)])


def upload(store: Store, path: Path, parts: Cut) -> Upload:
    """Store the pieces that are not there yet. At most `WORKERS` are in memory at a time. Raises StorageError."""
    first_at: dict[str, int] = {}
    for index, digest in enumerate(parts.digests):
        first_at.setdefault(digest, index)

    def put(digest: str, index: int) -> int:
        key = piece_path(digest)
        if store.exists(key):
            return 0
        with path.open("rb") as file:
            file.seek(index * parts.piece_size)
            data = file.read(parts.piece_size)
        store.write(key, data)
        return len(data)

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="pieces") as pool:
        written = list(pool.map(put, first_at.keys(), first_at.values()))
    return Upload(sum(1 for n in written if n), sum(written))


def _pieces(path: Path, piece_size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(piece_size):
            yield piece


def digest_of(path: Path) -> str:
    """`sha256:…` of a whole file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
