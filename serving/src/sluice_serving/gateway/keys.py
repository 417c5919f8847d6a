"""API keys: whose key a request carries.

Each file of the folder is one tenant, as a mounted Secret has it: see `tenants` for what it holds. Only digests are
held in memory. The folder is read again when it changes, so that keys rotate without a restart. A file that turns out
wrong leaves its tenant as it was, and the others alone; when the folder cannot be read, all stay as they were.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sluice_contracts.base import parse_timestamp

from sluice_serving.gateway.tenants import Caller, KeyEntry, TenantFile, TenantFileError, read_tenant

logger = logging.getLogger("sluice.gateway")

POLL_SECONDS = 1.0
MAX_TENANTS = 10_000
_NOBODY = bytes(32)


@dataclass(frozen=True)
class _Held:
    """One key in memory."""

    digest: bytes
    caller: Caller
    expires: float | None


class KeyStore:
    """The tenants of one folder and their keys."""

    def __init__(
        self,
        folder: Path,
        *,
        plain_keys: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.tenants: dict[str, TenantFile] = {}
        self._plain_keys = plain_keys
        self._clock = clock
        self._held: dict[bytes, _Held] = {}
        self._signature: object = None
        self._fingerprint = _fingerprint([])
        self._blinding = secrets.token_bytes(32)

    def __len__(self) -> int:
        return len(self.tenants)

    def authenticate(self, key: str) -> Caller | None:
        """Whose key this is, or None. What it takes tells nothing of the keys there are.

        The table is looked up by a digest blinded with a secret of this process, so that the time of a look-up says
        nothing about stored digests; the digest itself is compared in constant time, also where there is none.
        """
        digest = hashlib.sha256(key.encode()).digest()
        held = self._held.get(self._blind(digest))
        same = hmac.compare_digest(digest, held.digest if held else _NOBODY)
        if held is None or not same:
            return None
        if held.expires is not None and self._clock() >= held.expires:
            return None
        return held.caller

    def fingerprint(self) -> bytes:
        """A secret that follows from all keys, equal in every gateway that has the same ones."""
        return self._fingerprint

    def load(self) -> None:
        """Read the folder if it changed. Problems are logged by tenant and field, never with content."""
        try:
            files = sorted(p for p in self.folder.iterdir() if not p.name.startswith(".") and p.is_file())
            signature = [(p.name, p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in files]
            if signature == self._signature:
                return
            contents = {p.name: p.read_bytes() for p in files[:MAX_TENANTS]}
        except OSError as error:
            reason = error.strerror or type(error).__name__
            logger.error("cannot read API keys from %s: %s; keeping the %d known", self.folder, reason, len(self))
            return
        if len(files) > MAX_TENANTS:
            logger.error("%s holds %d tenants; only the first %d are taken", self.folder, len(files), MAX_TENANTS)
        self._take(contents)
        self._signature = signature
        logger.info("API keys of %d tenants loaded", len(self))

    def _take(self, contents: dict[str, bytes]) -> None:
        tenants: dict[str, TenantFile] = {}
        for name, data in contents.items():
            try:
                tenants[name], plain = read_tenant(name, data, plain_keys=self._plain_keys)
            except TenantFileError as error:
                tenants.pop(name, None)
                known = self.tenants.get(name) if data.strip() else None
                if known is not None:
                    tenants[name] = known
                kept = "its former keys stay in force" if known else "it has no access"
                logger.error("tenant %s: %s; %s", name, error, kept)
                continue
            if plain and name not in self.tenants:
                logger.warning("the key of tenant %s lies in plain text; store its sha256: digest instead", name)
        self._held = self._index(tenants)
        self.tenants = tenants
        self._fingerprint = _fingerprint(self._held.values())

    def _index(self, tenants: dict[str, TenantFile]) -> dict[bytes, _Held]:
        held: dict[bytes, _Held] = {}
        for name, tenant in tenants.items():
            for key in tenant.keys:
                digest = bytes.fromhex(key.digest.removeprefix("sha256:"))
                blinded = self._blind(digest)
                if blinded in held:
                    logger.error("tenant %s: key %s is also a key of tenant %s; it stays there", name, key.id,
                                 held[blinded].caller.tenant)  # fmt: skip
                    continue
                expires = parse_timestamp(key.expires).timestamp() if key.expires else None
                held[blinded] = _Held(digest, caller_of(name, tenant, key), expires)
        return held

    def _blind(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._blinding, digest_size=16).digest()

    async def watch(self) -> None:
        """Keep reading, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await asyncio.to_thread(self.load)


def _fingerprint(held: Iterable[_Held]) -> bytes:
    whole = hashlib.sha256(b"sluice pseudonyms")
    for digest in sorted(key.digest for key in held):
        whole.update(digest)
    return whole.digest()


def caller_of(name: str, tenant: TenantFile, key: KeyEntry) -> Caller:
    """Who asks with that key."""
    return Caller(
        tenant=name,
        key_id=f"{name}/{key.id}",
        priority=tenant.priority if key.priority is None else key.priority,
        admin=key.admin,
        policy=tenant,
        budgets=tuple(key.budgets),
    )
