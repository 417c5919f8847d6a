"""Files that survive a power cut: a reader sees the old content or the new, never half of either."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sluice_edge.errors import ConfigurationError, EdgeError, StorageFullError


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path`: temporary file, fsync, rename, fsync of the folder.

    Raises StorageFullError, EdgeError; the old file is then untouched.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise explain(error, f"cannot write {path}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (renames, new names) durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path) -> None:
    """Move `source` to `target` within one file system, durably. `target` must not be a folder with content."""
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove(path: Path) -> None:
    """Remove a file or a whole folder; none there is fine. A folder vanishes by its name first, at once."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        sync_folder(path.parent)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def explain(error: OSError, doing: str) -> EdgeError:
    """The error in words; a full disk gets its own type."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFullError(
            f"{doing}: the disk is full; free some space there and run the command again, "
            "or choose a folder on another disk with --home"
        )
    return EdgeError(f"{doing}: {error.strerror or error}")


@contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path`. The kernel lets go of it when the process ends, however it ends.

    Raises ConfigurationError(`busy`) if another process holds it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise explain(error, f"cannot open {path}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(busy) from None
        yield
    finally:
        os.close(handle)
