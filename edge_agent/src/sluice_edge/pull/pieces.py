"""Puts a file together from pieces: those on the device already, and those fetched.

Each piece is verified before it is written at its place in a partial file. The partial file is its own journal: after
a crash every place is hashed again and what holds is kept, so nothing is fetched twice and a torn write is noticed.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from sluice_contracts.release import Variant, piece_path

from sluice_edge import durable
from sluice_edge.errors import FetchError, StorageFullError, TrustError
from sluice_edge.pull.fetch import ATTEMPTS, PARALLEL, NotThereError, Source, TemporaryError, pause


@dataclass(frozen=True)
class Donor:
    """A complete model file on this device that may share pieces with the new one."""

    path: Path
    variant: Variant


@dataclass(frozen=True)
class Assembly:
    """What putting the file together took."""

    total: int
    fetched: int
    reused: int


def assemble(source: Source, variant: Variant, partial: Path, donors: Sequence[Donor]) -> Assembly:
    """Make `partial` the variant's whole, verified, fsynced file.

    Raises TrustError if a piece is not what the release says after several tries (the file then lacks it, and a later
    call goes on from there), FetchError, StorageFullError.
    """
    wanted = variant.pieces
    try:
        resumed = partial.exists()
        with open(partial, "r+b" if resumed else "w+b") as file:
            _reserve(file.fileno(), variant.size)
            have = _holding(file.fileno(), variant) if resumed else set()
            have |= _borrow(file.fileno(), variant, donors, have)
            missing = _places(variant, have)
            _fetch_all(source, variant, file.fileno(), missing)
            os.fsync(file.fileno())
    except OSError as error:
        _give_up_space(partial, error)
        raise durable.explain(error, f"cannot write the model file {partial} ({variant.size:,} bytes)") from error
    fetched = len(missing)
    found = digest_of(partial)
    if found != variant.sha256:
        partial.unlink()
        raise TrustError(f"the assembled {variant.quantization} file has digest {found}, signed is {variant.sha256}")
    return Assembly(len(wanted), fetched, len(set(wanted)) - fetched)


def digest_of(path: Path) -> str:
    """`sha256:…` of a whole file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _reserve(file: int, size: int) -> None:
    """Take the whole space now: a full disk shows before the first byte is fetched, not after the last."""
    if os.fstat(file).st_size > size:
        os.ftruncate(file, size)
    os.posix_fallocate(file, 0, size)


def _give_up_space(partial: Path, error: OSError) -> None:
    if isinstance(durable.explain(error, ""), StorageFullError):
        partial.unlink(missing_ok=True)


def _spans(variant: Variant) -> Iterator[tuple[str, int, int]]:
    """Digest, offset and length of each piece."""
    for index, digest in enumerate(variant.pieces):
        offset = index * variant.piece_size
        yield digest, offset, min(variant.piece_size, variant.size - offset)


def _holding(file: int, variant: Variant) -> set[int]:
    """Offsets whose piece is in the partial file already."""
    return {o for digest, o, n in _spans(variant) if _digest(os.pread(file, n, o)) == digest}


def _borrow(file: int, variant: Variant, donors: Sequence[Donor], have: set[int]) -> set[int]:
    """Copy pieces from other files of this device, verified again; return the offsets that were filled."""
    places = _places(variant, have)
    filled: set[int] = set()
    for donor in donors:
        try:
            with donor.path.open("rb") as other:
                for digest, offset, length in _spans(donor.variant):
                    if digest not in places:
                        continue
                    data = os.pread(other.fileno(), length, offset)
                    if _digest(data) != digest:
                        continue  # the old file has rotted there; the piece is fetched instead
                    filled |= _put(file, data, places.pop(digest))
        except FileNotFoundError:
            continue
    return filled


def _places(variant: Variant, have: set[int]) -> dict[str, list[int]]:
    """Which offsets still want which piece. One piece may be wanted in several places."""
    places: dict[str, list[int]] = {}
    for digest, offset, _ in _spans(variant):
        if offset not in have:
            places.setdefault(digest, []).append(offset)
    return places


def _put(file: int, data: bytes, offsets: Sequence[int]) -> set[int]:
    for offset in offsets:
        view = memoryview(data)
        at = offset
        while view:
            written = os.pwrite(file, view, at)
            view, at = view[written:], at + written
    return set(offsets)


def _fetch_all(source: Source, variant: Variant, file: int, missing: dict[str, list[int]]) -> None:
    """Fetch with at most `PARALLEL` requests in flight; the first failure stops the rest."""

    def one(digest: str, offsets: list[int]) -> None:
        _put(file, fetch_piece(source, variant, digest, offsets[0]), offsets)

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="pieces") as pool:
        futures = [pool.submit(one, digest, offsets) for digest, offsets in missing.items()]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def fetch_piece(source: Source, variant: Variant, digest: str, offset: int) -> bytes:
    """One verified piece. A wrong one is refused, and asked for again a few times: the line may have damaged it.

    Raises TrustError naming the piece, FetchError.
    """
    length = min(variant.piece_size, variant.size - offset)
    number = offset // variant.piece_size + 1
    name = f"piece {number} of {len(variant.pieces)} of {variant.quantization}"
    for attempt in range(ATTEMPTS):
        last = attempt + 1 == ATTEMPTS
        try:
            data = b"".join(source.stream(piece_path(digest), length))
        except NotThereError as error:
            raise FetchError(f"{name} is missing in the repository: {error}") from error
        except TemporaryError as error:
            if last:
                raise FetchError(f"{name} could not be fetched: {error}") from error
        else:
            if _digest(data) == digest:
                return data
            if last:
                raise TrustError(
                    f"{name} was altered: expected {digest}, got {_digest(data)} ({len(data):,} bytes) "
                    f"each of {ATTEMPTS} times; refused, the installed model keeps running"
                )
        pause(attempt)
    raise AssertionError("unreachable")


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
