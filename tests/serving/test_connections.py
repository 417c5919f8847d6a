"""What a connection may do before there is a request to judge, and HTTP as clients really speak it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sluice_serving.gateway import connections
from sluice_serving.gateway.connections import MAX_HEAD, without_upgrade

KEY = "sk-test-5f1c2d"
CHAT = json.dumps({"model": "support-bot", "messages": [{"role": "user", "content": "hi"}]}).encode()


def request(*headers: str, body: bytes = CHAT, line: str = "POST /v1/chat/completions HTTP/1.1") -> bytes:
    lines = [line, "Host: gateway", f"Authorization: Bearer {KEY}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Wire:
    """A connection to the gateway, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer that has a length, whole."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
            return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def error(self) -> tuple[int, str]:
        status, _, body = await self.answer()
        return status, json.loads(body)["error"]["code"]

    async def closed(self) -> bool:
        async with asyncio.timeout(20):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True


@pytest.fixture
async def wire(gateway: Any, engines: Any, served: Any) -> AsyncIterator[Any]:
    """Opens connections to a gateway that has an engine."""
    await gateway.route(served(await engines()))
    opened: list[Wire] = []

    async def connect() -> Wire:
        opened.append(Wire(*await asyncio.open_connection("127.0.0.1", gateway.settings.port)))
        return opened[-1]

    yield connect
    for one in opened:
        one.writer.close()


