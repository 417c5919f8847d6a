"""Reading artefacts from the bucket without blocking the event loop, each read with a deadline.

What cannot be had is a `Problem`, not an exception: a missing or changed file is a fact about the world that a plan
turns into a condition.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from sluice_contracts.manifest import Artifact
from sluice_storage import ChecksumError, NotFoundError, StorageError, open_store, read_bytes

DEADLINE = 90.0
KEPT_BYTES = 8 * 1024 * 1024
"""Memory for files that are read by digest: they never change, so they are read once."""
THREADS = 8
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why something cannot be used. `lasting`: it will not mend itself in a moment, so a person should hear of it."""

    reason: str
    message: str
    lasting: bool = True

    def about(self, field: str) -> "Problem":
        """The same problem, naming the field of the spec it comes from."""
        return Problem(self.reason, f"{field}: {self.message}", self.lasting)


class Artifacts:
    """Files behind URIs. One for the whole operator."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._slots = asyncio.Semaphore(THREADS)

    async def read(self, uri: str, digest: str | None = None) -> bytes | Problem:
        """One file's bytes, checked against `digest` where one is given."""
        if digest is not None and digest in self._kept:
            self._kept.move_to_end(digest)
            return self._kept[digest]
        found = await self._call(lambda: read_bytes(uri, digest))
        if digest is not None and isinstance(found, bytes):
            self._keep(digest, found)
        return found

    async def parsed(self, model: type[M], uri: str, digest: str | None = None) -> M | Problem:
        """One JSON file as `model`."""
        data = await self.read(uri, digest)
        if isinstance(data, Problem):
            return data
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            return Problem("Malformed", f"{uri} is no {model.__name__}: {where}: {first['msg']}")

    async def check_sizes(self, folder: str, artifacts: Iterable[Artifact]) -> Problem | None:
        """That every artefact is in `folder` with its size. Reads no contents."""
        wanted = list(artifacts)

        def check() -> Problem | None:
            store = open_store(folder)
            for artifact in wanted:
                size = store.size(artifact.path)
                if size != artifact.size:
                    return Problem(
                        "ArtifactChanged",
                        f"{folder}/{artifact.path} has {size} bytes, the manifest says {artifact.size}: it was changed",
                    )
            return None

        return await self._call(check)

    async def _call(self, function: Callable[[], T]) -> T | Problem:
        async with self._slots:
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with its result.
                async with asyncio.timeout(DEADLINE):
                    return await asyncio.to_thread(function)
            except NotFoundError as error:
                return Problem("NotFound", str(error))
            except ChecksumError as error:
                return Problem("DigestMismatch", str(error))
            except StorageError as error:
                return Problem("StorageUnavailable", str(error), lasting=False)
            except TimeoutError:
                return Problem("StorageUnavailable", f"storage did not answer within {DEADLINE:.0f} s", lasting=False)

    def _keep(self, digest: str, data: bytes) -> None:
        if len(data) > KEPT_BYTES // 4:
            return
        self._kept[digest] = data
        self._size += len(data)
        while self._size > KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)
