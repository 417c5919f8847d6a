"""Objects by URI: gs:// buckets and file:// folders behind one small interface.

Every room that keeps or reads artefacts goes through this one module, so that deadlines, retries, atomic writes and
the quirks of the client library are settled in one place.
"""

from sluice_storage.store import (
    ChecksumError,
    NotFoundError,
    StorageError,
    Store,
    join,
    open_store,
    read_bytes,
    write_bytes,
)

__all__ = [
    "ChecksumError",
    "NotFoundError",
    "StorageError",
    "Store",
    "join",
    "open_store",
    "read_bytes",
    "write_bytes",
]
