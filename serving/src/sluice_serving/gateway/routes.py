"""The routing table's way into the gateway: a ConfigMap watched through the API server, or a file.

The last good table stays in force whatever happens to its source.
"""

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import ValidationError
from sluice_contracts.routing import ROUTES_KEY, RoutingTable

logger = logging.getLogger("sluice.gateway")

FILE_POLL_SECONDS = 0.2
WATCH_SECONDS = 290
BACKOFF_SECONDS = (0.2, 10.0)
MAX_LINE = 4 << 20
Accept = Callable[[RoutingTable], None]


class WatchLost(Exception):
    """The watch ended and has to be set up anew."""


def parse_table(text: str | bytes) -> RoutingTable:
    """The table in `text`. Raises ValueError that names the first wrong field."""
    try:
        return RoutingTable.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the table"
        raise ValueError(f"{where}: {first['msg']}") from None


async def follow_file(path: Path, accept: Accept) -> None:
    """Hand each new table in the file to `accept`, until cancelled."""
    last: bytes | None = None
    while True:
        try:
            content = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            if last != b"":
                logger.error("cannot read the routing table %s: %s", path, error.strerror)
            last = b""
        else:
            if content != last:
                last = content
                _offer(content, str(path), accept)
        await asyncio.sleep(FILE_POLL_SECONDS)


class ConfigMapWatch:
    """The table in one ConfigMap, by list and watch, as the service account may."""

    def __init__(self, url: str, namespace: str, name: str, *, token_file: Path, ca_file: Path) -> None:
        self.url = f"{url}/api/v1/namespaces/{namespace}/configmaps"
        self.namespace = namespace
        self.name = name
        self.token_file = token_file
        self.ca_file = ca_file

    async def follow(self, accept: Accept) -> None:
        """Hand each new table to `accept`, until cancelled; reconnects with growing pauses."""
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                async with aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._tls()), read_bufsize=MAX_LINE
                ) as session:
                    version = await self._list(session, accept)
                    pause = BACKOFF_SECONDS[0]
                    while True:
                        version = await self._watch(session, version, accept)
            except (WatchLost, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                logger.warning("watch of ConfigMap %s/%s: %s; again in %.1f s", self.namespace, self.name, error, pause)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(BACKOFF_SECONDS[1], pause * 2)

    async def _list(self, session: aiohttp.ClientSession, accept: Accept) -> str:
        async with session.get(self.url, params=self._selector(), headers=self._headers(), timeout=_timeout(10)) as got:
            await _check(got)
            listing = await got.json()
        for item in listing.get("items") or []:
            self._accept(item, accept)
        return str(listing["metadata"]["resourceVersion"])

    async def _watch(self, session: aiohttp.ClientSession, version: str, accept: Accept) -> str:
        """One watch request; the resource version to go on from when the server ends it."""
        params = self._selector() | {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with session.get(
            self.url, params=params, headers=self._headers(), timeout=_timeout(WATCH_SECONDS + 30)
        ) as got:
            await _check(got)
            async for event in _events(got):
                kind, item = event.get("type"), event.get("object") or {}
                if kind == "ERROR":
                    raise WatchLost(str(item.get("message") or item))
                version = str(item["metadata"]["resourceVersion"])
                if kind in {"ADDED", "MODIFIED"}:
                    self._accept(item, accept)
                elif kind == "DELETED":
                    logger.warning("ConfigMap %s/%s was deleted; keeping its last table", self.namespace, self.name)
        return version

    def _accept(self, item: dict[str, Any], accept: Accept) -> None:
        text = (item.get("data") or {}).get(ROUTES_KEY)
        source = f"ConfigMap {self.namespace}/{self.name}"
        if text is None:
            logger.error("%s has no key %s; keeping the table in force", source, ROUTES_KEY)
        else:
            _offer(text, source, accept)

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self.name}"}

    def _headers(self) -> dict[str, str]:
        # Read each time: the kubelet renews the token while the pod lives.
        try:
            return {"authorization": f"Bearer {self.token_file.read_text().strip()}"}
        except FileNotFoundError:
            return {}

    def _tls(self) -> ssl.SSLContext | bool:
        if self.url.startswith("https://") and self.ca_file.exists():
            return ssl.create_default_context(cafile=str(self.ca_file))
        return True


def _offer(text: str | bytes, source: str, accept: Accept) -> None:
    try:
        table = parse_table(text)
    except ValueError as error:
        logger.error("%s: %s; keeping the table in force", source, error)
    else:
        accept(table)


def _timeout(total: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total, sock_connect=5)


async def _check(got: aiohttp.ClientResponse) -> None:
    if got.status != 200:
        raise WatchLost(f"the API server answered {got.status}: {(await got.text())[:200]}")


async def _events(got: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    while line := await got.content.readline():
        yield json.loads(line)
