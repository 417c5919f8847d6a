"""gs://: Google Cloud Storage, or its emulator where STORAGE_EMULATOR_HOST names one.

An object appears whole or not at all by the service's own rule, so nothing is renamed here.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from google.api_core import exceptions as api_errors
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import exceptions as request_errors

from sluice_storage.store import NotFoundError, StorageError, write_atomically

TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and to wait for the next bytes."""
RETRY = DEFAULT_RETRY.with_deadline(60.0)
"""Transient errors are tried again for at most this many seconds in all."""
CHUNK = 8 * 1024 * 1024
"""Bytes of one request when an object is streamed: the client's default of 40 MiB is memory for nothing."""


@cache
def _client(emulator: str | None) -> storage.Client:
    if emulator:
        return storage.Client(project="local", credentials=AnonymousCredentials())
    try:
        return storage.Client()
    except auth_errors.DefaultCredentialsError as error:
        raise StorageError(
            "no Google Cloud credentials: use workload identity, or `gcloud auth application-default login`"
        ) from error


class GcsStore:
    """A `Store` in a bucket, below a prefix."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        bucket, _, prefix = self.uri.removeprefix("gs://").partition("/")
        self.prefix = prefix
        self.bucket_name = bucket

    @property
    def _bucket(self) -> storage.Bucket:
        return _client(os.environ.get("STORAGE_EMULATOR_HOST")).bucket(self.bucket_name)

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def read(self, key: str) -> bytes:
        try:
            data: bytes = self._bucket.blob(self._name(key)).download_as_bytes(timeout=TIMEOUT, retry=RETRY)
            return data
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("read", key, error) from error

    def stream(self, key: str) -> Iterator[bytes]:
        try:
            with self._bucket.blob(self._name(key)).open("rb", chunk_size=CHUNK, timeout=TIMEOUT, retry=RETRY) as blob:
                yield from iter(lambda: blob.read(CHUNK), b"")
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("read", key, error) from error

    def write(self, key: str, data: bytes) -> None:
        try:
            self._bucket.blob(self._name(key)).upload_from_string(
                data, content_type="application/octet-stream", timeout=TIMEOUT, retry=RETRY
            )
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("write", key, error) from error

    def list(self, prefix: str = "") -> Iterator[str]:
        start = self._name(prefix)
        cut = len(self.prefix) + 1 if self.prefix else 0
        try:
            blobs = self._bucket.list_blobs(prefix=start, timeout=TIMEOUT, retry=RETRY)
            return iter(sorted(blob.name[cut:] for blob in blobs))
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("list", prefix, error) from error

    def exists(self, key: str) -> bool:
        try:
            return bool(self._bucket.blob(self._name(key)).exists(timeout=TIMEOUT, retry=RETRY))
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("look for", key, error) from error

    def size(self, key: str) -> int:
        try:
            blob = self._bucket.blob(self._name(key))
            blob.reload(timeout=TIMEOUT, retry=RETRY)
            return int(blob.size or 0)
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("look at", key, error) from error

    def delete(self, key: str) -> None:
        try:
            self._bucket.blob(self._name(key)).delete(timeout=TIMEOUT, retry=RETRY)
        except api_errors.NotFound:
            return
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("delete", key, error) from error

    def upload(self, path: Path, key: str) -> None:
        try:
            self._bucket.blob(self._name(key)).upload_from_filename(
                str(path), content_type="application/octet-stream", timeout=TIMEOUT, retry=RETRY
            )
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("write", key, error) from error

    def download(self, key: str, path: Path) -> None:
        try:
            with self._bucket.blob(self._name(key)).open("rb", timeout=TIMEOUT, retry=RETRY) as blob:
                write_atomically(path, iter(lambda: blob.read(1024 * 1024), b""))
        except (api_errors.GoogleAPIError, request_errors.RequestException) as error:
            raise self._explain("read", key, error) from error
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _explain(self, verb: str, key: str, error: Exception) -> StorageError:
        where = f"gs://{self.bucket_name}/{self._name(key)}"
        if isinstance(error, api_errors.NotFound):
            return NotFoundError(f"cannot {verb} {where}: the object or the bucket does not exist")
        if isinstance(error, api_errors.Forbidden | api_errors.Unauthorized):
            return StorageError(f"cannot {verb} {where}: access denied; grant this account the bucket")
        return StorageError(f"cannot {verb} {where}: {error}")
