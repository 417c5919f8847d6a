"""The key that makes pseudonyms of users' names. Who has it and the database can tell whose a record is: it lies in a
Secret of its own. On a laptop, where the database is a file, the gateway makes one beside it.
"""

import contextlib
import os
import secrets
from pathlib import Path

from sluice_serving.gateway.settings import Settings, SettingsError

MIN_BYTES = 16


def pseudonym_key(settings: Settings) -> bytes | None:
    """The key. None with a shared database and no key: pseudonyms then follow from the API keys, and change with them.

    Raises SettingsError.
    """
    if settings.pseudonym_key_file is not None:
        try:
            key = settings.pseudonym_key_file.read_bytes().strip()
        except OSError as error:
            path = settings.pseudonym_key_file
            raise SettingsError(f"SLUICE_PSEUDONYM_KEY_FILE: cannot read {path}: {error.strerror}") from None
        if len(key) < MIN_BYTES:
            raise SettingsError(f"SLUICE_PSEUDONYM_KEY_FILE: the key has fewer than {MIN_BYTES} bytes; "
                                "make one with `openssl rand -hex 32`")  # fmt: skip
        return key
    return _own_key(settings.database_file) if settings.database_file is not None else None


def _own_key(database: Path) -> bytes:
    """The key beside the file, made if there is none. Written whole before it has its name: of two that start at once,
    both must end up with the same one."""
    path = database.with_name(f"{database.name}.key")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writing:
                writing.write(secrets.token_hex(32).encode())
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
            fresh.unlink()
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot keep a key beside the database at {path}: {error.strerror}; set "
                            "SLUICE_DATABASE_URL to a place that can be written to") from None  # fmt: skip
