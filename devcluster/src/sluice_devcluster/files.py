"""Files appear whole or not at all: a temporary name, fsynced, renamed."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_file(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write `data` to `path` atomically, making its folder. A crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """`write_file` of JSON, readable by a person."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n", mode)
