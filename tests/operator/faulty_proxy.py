"""Between the operator and the real API server: a proxy that counts requests, breaks them and notices writes."""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
HOP = {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "content-encoding", "accept-encoding"}
MOMENTS = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]+Z|\d{14,}|\"resourceVersion\":\"\d+\"")


class Fault(StrEnum):
    """What can happen to a request."""

    REFUSED = "500"
    DROPPED = "the connection breaks before the request arrives"
    UNANSWERED = "the request is carried out and the connection breaks"
    BUSY = "429 with Retry-After"


@dataclass(frozen=True)
class Call:
    """One request, whenever it is made: times in its body do not count, so that its repetition is the same call."""

    method: str
    path: str
    body: str

    @property
    def writes(self) -> bool:
        return self.method in WRITES


Decide = Callable[[Call, int], Fault | None]
"""From a call and how often it was made before to what befalls it."""
Wrote = Callable[[Call], None]


@dataclass
class Book:
    """What all proxies of a test have seen."""

    calls: Counter[Call] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)

    @property
    def writes(self) -> list[Call]:
        return [call for call in self.calls if call.writes]


class FaultyProxy:
    """One listener on loopback. Use as an asynchronous context manager; `kubeconfig` leads through it."""

    def __init__(
        self, kubeconfig: Path, folder: Path, book: Book, decide: Decide | None = None, wrote: Wrote | None = None
    ) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._config = config
        self._upstream = config["clusters"][0]["cluster"]["server"]
        self.book = book
        self._decide = decide or (lambda _call, _times: None)
        self._wrote = wrote or (lambda _call: None)
        self.kubeconfig = folder / f"proxy-{id(self)}.kubeconfig"
        self.dead = False
        self._open: set[asyncio.Transport] = set()

    async def __aenter__(self) -> "FaultyProxy":
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False, limit=0), timeout=aiohttp.ClientTimeout(), auto_decompress=True
        )
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self._config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
        self.kubeconfig.write_text(yaml.safe_dump(self._config))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.die()
        await self._runner.cleanup()
        await self._http.close()
        await asyncio.sleep(0.01)  # connections that were broken off close in a later turn of the loop

    def die(self) -> None:
        """From now on nobody gets through: what an operator still does after its death does not count."""
        self.dead = True
        for transport in list(self._open):
            transport.abort()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None or self.dead:
            return self._drop(transport)
        body = await request.read()
        call = Call(request.method, request.path_qs, hashlib.sha256(MOMENTS.sub(b"?", body)).hexdigest()[:12])
        times = self.book.calls[call]
        self.book.calls[call] += 1
        fault = self._decide(call, times)
        if fault is not None:
            self.book.faults[fault] += 1
        if fault is Fault.REFUSED:
            return web.json_response({"kind": "Status", "code": 500, "message": "injected"}, status=500)
        if fault is Fault.BUSY:
            answer = {"kind": "Status", "code": 429, "reason": "TooManyRequests", "message": "injected"}
            return web.json_response(answer, status=429, headers={"Retry-After": "1"})
        if fault is Fault.DROPPED:
            return self._drop(transport)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        self._open.add(transport)
        try:
            async with self._http.request(
                request.method, self._upstream + request.path_qs, data=body or None, headers=headers
            ) as answer_:
                if fault is Fault.UNANSWERED:
                    await answer_.read()
                    return self._drop(transport)
                if call.writes and answer_.status < 300:
                    self._wrote(call)
                    if self.dead:
                        return self._drop(transport)
                return await self._pass_on(request, answer_)
        finally:
            self._open.discard(transport)

    async def _pass_on(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """The answer as it comes: watches never end."""
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response

    @staticmethod
    def _drop(transport: asyncio.Transport | None) -> web.StreamResponse:
        if transport is not None:
            transport.abort()
        return web.Response()
