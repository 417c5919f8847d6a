"""Asking an engine. All its ways to fail come out as `EngineFailed`, with whether asking again makes sense."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from sluice_serving.gateway.errors import ApiError, EngineFailed
from sluice_serving.gateway.reconnecting import Reconnecting

CONNECT_SECONDS = 2.0
ATTEMPTS = 2
"""Tries at the person's version before the first byte, the second at another replica if there is one. Another version
is then tried once."""
VERSIONS = 2
RETRY_PAUSE_SECONDS = 0.05
MAX_ANSWER = 16 << 20
MAX_MESSAGE = 2000
UNAVAILABLE = frozenset({408, 429, 502, 503, 504})
"""Statuses by which Ray Serve, not the model, says that nothing ran: no replica, no room."""
MISSING = frozenset({404, 405, 501})
"""Either Ray Serve has no route, so that nothing runs there, or the engine says that it lacks this endpoint."""
NO_ENDPOINT = frozenset({"Not Found", "Method Not Allowed"})
"""What vLLM's framework says of paths that are not mounted; a model that only embeds has no chat."""
TOO_LONG = ("maximum context length", "maximum model length", "max_model_len")
"""By these vLLM's refusals of a prompt that does not fit can be told from others."""


class RetryBudget:
    """How often an engine may be asked again, so that a failing one is not asked twice as much as a healthy one.

    As in Finagle and Envoy: each request earns a fraction of a retry, up to a reserve that also allows for little
    traffic.
    """

    def __init__(self, share: float = 0.2, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve

    def earn(self) -> None:
        """A request came."""
        self._left = min(self._reserve, self._left + self._share)

    def spend(self) -> bool:
        """Whether one more retry is affordable; if so, it is counted."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Upstream:
    """One connection pool for all engines."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self.reconnecting = Reconnecting()

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

    async def look(self, url: str, seconds: float) -> int | None:
        """The status of a GET, None where there is no answer within so many seconds. The body is left unread."""
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        try:
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
                return response.status
        except (aiohttp.ClientError, OSError):  # among them TimeoutError
            return None

    @asynccontextmanager
    async def ask(
        self, url: str, body: bytes, request_id: str, more: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The engine's response once its status is known to be good. Leaving early closes the connection, which stops
        the engine's work. `more` are further headers. Raises EngineFailed, and ApiError where the engine finds fault
        with the request."""
        assert self._session is not None
        headers = {"content-type": "application/json", "x-request-id": request_id, "accept-encoding": "identity"}
        if more is not None:
            headers |= more
        try:
            try:
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
            except aiohttp.ClientConnectorError as error:
                response = await self._connect_again(url, body, headers, error)
        except TimeoutError as error:  # first: aiohttp's timeouts are connection errors too
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise EngineFailed("cannot reach the engine in time", retriable=True, unavailable=True) from None
            raise EngineFailed("the engine did not answer in time", retriable=False) from None
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            reason = f"cannot reach the engine: {type(error).__name__}"
            raise EngineFailed(reason, retriable=True, unavailable=True) from None
        except aiohttp.ClientError as error:
            raise EngineFailed(f"the engine answered badly: {type(error).__name__}", retriable=True) from None
        try:
            if response.status != 200:
                raise refusal(response.status, await read_answer(response))
            yield response
        finally:
            response.close() if not response.content.at_eof() else response.release()

    async def _connect_again(
        self, url: str, body: bytes, headers: dict[str, str], refused: aiohttp.ClientConnectorError
    ) -> aiohttp.ClientResponse:
        """Nobody took the connection: try again as long as that may be another replica's. Raises `refused`."""
        assert self._session is not None
        for pause in self.reconnecting.pauses(url):
            await asyncio.sleep(pause)
            with suppress(aiohttp.ClientConnectorError):
                return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        raise refused


def refusal(status: int, body: bytes) -> EngineFailed | ApiError:
    """What an answer with such a status means: the engine's failure, or the client's. Pure."""
    error = _error_of(body)
    message = str(error.get("message") or "")
    if status in MISSING and (status == 501 or message in NO_ENDPOINT):
        return ApiError(404, "The model does not support this endpoint.", param="model", code="unsupported_endpoint")
    if status in UNAVAILABLE or status in MISSING:
        return EngineFailed(f"the engine is not available ({status})", retriable=True, unavailable=True)
    if not 400 <= status < 500:
        return EngineFailed(f"the engine failed ({status})", retriable=True)
    if not message:
        return ApiError(status, "The model refused the request.", code="invalid_request")
    too_long = any(text in message for text in TOO_LONG)
    param = error.get("param")
    return ApiError(
        status,
        message[:MAX_MESSAGE],
        param=param if isinstance(param, str) else None,
        code="context_length_exceeded" if too_long else "invalid_request",
    )


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("detail"), str):  # FastAPI's own, which vLLM does not put into its shape
        return {"message": content["detail"]}
    error = content.get("error")
    return error if isinstance(error, dict) else {}


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
        raise EngineFailed(f"the engine broke off: {type(error).__name__}", retriable=True) from None
