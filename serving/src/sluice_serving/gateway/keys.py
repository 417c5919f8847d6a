"""API keys: which tenant a request belongs to.

Each file of the folder is one tenant, as a mounted Secret has it: the name is the tenant's, the content the key or the
`sha256:…` digest of it. Only digests are held in memory. The folder is read again when it changes, so that keys rotate
without a restart; when a new reading fails, the last good one stays.
"""

import asyncio
import hashlib
import hmac
import logging
import re
from pathlib import Path

from sluice_contracts.base import DIGEST_PATTERN

logger = logging.getLogger("sluice.gateway")

POLL_SECONDS = 1.0
MAX_TENANTS = 10_000


class KeyStore:
    """The keys of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[str, bytes] = {}
        self._signature: object = None

    def __len__(self) -> int:
        return len(self._digests)

    def authenticate(self, key: str) -> str | None:
        """The tenant whose key this is, or None. Takes as long for a wrong key as for a right one."""
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for tenant, expected in self._digests.items():
            if hmac.compare_digest(digest, expected):
                found = tenant
        return found

    def fingerprint(self) -> bytes:
        """A secret that follows from all keys, equal in every gateway that has the same ones."""
        whole = hashlib.sha256(b"sluice pseudonyms")
        for digest in sorted(self._digests.values()):
            whole.update(digest)
        return whole.digest()

    def load(self) -> None:
        """Read the folder if it changed. Problems are logged by tenant, never with content."""
        try:
            files = sorted(p for p in self.folder.iterdir() if not p.name.startswith(".") and p.is_file())
            signature = [(p.name, p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in files]
            if signature == self._signature:
                return
            digests = dict(_read(p) for p in files[:MAX_TENANTS])
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a key is not text"
            logger.error("cannot read API keys from %s: %s; keeping the %d known", self.folder, reason, len(self))
            return
        self._digests = {tenant: digest for tenant, digest in digests.items() if digest}
        self._signature = signature
        logger.info("API keys of %d tenants loaded", len(self))
        for tenant in sorted(digests.keys() - self._digests.keys()):
            logger.warning("the key of tenant %s is empty; the tenant has no access", tenant)

    async def watch(self) -> None:
        """Keep reading, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await asyncio.to_thread(self.load)


def _read(path: Path) -> tuple[str, bytes]:
    text = path.read_text().strip()
    if not text:
        return path.name, b""
    if re.fullmatch(DIGEST_PATTERN, text):
        return path.name, bytes.fromhex(text.removeprefix("sha256:"))
    return path.name, hashlib.sha256(text.encode()).digest()
