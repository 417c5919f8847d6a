"""Asking an engine. All its ways to fail come out as `EngineFailed`, with whether asking again is safe."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from sluice_serving.gateway.errors import EngineFailed

CONNECT_SECONDS = 2.0
ATTEMPTS = 2
"""Tries per version before the first byte."""
RETRY_PAUSE_SECONDS = 0.05
MAX_ANSWER = 16 << 20
UNAVAILABLE = frozenset({404, 405, 408, 429, 502, 503, 504})
"""Statuses by which Ray Serve, not the model, says that nothing ran: no replica, no route, no room."""


class Upstream:
    """One connection pool for all engines."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the pool. Its size is no limit: the lanes are."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=5),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def ask(self, url: str, body: bytes, request_id: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """The engine's response once its status is known. Leaving early closes the connection, which stops the engine's
        work. Raises EngineFailed."""
        assert self._session is not None
        headers = {"content-type": "application/json", "x-request-id": request_id, "accept-encoding": "identity"}
        try:
            response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            raise EngineFailed(f"cannot reach the engine: {type(error).__name__}", retriable=True) from None
        except TimeoutError:
            raise EngineFailed("the engine did not answer in time", retriable=False) from None
        except aiohttp.ClientError as error:
            raise EngineFailed(f"the engine answered badly: {type(error).__name__}", retriable=False) from None
        try:
            if response.status in UNAVAILABLE:
                raise EngineFailed(f"the engine is not available ({response.status})", retriable=True)
            if response.status >= 500:
                raise EngineFailed(f"the engine failed ({response.status})", retriable=False)
            yield response
        finally:
            response.close() if not response.content.at_eof() else response.release()


async def read_answer(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises EngineFailed if it breaks off or is absurdly long."""
    chunks, size = [], 0
    async for chunk in chunks_of(response):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER:
            raise EngineFailed(f"the answer has more than {MAX_ANSWER} bytes", retriable=False)
    return b"".join(chunks)


async def chunks_of(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises EngineFailed if it breaks off."""
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except TimeoutError:
        raise EngineFailed("the engine stopped in the middle of its answer", retriable=False) from None
    except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
        raise EngineFailed(f"the engine broke off: {type(error).__name__}", retriable=False) from None
