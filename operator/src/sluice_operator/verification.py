"""Whether artefacts are what their manifest says, byte by byte.

Gigabytes take minutes, and a look at an object must not: so files are hashed beside the looks, one stream at a time and
never whole in memory, and each look takes in how far that is. Only the outcome is kept in a status; an operator that
starts anew begins anew.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sluice_contracts.manifest import Artifact
from sluice_storage import NotFoundError, StorageError, open_store

from sluice_operator.artifacts import Problem

PATIENCE_SECONDS = 2.0
"""The first look waits this long, so that small models are verified at once. Where others are being hashed it does not
wait: a thousand new versions must not keep the looks from pools."""
KEPT_SECONDS = 600.0
"""What was found to be altered is not read again before."""
STREAMS = 2
"""Files hashed at a time, over all versions."""


@dataclass(frozen=True)
class Checking:
    """How far it is."""

    files: int
    of_files: int
    read: int
    of_bytes: int

    def __str__(self) -> str:
        return f"{self.files} of {self.of_files} files, {self.read:,} of {self.of_bytes:,} bytes read"


class Verification:
    """Artefacts being hashed, by the digest of their manifest. One for the whole operator, in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._running: dict[str, asyncio.Task[Problem | None]] = {}
        self._read: dict[str, tuple[int, int]] = {}
        self._refused: dict[str, tuple[float, Problem]] = {}
        self._slots = asyncio.Semaphore(STREAMS)
        self._clock = clock

    async def check(
        self, manifest: str, folder: str, artifacts: Sequence[Artifact], patience: float = PATIENCE_SECONDS
    ) -> Problem | Checking | None:
        """What is wrong with the artefacts in `folder` of the manifest with digest `manifest`; None if nothing is;
        Checking while that is not known."""
        known = self._refused.get(manifest)
        if known is not None and self._clock() - known[0] < KEPT_SECONDS:
            return known[1]
        task = self._running.get(manifest)
        if task is not None or self._slots.locked():
            patience = 0
        if task is None:
            task = asyncio.create_task(self._check(manifest, folder, artifacts), name=f"verify {folder}")
            self._running[manifest] = task
        done, _ = await asyncio.wait({task}, timeout=patience)
        if not done:
            files, read = self._read.get(manifest, (0, 0))
            return Checking(files, len(artifacts), read, sum(a.size for a in artifacts))
        self._running.pop(manifest, None)
        self._read.pop(manifest, None)
        self._refused.pop(manifest, None)
        found = task.result()
        if found is not None and found.lasting:
            self._refused[manifest] = (self._clock(), found)
        return found

    async def _check(self, manifest: str, folder: str, artifacts: Sequence[Artifact]) -> Problem | None:
        for number, artifact in enumerate(artifacts):
            before = sum(a.size for a in artifacts[:number])
            self._read[manifest] = (number, before)
            stop = threading.Event()
            async with self._slots:
                try:
                    note = partial(self._note, manifest, number, before)
                    problem = await asyncio.to_thread(_differs, folder, artifact, stop, note)
                finally:
                    stop.set()  # a thread cannot be cancelled, and would keep the process from ending
            if problem is not None:
                return problem
        return None

    def _note(self, manifest: str, files: int, before: int, size: int) -> None:
        self._read[manifest] = (files, before + size)


def _differs(folder: str, artifact: Artifact, stop: threading.Event, progress: Callable[[int], None]) -> Problem | None:
    """What is wrong with one file."""
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in open_store(folder).stream(artifact.path):
            digest.update(chunk)
            size += len(chunk)
            progress(size)
            if stop.is_set():
                return Problem("StorageUnavailable", "the operator is stopping", lasting=False)
    except NotFoundError as error:
        return Problem("ArtifactMissing", str(error))
    except StorageError as error:
        return Problem("StorageUnavailable", str(error), lasting=False)
    found = f"sha256:{digest.hexdigest()}"
    if found == artifact.sha256:
        return None
    return Problem(
        "ArtifactChanged",
        f"{folder}/{artifact.path} has digest {found[:23]}…, its manifest says {artifact.sha256[:23]}…: it was changed "
        "after the run",
    )
