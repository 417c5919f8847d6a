"""Sends consented signal batches: the puller's one way out, and it only ever sees counts."""

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import httpx

from sluice_edge import durable
from sluice_edge.errors import ConfigurationError, FetchError
from sluice_edge.pull.fetch import ATTEMPTS, CONNECT_SECONDS, GAP_SECONDS, pause


def upload(batch: Path, destination: str, *, endpoint: str, proxy: str | None, token: str | None) -> str:
    """Put one batch file below `destination`; return where it lies. Sending a batch that is there already is a success:
    its random id is its name.

    destination: `gs://bucket/prefix` (through the JSON API at `endpoint`; `token` is a bearer token if it wants one),
    `https://…/` (a plain PUT below it) or `file:///folder`. Raises FetchError, ConfigurationError, StorageFullError.
    """
    data = batch.read_bytes()
    if destination.startswith("file:///"):
        target = Path(unquote(urlsplit(destination).path)) / batch.name
        durable.write(target, data, 0o644)
        return f"file://{target}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if destination.startswith("gs://"):
        bucket, _, prefix = destination.removeprefix("gs://").partition("/")
        name = "/".join(part for part in (prefix.strip("/"), batch.name) if part)
        url = (
            f"{endpoint.rstrip('/')}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
            f"?uploadType=media&ifGenerationMatch=0&name={quote(name, safe='')}"
        )
        _send("POST", url, data, headers, proxy, exists=412)
        return f"gs://{bucket}/{name}"
    if destination.startswith(("https://", "http://")):
        url = f"{destination.rstrip('/')}/{batch.name}"
        _send("PUT", url, data, headers, proxy, exists=409)
        return url
    raise ConfigurationError(
        f"cannot upload to {destination!r}: use gs://bucket/prefix, https://host/path or file:///…"
    )


def _send(method: str, url: str, data: bytes, headers: dict[str, str], proxy: str | None, *, exists: int) -> None:
    timeout = httpx.Timeout(GAP_SECONDS, connect=CONNECT_SECONDS)
    where = url.partition("?")[0]
    with httpx.Client(timeout=timeout, trust_env=False, proxy=proxy, follow_redirects=False) as client:
        for attempt in range(ATTEMPTS):
            last = attempt + 1 == ATTEMPTS
            try:
                response = client.request(
                    method, url, content=data, headers={"Content-Type": "application/json", **headers}
                )
            except httpx.TransportError as error:
                if last:
                    raise FetchError(
                        f"cannot send to {where}: {error or type(error).__name__}; try again later"
                    ) from error
            else:
                code = response.status_code
                if code in {200, 201, 204, exists}:
                    return
                if code < 500 and code != 429:
                    raise FetchError(f"cannot send to {where}: status {code} (is the bucket there, and may you write?)")
                if last:
                    raise FetchError(f"cannot send to {where}: status {code}; try again later")
            pause(attempt)