async def test_a_head_has_a_size(wire: Any) -> None:
    large = await wire()
    await large.send(request(f"x: {'a' * MAX_HEAD}", body=b""))
    assert await large.error() == (431, "headers_too_large")
    assert await large.closed()
    endless = await wire()
    await endless.send(b"GET /v1/models HTTP/1.1\r\n", *[b"x: " + b"a" * 2000 + b"\r\n"] * (MAX_HEAD // 2000 + 1))
    assert await endless.error() == (431, "headers_too_large")
    fits = await wire()
    await fits.send(request(f"x: {'a' * (MAX_HEAD - 1000)}", body=CHAT + b" " * MAX_HEAD))
    assert (await fits.answer())[0] == 200
    split = await wire()  # the blank line in two pieces, and a large body behind it
    head, body = request(body=CHAT + b" " * MAX_HEAD).split(b"\r\n\r\n")
    await split.send(head + b"\r\n\r")
    await asyncio.sleep(0.05)
    await split.send(b"\n" + body)
    assert (await split.answer())[0] == 200


async def test_who_begins_no_request_is_not_waited_for(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    for sent in (b"", b"\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"):
        one = await wire()
        await one.send(sent)
        assert await one.closed()


async def test_there_are_only_so_many_connections(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    first, second = [await wire() for _ in range(2)]
    await second.send(request())
    assert (await second.answer())[0] == 200
    assert await (await wire()).error() == (503, "too_many_connections")
    second.writer.close()
    await first.send(request(), request("Connection: close"))
    assert [(await first.answer())[0] for _ in range(2)] == [200, 200]
    assert await first.closed()
    again = await wire()
    await again.send(request())
    assert (await again.answer())[0] == 200


async def test_what_comes_after_an_early_answer_is_not_read_for_ever(
    wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.2)
    one = await wire()
    await one.send(request(body=b"").replace(KEY.encode(), b"wrong").replace(b"Length: 0", b"Length: 1000000") + b"x")
    assert await one.error() == (401, "invalid_api_key")  # without waiting for the rest
    assert await one.closed()
    whole = await wire()
    await whole.send(request(body=b"x" * (2 << 20)))  # one that sends it all may go on
    assert await whole.error() == (413, "request_too_large")
    await whole.send(request())
    assert (await whole.answer())[0] == 200


async def test_what_is_half_sent_is_bounded_for_all_clients_together(
    wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_serving.gateway.asgi.MAX_RECEIVING", 1_000_000)
    both = [await wire(), await wire()]
    for one in both:
        await one.send(request(body=CHAT + b" " * 900_000)[:-300_000])
    refusals = [asyncio.create_task(one.error()) for one in both]
    (refused,), (taken,) = await asyncio.wait(refusals, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    assert refused.result() == (503, "overloaded")
    taken.cancel()
    await asyncio.gather(taken, return_exceptions=True)
    other = both[refusals.index(taken)]
    await other.send(b" " * 300_000)
    assert (await other.answer())[0] == 200
    whole = await wire()  # nothing is left behind in the count
    await whole.send(request(body=CHAT + b" " * 900_000))
    assert (await whole.answer())[0] == 200


async def test_requests_that_are_sent_ahead_are_answered_in_turn(wire: Any, gateway: Any) -> None:
    one = await wire()
    models = request(body=b"", line="GET /v1/models HTTP/1.1")
    await one.send(request() + models + request(body=b"{}") + models[:20])
    assert [(await one.answer())[0] for _ in range(3)] == [200, 200, 400]
    await one.send(models[20:])
    assert (await one.answer())[0] == 200


async def test_a_wish_for_another_protocol_is_ignored_and_the_body_kept(wire: Any) -> None:
    one = await wire()
    for wish in ("h2c", "websocket"):
        upgrade = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {wish}", "HTTP2-Settings: AAEAAEAAAAIAAAABAAM")
        await one.send(request(*upgrade))
        assert (await one.answer())[0] == 200
    await one.send(request(*upgrade, body=b"", line="GET /v1/chat/completions HTTP/1.1"))
    assert await one.error() == (405, "method_not_allowed")


def test_only_a_header_is_a_wish() -> None:
    head, body = b"POST / HTTP/1.1\r\nUPGRADE : h2c\r\nx-upgrade: a", b"\r\n\r\nsay\r\nupgrade: now"
    assert without_upgrade(head + body) == head.replace(b"UPGRADE :", b"x-ignored-upgrade:") + body


NO_REQUESTS: list[tuple[bytes, tuple[int, str]]] = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting", (400, "invalid_http")),
    (request("Content-Length: 5"), (400, "invalid_http")),
    (request("Transfer-Encoding: chunked"), (400, "invalid_http")),  # else two readers may disagree where it ends
    (request(line="GET /v1/models HTTP/1.1\r\nAuthorization: Basic eDp5"), (401, "missing_api_key")),
    (request(line="POST /v1/chat/completions/ HTTP/1.1"), (404, "unknown_url")),
    (request(line="OPTIONS /v1/chat/completions HTTP/1.1\r\nOrigin: https://x.org"), (405, "method_not_allowed")),
]


async def test_what_is_no_right_request_is_refused_in_the_apis_shape(wire: Any) -> None:
    for sent, expected in NO_REQUESTS:
        one = await wire()
        await one.send(sent)
        status, headers, body = await one.answer()
        error = json.loads(body)["error"]
        assert (status, error["code"]) == expected
        assert error.keys() == {"message", "type", "param", "code"}
        assert not any(name.startswith("access-control") for name in headers)  # no page in a browser may use a key


async def test_older_and_cautious_clients_are_served(wire: Any) -> None:
    old = await wire()
    await old.send(request(line="POST http://gateway/v1/chat/completions HTTP/1.0"))
    assert (await old.answer())[0] == 200
    assert await old.closed()
    cautious = await wire()
    head, body = request("Expect: 100-continue").split(b"\r\n\r\n")
    await cautious.send(head + b"\r\n\r\n")
    async with asyncio.timeout(20):
        assert await cautious.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await cautious.send(body)
    assert (await cautious.answer())[0] == 200
    piecemeal = await wire()
    head = request("Transfer-Encoding: chunked").replace(f"Content-Length: {len(CHAT)}\r\n".encode(), b"")
    await piecemeal.send(head.split(b"\r\n\r\n")[0] + b"\r\n\r\n", *(b"1\r\n%c\r\n" % c for c in CHAT), b"0\r\n\r\n")
    assert (await piecemeal.answer())[0] == 200
