"""What users say, who they are and what they prove it with is in no log line, metric or error, whatever goes wrong."""

import json
import logging
from typing import Any

import pytest
from aiohttp import web
from sluice_serving.gateway.log_lines import JsonLines

SECRET = "s3cr3t"
"""Stands in everything a client or an engine says."""
MODEL = "support-bot"


class Lines(logging.Handler):
    """The log as the gateway writes it, of every library and down to debugging."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonLines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Any:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


async def says_it_in_an_error(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": f"cannot run {SECRET}"}}, status=500)


async def says_it_in_nonsense(_: web.Request) -> web.StreamResponse:
    return web.Response(body=f'{{"choices": "{SECRET}'.encode(), content_type="application/json")


async def says_it_and_breaks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    event = {"choices": [{"index": 0, "delta": {"content": SECRET}, "finish_reason": None}]}
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await response.write(b'data: {"error": {"message": "' + SECRET.encode() + b'"}}\n\n')
    assert request.transport is not None
    request.transport.close()
    return response


async def test_no_secret_and_no_content_is_logged_counted_or_told(
    gateway: Any, engines: Any, served: Any, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await engines(SECRET)
    answer = engine._answer
    await gateway.route(served(engine))
    tool = {"type": "function", "function": {"name": SECRET, "parameters": {"type": SECRET}}}
    said: dict[str, Any] = {
        "messages": [{"role": "user", "content": SECRET}], "user": SECRET, "metadata": {SECRET: SECRET}, "stop": SECRET,
        "tools": [tool], "response_format": {"type": "json_schema", "json_schema": {"name": SECRET, "schema": {}}},
    }  # fmt: skip
    headers = {"x-session-id": SECRET, "cookie": SECRET, "user-agent": SECRET, "x-sluice-record": "none"}
    told: list[str] = []

    async def ask(**more: Any) -> int:
        async with gateway.chat(headers=headers, **said | more) as got:
            if got.status != 200:
                told.append(await got.text())
            else:
                await got.read()
            return int(got.status)

    assert await ask() == await ask(stream=True) == 200
    for wrong in (says_it_in_an_error, says_it_in_nonsense, says_it_and_breaks):

        async def instead(request: web.Request, _: Any, wrong: Any = wrong) -> web.StreamResponse:
            response: web.StreamResponse = await wrong(request)
            return response

        engine._answer = instead
        await ask(stream=wrong is says_it_and_breaks)
    engine._answer = answer
    with monkeypatch.context() as patch:

        def mistaken(*_: Any) -> None:
            raise ValueError(f"invalid literal: {SECRET}")

        patch.setattr("sluice_serving.gateway.service.read_counts", mistaken)
        assert await ask() == 500
    assert await ask(messages=[{"role": SECRET}]) == 400
    assert await ask(key=f"sk-{SECRET}") == 401
    assert await ask(key=f"e{SECRET}.e{SECRET}.{SECRET}") == 401
    raw = [f'{{"model": "{SECRET}', f'{{"{SECRET}": "\\ud800"}}', f"\x00{SECRET}"]
    for body in raw:
        async with gateway.session.post(
            f"{gateway.url}/v1/chat/completions?{SECRET}", data=body, headers={"authorization": "Bearer sk-test-5f1c2d"}
        ) as got:
            assert got.status == 400
            assert "\\ud800" in body or SECRET not in await got.text()
    engine.port = 1
    await engine.stop()
    assert await ask() == 503
    assert len(log.lines) > 5
    assert [line for line in log.lines if SECRET in line or "sk-test" in line] == []
    seen = await gateway.metrics() + json.dumps(await gateway.analysis())
    assert "sluice_requests_total" in seen
    assert SECRET not in seen
    assert [text for text in told if SECRET in text] == []
