"""Bytes from the repository: one place for deadlines, size limits, retries and counting.

The repository is a folder of static files behind http(s):// or file://. Redirects are not followed and environment
proxies not used: the puller talks to the host its owner named, and to no other.
"""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import httpx
from tuf.api.exceptions import DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from sluice_edge.errors import FetchError

CONNECT_SECONDS = 10.0
GAP_SECONDS = 20.0
"""Longest wait for the next bytes."""
OBJECT_SECONDS = 300.0
"""Longest time for one object: a 256 KiB piece comes within it at 1 kB/s."""
ATTEMPTS = 4
BACK_OFF_SECONDS = (0.2, 1.0, 3.0)
PARALLEL = 6
CHUNK = 64 * 1024


def pause(attempt: int) -> None:
    """Wait before the try after `attempt` (counted from 0), not in step with other devices."""
    time.sleep(BACK_OFF_SECONDS[min(attempt, len(BACK_OFF_SECONDS) - 1)] * random.uniform(0.5, 1.5))


class NotThereError(FetchError):
    """The repository has no such object."""


class TemporaryError(FetchError):
    """Worth another try: no connection, a timeout, a server's own error, too few bytes."""


class Source:
    """A repository's root. Use as a context manager. Safe to use from several threads."""

    def __init__(self, url: str, proxy: str | None = None) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self._received = 0
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        if self._folder is None:
            self._client = httpx.Client(
                timeout=httpx.Timeout(GAP_SECONDS, connect=CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=PARALLEL, max_keepalive_connections=PARALLEL),
                follow_redirects=False,
                trust_env=False,
                verify=parts.scheme == "https" or proxy is not None,  # 25 ms of loading certificates otherwise unused
                proxy=proxy,
                headers={"User-Agent": "sluice-edge", "Accept-Encoding": "identity"},
            )

    @property
    def received(self) -> int:
        """Bytes of content that came so far, refused ones included."""
        return self._received

    def read(self, path: str, limit: int) -> bytes:
        """The object at `path` below the root, at most `limit` bytes; tried again where that may help.

        Raises NotThereError, FetchError.
        """
        for attempt in range(ATTEMPTS):
            try:
                return b"".join(self.stream(path, limit))
            except TemporaryError:
                if attempt + 1 == ATTEMPTS:
                    raise
                pause(attempt)
        raise AssertionError("unreachable")

    def stream(self, path: str, limit: int) -> Iterator[bytes]:
        """The object's bytes, once, without another try. Stops with FetchError as soon as more than `limit` came."""
        deadline = time.monotonic() + OBJECT_SECONDS
        size = 0
        for chunk in self._from_folder(path) if self._folder is not None else self._from_server(path):
            size += len(chunk)
            with self._lock:
                self._received += len(chunk)
            if size > limit:
                raise FetchError(f"{self.url}/{path} is longer than the {limit:,} bytes it may have; refused")
            if time.monotonic() > deadline:
                raise FetchError(f"{self.url}/{path} came too slowly: not done after {OBJECT_SECONDS:.0f} s")
            yield chunk

    def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _from_folder(self, path: str) -> Iterator[bytes]:
        assert self._folder is not None
        try:
            with (self._folder / path).open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except FileNotFoundError:
            if not self._folder.is_dir():
                raise FetchError(f"{self.url} is not there; is the folder or stick mounted?") from None
            raise NotThereError(f"{self.url}/{path} does not exist") from None
        except OSError as error:
            raise FetchError(f"cannot read {self.url}/{path}: {error.strerror}") from error

    def _from_server(self, path: str) -> Iterator[bytes]:
        assert self._client is not None
        url = f"{self.url}/{path}"
        try:
            with self._client.stream("GET", url) as response:
                if response.status_code in {403, 404, 410}:
                    raise NotThereError(f"{url} does not exist (status {response.status_code})")
                if response.status_code >= 500 or response.status_code == 429:
                    raise TemporaryError(f"{url}: the server answered with status {response.status_code}")
                if response.status_code != 200:
                    raise FetchError(f"{url}: the server answered with status {response.status_code}, expected 200")
                yield from response.iter_bytes(CHUNK)
        except httpx.TimeoutException as error:
            raise TemporaryError(f"{url}: no answer in time; is the repository reachable?") from error
        except httpx.TransportError as error:
            raise TemporaryError(f"{url}: {error or type(error).__name__}; is the repository reachable?") from error
        except httpx.InvalidURL as error:
            raise FetchError(f"{url} is no usable address: {error}") from error


class MetadataFetcher(FetcherInterface):
    """Lets python-tuf's client fetch through a `Source`. python-tuf stops reading at each role's own limit."""

    LARGEST = 5_000_000

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix(self._source.url + "/")
        for attempt in range(ATTEMPTS):
            started = False
            try:
                for chunk in self._source.stream(path, self.LARGEST):
                    started = True
                    yield chunk
                return
            except NotThereError as error:
                raise DownloadHTTPError(str(error), 404) from error
            except TemporaryError as error:
                if started or attempt + 1 == ATTEMPTS:
                    raise SlowRetrievalError(str(error)) from error
                pause(attempt)
