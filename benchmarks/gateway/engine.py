"""A stand-in for an engine, far faster than what is measured: it speaks just enough HTTP/1.1 and OpenAI's API.

A fake: a real engine would be the bottleneck long before any proxy. Answers have the sizes of vLLM's. Run as a process:
`python -m benchmarks.gateway.engine PORT --delay-ms 20 --interval-ms 20`. `max_tokens` of the request is how many
events a stream has; each is written by itself, `interval` after the one before.
"""

import argparse
import asyncio
import json
import random
from collections import deque
from collections.abc import Callable
from typing import cast

import uvloop

WHOLE = json.dumps(
    {
        "id": "chatcmpl-0f3e5a7b9c1d4e6f8a0b2c4d6e8f0a1b",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The parcel leaves our house tomorrow morning. " * 4},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 42, "total_tokens": 74, "completion_tokens": 32, "prompt_tokens_details": None},
    },
    separators=(",", ":"),
).encode()


def event(delta: dict[str, str], reason: str | None = None) -> bytes:
    """A chunk of the body that holds one event."""
    content = {
        "id": "chatcmpl-0f3e5a7b9c1d4e6f8a0b2c4d6e8f0a1b",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": "bench",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
    }
    data = b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
    return chunk(data)


def chunk(data: bytes) -> bytes:
    """HTTP's framing of a piece of a body of unknown length."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = event({"role": "assistant", "content": ""})
TOKEN = event({"content": " parcel"})
USAGE = (
    b'data: {"id":"chatcmpl-0f3e5a7b9c1d4e6f8a0b2c4d6e8f0a1b","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"bench","choices":[],"usage":{"prompt_tokens":42,"total_tokens":74,"completion_tokens":32}}\n\n'
)
END = event({"content": ""}, "stop") + chunk(USAGE) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Slots:
    """Places for whole answers, with a line before them that has no end, as most engines have."""

    def __init__(self, count: int, seconds: float) -> None:
        self.free, self.seconds = count, seconds
        self.chance = random.Random(0)
        self.line: deque[Callable[[], None]] = deque()

    def enter(self, answer: Callable[[], None]) -> None:
        """Call `answer` after its time in a place."""
        if self.free:
            self.free -= 1
            # Answers differ in length. If all took the same, places would become free in bursts, for ever in step.
            seconds = self.seconds * self.chance.uniform(0.5, 1.5)
            asyncio.get_running_loop().call_later(seconds, self._leave, answer)
        else:
            self.line.append(answer)

    def _leave(self, answer: Callable[[], None]) -> None:
        answer()
        self.free += 1
        if self.line:
            self.enter(self.line.popleft())


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self, slots: Slots, interval: float) -> None:
        self.slots, self.interval = slots, interval
        self.loop = asyncio.get_running_loop()
        self.data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers go to."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side left."""
        self.transport = None

    def data_received(self, data: bytes) -> None:
        """Answer once a request is complete; there is one at a time."""
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self.data = b""
            self._write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
            return
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            if not body.endswith(b"0\r\n\r\n"):
                return
            body = b"".join(body.split(b"\r\n")[1:-3:2])
        else:
            length = int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(body) < length:
                return
        self.data = b""
        if b'"stream": true' in body or b'"stream":true' in body:
            self._write(STREAM_HEAD + FIRST)
            self._stream(int(json.loads(body).get("max_tokens", 16)), self.loop.time())
        elif self.slots.seconds:
            self.slots.enter(lambda: self._write(HEAD + WHOLE))
        else:
            self._write(HEAD + WHOLE)

    def _stream(self, left: int, due: float) -> None:
        if self.transport is None:
            return
        if left == 0:
            self._write(END)
            return
        self._write(TOKEN)
        due += self.interval
        self.loop.call_at(due, self._stream, left - 1, due)

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)


async def serve(port: int, slots: int, delay: float, interval: float) -> None:
    """Answer until the process is stopped."""
    loop = asyncio.get_running_loop()
    places = Slots(slots, delay)
    server = await loop.create_server(lambda: Engine(places, interval), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument(
        "--delay-ms", type=float, default=0, help="what an answer that is no stream takes: half to one and a half of it"
    )
    parser.add_argument("--slots", type=int, default=1_000_000, help="how many of those at a time; others wait")
    parser.add_argument("--interval-ms", type=float, default=20, help="between the events of a stream")
    given = parser.parse_args()
    uvloop.run(serve(given.port, given.slots, given.delay_ms / 1000, given.interval_ms / 1000))


if __name__ == "__main__":
    main()
