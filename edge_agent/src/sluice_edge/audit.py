"""The audit log: what happened on this device, as hashes, in a chain that shows every later change.

One JSON object a line: {"seq", "at", "event", "facts", "previous", "hash"}; `hash` covers all the others, `previous` is
the hash before. `facts` holds names, digests, counts and outcomes, never content: a request appears as a keyed hash,
whose key stays on the device, so that nobody can look up a guessed question in a copied log.
"""

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sluice_contracts.base import canonical_json, sha256, timestamp

from sluice_edge import durable

GENESIS = "sha256:" + "0" * 64
TAIL = 64 * 1024
"""Bytes at the end that surely hold a whole last line."""
Fact = str | int | float | bool | None


@dataclass(frozen=True)
class Verdict:
    """What checking the chain found."""

    entries: int
    head: str
    problem: str | None = None
    """None: the chain holds."""


class AuditLog:
    """An append-only log. Several processes may append."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = bytes.fromhex(key)

    def append(self, event: str, **facts: Fact) -> str:
        """Add an entry, durably; return its hash. Raises StorageFullError, EdgeError."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                last, end = _last_entry(handle)
                entry: dict[str, Any] = {
                    "seq": last["seq"] + 1 if last else 1,
                    "at": timestamp(datetime.now(UTC)),
                    "event": event,
                    "facts": {k: v for k, v in facts.items() if v is not None},
                    "previous": last["hash"] if last else GENESIS,
                }
                entry["hash"] = sha256(canonical_json(entry))
                os.ftruncate(handle, end)  # a line that a power cut tore off counts as never written
                os.lseek(handle, end, os.SEEK_SET)
                os.write(handle, canonical_json(entry) + b"\n")
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise durable.explain(error, f"cannot write the audit log {self.path}") from error
        result: str = entry["hash"]
        return result

    def hash_of(self, content: bytes) -> str:
        """The keyed hash that stands for content in the log."""
        return "hmac-sha256:" + hmac.new(self._key, content, hashlib.sha256).hexdigest()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, oldest first. Raises ValueError for a line that is none."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def verify(self) -> Verdict:
        """Check every link. A chain shows edits and removals in the middle; it cannot show a tail that was cut off."""
        head, count = GENESIS, 0
        try:
            for entry in self.entries():
                claimed = entry.pop("hash")
                if entry["seq"] != count + 1 or entry["previous"] != head:
                    return Verdict(
                        count, head, f"entry {count + 1} does not follow entry {count}: something was removed"
                    )
                if sha256(canonical_json(entry)) != claimed:
                    return Verdict(count, head, f"entry {count + 1} was changed after it was written")
                head, count = claimed, count + 1
        except (ValueError, KeyError, TypeError, AttributeError):
            return Verdict(count, head, f"entry {count + 1} is no entry")
        return Verdict(count, head)

    def head(self) -> tuple[int, str]:
        """Number of entries and the last hash, without checking the chain."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0, GENESIS
        try:
            last, _ = _last_entry(handle)
        finally:
            os.close(handle)
        return (last["seq"], last["hash"]) if last else (0, GENESIS)


def _last_entry(handle: int) -> tuple[dict[str, Any] | None, int]:
    """The last whole entry and the offset behind it."""
    size = os.fstat(handle).st_size
    start = max(0, size - TAIL)
    data = os.pread(handle, size - start, start)
    end = data.rfind(b"\n") + 1
    if end == 0:
        return None, 0
    line = data[data.rfind(b"\n", 0, end - 1) + 1 : end]
    try:
        entry: dict[str, Any] = json.loads(line)
        return {"seq": int(entry["seq"]), "hash": str(entry["hash"])}, start + end
    except (ValueError, KeyError, TypeError):
        # Somebody edited the last line. Go on after it: `verify` will name the place.
        return {"seq": 0, "hash": GENESIS}, start + end
