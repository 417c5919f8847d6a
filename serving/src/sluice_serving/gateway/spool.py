"""A queue of records on disk: what `append` has taken is there after a crash, in order, until it is committed.

A folder of segments, each a file of lines `<crc32> <record>`. Only the newest segment of this process is written to; a
segment of an earlier process may end in the middle of a line, which was then never acknowledged. Reading does not
remove; `commit` does, a segment at a time, so after a crash some records are read once more: who takes them must know
them by their id. No asyncio here: the calls block on the disk, and belong into a thread.
"""

import contextlib
import fcntl
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SEGMENT_BYTES = 4 << 20
SUFFIX = ".spool"


class SpoolInUse(OSError):
    """Another process has the folder."""


@dataclass(frozen=True)
class Mark:
    """A place in the queue."""

    segment: int
    offset: int
    lines: int = 0
    """How many lines lie between it and the mark before."""


class Spool:
    """The queue in one folder. Thread-safe."""

    def __init__(self, folder: Path, limit: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self.corrupt = 0
        """Lines that did not have their checksum."""
        self.bytes = 0
        """What lies in the folder."""
        self.waiting = 0
        """Records that are not committed."""
        self._segment_bytes = segment_bytes
        self._guard = threading.Lock()
        self._sizes: dict[int, int] = {}
        """Bytes that are safely on disk, by segment, oldest first."""
        self._read = Mark(0, 0)
        self._next = 1
        self._file: int | None = None
        self._lock: int | None = None

    def open(self) -> None:
        """Take the folder and find what an earlier process left. Raises SpoolInUse, OSError."""
        if self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise SpoolInUse(f"another gateway uses the spool {self.folder}; set SLUICE_SPOOL_DIR to another") from None
        self._lock = lock
        found = sorted(int(p.stem) for p in self.folder.glob(f"*{SUFFIX}") if p.stem.isdecimal())
        self._sizes = {n: self._path(n).stat().st_size for n in found}
        self._next = found[-1] + 1 if found else 1
        self._read = Mark(found[0] if found else self._next, 0)
        self.bytes = sum(self._sizes.values())
        self.waiting = sum(_lines(self._path(n)) for n in found)

    def append(self, records: Sequence[bytes]) -> int:
        """Write records, none with a line break, and wait until they are on disk. Returns how many: those that come
        after did not fit into the limit. Raises OSError if the disk fails; then none counts as written."""
        lines, room = [], self.limit - self.bytes
        for record in records:
            line = b"%08x %s\n" % (zlib.crc32(record), record)
            room -= len(line)
            if room < 0:
                break
            lines.append(line)
        if lines:
            with self._guard:
                self._write(b"".join(lines))
                self.waiting += len(lines)
        return len(lines)

    def _write(self, data: bytes) -> None:
        if self._file is None or self._sizes[self._next - 1] >= self._segment_bytes:
            self._begin()
        assert self._file is not None
        number = self._next - 1
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            # What a failed fsync left behind is unknown: cut it off if possible, and never write there again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._sizes[number])
            self._end()
            raise
        self._sizes[number] += len(data)
        self.bytes += len(data)

    def _begin(self) -> None:
        self._end()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path(self._next), flags, 0o600)
        self._sizes[self._next] = 0
        self._next += 1
        self._sync_folder()

    def _end(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def read(self, count: int) -> tuple[list[bytes], Mark]:
        """The oldest records that are not committed, at most `count`, and the mark to commit once they are safe
        elsewhere. Raises OSError."""
        with self._guard:
            records: list[bytes] = []
            place, lines = self._read, 0
            for number in [n for n in self._sizes if n >= place.segment]:
                offset = place.offset if number == place.segment else 0
                with self._path(number).open("rb") as file:
                    file.seek(offset)
                    while offset < self._sizes[number] and len(records) < count:
                        line = file.readline()
                        offset += len(line)
                        lines += line.endswith(b"\n")
                        if (record := _record(line)) is not None:
                            records.append(record)
                        elif line.endswith(b"\n"):
                            self.corrupt += 1
                place = Mark(number, offset, lines)
                if len(records) >= count:
                    break
            return records, place if records or lines else Mark(place.segment, place.offset)

    def commit(self, mark: Mark) -> None:
        """Forget what was read up to there."""
        with self._guard:
            self._read = mark
            self.waiting -= mark.lines
            for number in [n for n in self._sizes if n <= mark.segment]:
                written_to = self._file is not None and number == self._next - 1
                if number < mark.segment or (mark.offset >= self._sizes[number] and not written_to):
                    self._remove(number)

    def trim(self) -> None:
        """Remove the segment that is written to, if all of it is committed: what is safe elsewhere need not stay."""
        with self._guard:
            unread = (size - (self._read.offset if n == self._read.segment else 0)
                      for n, size in self._sizes.items() if n >= self._read.segment)  # fmt: skip
            if not any(unread):
                self._end()
                for number in list(self._sizes):
                    self._remove(number)

    def _remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)
        self.bytes -= self._sizes.pop(number)

    def close(self) -> None:
        """Let the folder go; what is not committed stays for the next process."""
        with self._guard:
            self._end()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:012d}{SUFFIX}"

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def _record(line: bytes) -> bytes | None:
    """What a line holds, or None if it is torn or damaged."""
    record = line[9:-1]
    if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(record):
        return None
    return record
