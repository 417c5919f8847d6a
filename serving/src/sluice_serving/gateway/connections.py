"""What one connection may do before there is a request to judge: uvicorn's protocol with the bounds it lacks.

httptools collects a head for as long as one is sent, and uvicorn has no clock for it: a stranger without a key could
fill the memory or hold connections open for ever. Here a head has a size and a time, and so has what comes after an
answer that did not wait for the whole request. In the usual case, a whole request in one piece, this costs a few
comparisons.
"""

import re
from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sluice_serving.gateway.asgi import BODY_SECONDS
from sluice_serving.gateway.errors import ApiError

MAX_HEAD = 64 << 10
"""Bytes of a request's line and headers. nginx takes 32 KiB (large_client_header_buffers), Go a MiB."""
HEAD_SECONDS = 30.0
"""How long a head may take to arrive."""
MAX_CONNECTIONS = 8192
"""Of one gateway, at about 10 KB each. Far more than can be served: what is above has only filled the memory."""
END = b"\r\n\r\n"
UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)

IDLE, HEAD, BODY = range(3)
"""What a connection is in the middle of receiving."""


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiving = IDLE
        self._head_bytes = 0
        self._tail = b""
        """The end of the head so far: the blank line may come in two pieces."""
        self._deadline: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first request is awaited from here on."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(ApiError(503, "The gateway has as many connections as it takes; try again.",
                                  code="too_many_connections", retry_after=1.0))  # fmt: skip
            return
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there to be waited for."""
        self._cancel()
        self._unset_keepalive_if_required()  # uvicorn leaves it where the connection broke
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Judge the head before httptools collects it."""
        if self._receiving != BODY:
            total = self._head_bytes + len(data)
            if total > MAX_HEAD and self._head_too_large(data):
                self._refuse(ApiError(431, f"The request's line and headers have more than {MAX_HEAD} bytes.",
                                      code="headers_too_large"))  # fmt: skip
                return
            self._head_bytes = total
            if b"pgrade" in data or b"PGRADE" in data:
                data = without_upgrade(data)
        super().data_received(data)
        if self._receiving == HEAD or (self._receiving == IDLE and self._waits):
            self._tail = (self._tail + data)[-3:]
            if self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._receiving = HEAD

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._receiving, self._head_bytes, self._tail = BODY, 0, b""
        if self._deadline is not None:
            self._cancel()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._receiving, self._head_bytes = IDLE, 0
        if self._deadline is not None:
            self._cancel()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request may be answered before it has come in whole; the rest of it is read, but not for ever."""
        super().on_response_complete()
        if self._receiving == BODY and self._deadline is None:
            self._deadline = self.loop.call_later(BODY_SECONDS, self._too_late)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in the API's shape too."""
        self._refuse(ApiError(400, msg, code="invalid_http"))

    @property
    def _waits(self) -> bool:
        """Whether no request is being answered on this connection."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _head_too_large(self, data: bytes) -> bool:
        end = (self._tail + data).find(END)
        return end < 0 or self._head_bytes + end > MAX_HEAD

    def _too_late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._waits:
            self.transport.close()
        else:  # the head of a request that was sent ahead; the answer before it goes first
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, error: ApiError) -> None:
        body = error.encoded()
        headers = [*error.headers(), (b"content-type", b"application/json"), (b"connection", b"close"),
                   (b"content-length", str(len(body)).encode())]  # fmt: skip
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        self.transport.close()


def without_upgrade(data: bytes) -> bytes:
    """The beginning of a request, with its wish for another protocol made void, as RFC 9110 (7.8) allows.

    httptools would take what follows for that protocol and lose the body. Java's own HTTP client wishes for HTTP/2 on
    its first request.
    """
    end = data.find(END)
    head = data if end < 0 else data[:end]
    return UPGRADE.sub(b"\r\nx-ignored-upgrade:", head) + data[len(head) :]
