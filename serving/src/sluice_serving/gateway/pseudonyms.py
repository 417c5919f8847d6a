"""The key that makes pseudonyms of users' names. Who has it and the database can tell whose a record is: it lies in a
Secret of its own. On a laptop, where the database is a file, the gateway makes one beside it.
"""

import os
import secrets
from pathlib import Path

from sluice_serving.gateway.settings import Settings, SettingsError

MIN_BYTES = 16


def pseudonym_key(settings: Settings) -> bytes | None:
    """The key. None with a shared database and no key: pseudonyms then follow from the API keys, and change with them.

    Raises SettingsError, OSError.
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
    path = database.with_name(f"{database.name}.key")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(file, "wb") as writing:
        key = secrets.token_hex(32).encode()
        writing.write(key)
    return key
