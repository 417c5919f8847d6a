"""The few ASGI messages the gateway sends and reads."""

import asyncio

from starlette.types import Message, Receive, Scope, Send

from sluice_serving.gateway.errors import ApiError

BODY_SECONDS = 30.0
"""How long a client may take to send its request."""
MAX_RECEIVING = 64 << 20
"""Bytes of requests that are not complete yet, of all clients together; a single request may have more."""


class Disconnected(Exception):
    """The client left before its request was complete."""


def header(scope: Scope, name: bytes) -> str:
    """The first header of that (lower-case) name, or an empty text."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""


class Receiving:
    """What lies in memory of requests that are still being sent. Those that are complete are bounded by the queue."""

    def __init__(self) -> None:
        self.bytes = 0


async def read_body(scope: Scope, receive: Receive, limit: int, receiving: Receiving | None = None) -> bytes:
    """The request's body. Raises ApiError 413 as soon as it is too long, 503 where too much is being received at once,
    Disconnected if the client leaves."""
    encoding = header(scope, b"content-encoding")
    if encoding not in {"", "identity"}:
        raise ApiError(415, f"The body's encoding '{encoding[:32]}' is not taken; send plain JSON.",
                       code="unsupported_encoding")  # fmt: skip
    too_large = ApiError(413, f"The request is larger than {limit} bytes.", code="request_too_large")
    length = header(scope, b"content-length")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    receiving = receiving or Receiving()
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk: bytes = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                receiving.bytes += len(chunk)
                if size > limit:
                    raise too_large
                if receiving.bytes > MAX_RECEIVING and receiving.bytes > size:
                    raise ApiError(503, "Too many large requests are being sent at once; try again.", code="overloaded",
                                   retry_after=1.0)  # fmt: skip
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise ApiError(408, f"The request was not complete within {BODY_SECONDS:g} s.", code="timeout") from None
    finally:
        receiving.bytes -= size


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_start(
    send: Send, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]], length: int | None = None
) -> None:
    """Status and headers. Without `length` the body is streamed, and nobody on the way should hold it back."""
    sent = [(b"content-type", content_type), *headers]
    if length is None:
        sent += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    else:
        sent.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": sent})


def closing(send: Send) -> Send:
    """`send` for a server that stops: the client is told to use another connection for its next request."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return send_and_close


async def send_body(send: Send, data: bytes, *, more: bool) -> None:
    """A piece of the body."""
    await send({"type": "http.response.body", "body": data, "more_body": more})
