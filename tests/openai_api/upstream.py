"""A stand-in for vLLM that answers every endpoint and shows what it was asked. It runs in a thread of its own."""

import asyncio
import base64
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from sluice_devcluster.ports import free_port

MODEL = "support-bot"
WORDS = ["All", " is", " well", ".", " Good", " night", "."]
ARGUMENTS = '{"city": "Oslo"}'
JSON_ANSWER = '{"mood": "calm"}'
Events = list[tuple[str | None, dict[str, Any] | str]]


class Upstream:
    """Its answers depend on the request alone, as a model's at temperature 0 do."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.running = 0
        self.aborted = 0
        self.word_delay = 0.0
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def serving(self) -> Iterator["Upstream"]:
        self._thread.start()
        assert self._ready.wait(20), "the stand-in did not start"
        try:
            yield self
        finally:
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(20)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        for path, handler in (
            ("/v1/chat/completions", self._chat),
            ("/v1/completions", self._text),
            ("/v1/embeddings", self._embeddings),
            ("/v1/responses", self._responses),
        ):
            app.router.add_post(path, handler)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.requests.append((request.path, body))
        return body

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        words, reason = _words(body, body.get("max_completion_tokens") or body.get("max_tokens"))
        message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
        if body.get("tools"):
            call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
            message, reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
        elif (body.get("response_format") or {}).get("type") in {"json_object", "json_schema"}:
            message["content"] = JSON_ANSWER
        usage = _usage(words)
        logprobs = _logprobs(words, body.get("top_logprobs", 0)) if body.get("logprobs") else None
        if not body.get("stream"):
            choices = [
                {"index": i, "message": message, "finish_reason": reason, "logprobs": logprobs}
                for i in range(body.get("n", 1))
            ]
            return web.json_response(_object("chat.completion") | {"choices": choices, "usage": usage})
        if body.get("tools"):
            pieces = [
                {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
            ]
            pieces += [{"index": 0, "function": {"arguments": part}} for part in (ARGUMENTS[:5], ARGUMENTS[5:])]
            deltas: list[dict[str, Any]] = [{"tool_calls": [piece]} for piece in pieces]
        else:
            deltas = [{"content": word} for word in words]
        deltas[0] = {"role": "assistant"} | deltas[0]
        events: Events = []
        for i, delta in enumerate(deltas):
            choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None}
            if logprobs is not None:
                choice["logprobs"] = {"content": [logprobs["content"][i]]}
            choice["finish_reason"] = reason if i == len(deltas) - 1 else None
            events.append((None, _object("chat.completion.chunk") | {"choices": [choice]}))
        return await self._stream(request, body, events, usage)

    async def _text(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        words, reason = _words(body, body.get("max_tokens"))
        usage = _usage(words)
        if body.get("stream"):
            events: Events = []
            for i, word in enumerate(words):
                choice = {"index": 0, "text": word, "logprobs": None, "finish_reason": None}
                choice["finish_reason"] = reason if i == len(words) - 1 else None
                events.append((None, _object("text_completion") | {"choices": [choice]}))
            return await self._stream(request, body, events, usage)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        choices = [
            {"index": i, "text": "".join(words), "finish_reason": reason, "logprobs": None} for i in range(len(prompts))
        ]
        return web.json_response(_object("text_completion") | {"choices": choices, "usage": usage})

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors: list[Any] = [[float(i), 0.5, -1.0] for i in range(len(texts))]
        if body.get("encoding_format") == "base64":  # what OpenAI's clients ask for unless told otherwise
            vectors = [base64.b64encode(struct.pack("<3f", *v)).decode() for v in vectors]
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": 4, "total_tokens": 4}
        return web.json_response({"object": "list", "model": MODEL, "data": data, "usage": usage})

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        words, reason = _words(body, body.get("max_output_tokens"))
        text = "".join(words)
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {
            "input_tokens": 7, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": len(words),
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7 + len(words),
        }  # fmt: skip
        cut = reason == "length"
        whole = {
            "id": "resp_1", "object": "response", "created_at": 1, "model": MODEL, "output": [item], "usage": usage,
            "status": "incomplete" if cut else "completed", "parallel_tool_calls": True, "tool_choice": "auto",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "tools": [],
        }  # fmt: skip
        if not body.get("stream"):
            return web.json_response(whole)
        begun = whole | {"output": [], "status": "in_progress", "usage": None, "incomplete_details": None}
        where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        events: Events = [("response.created", {"response": begun})]
        events += [("response.output_text.delta", {"delta": word, "logprobs": [], **where}) for word in words]
        events.append((f"response.{whole['status']}", {"response": whole}))
        named: Events = [
            (name, {"type": name, "sequence_number": i} | content)  # type: ignore[operator]
            for i, (name, content) in enumerate(events)
        ]
        return await self._stream(request, body, named, None)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], events: Events, usage: dict[str, int] | None
    ) -> web.StreamResponse:
        if usage is not None:
            if (body.get("stream_options") or {}).get("include_usage"):
                events.append((None, _object("chat.completion.chunk") | {"choices": [], "usage": usage}))
            events.append((None, "[DONE]"))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        self.running += 1
        try:
            await response.prepare(request)
            for name, content in events:
                data = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
                head = f"event: {name}\n" if name else ""
                await response.write(f"{head}data: {data}\n\n".encode())
                await asyncio.sleep(self.word_delay)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1
        return response


def _object(kind: str) -> dict[str, Any]:
    return {"id": "x-1", "object": kind, "created": 1, "model": MODEL}


def _usage(words: list[str]) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}


def _words(body: dict[str, Any], limit: int | None) -> tuple[list[str], str]:
    """The answer's tokens and why it ends there."""
    words = WORDS[:limit]
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop in "".join(words):
            return [word for word in ["".join(words).partition(stop)[0]] if word], "stop"
    return words, "stop" if len(words) == len(WORDS) else "length"


def _logprobs(words: list[str], top: int) -> dict[str, Any]:
    tokens = [{"token": w, "logprob": -0.5, "bytes": list(w.encode())} for w in words]
    return {"content": [token | {"top_logprobs": [token] * top} for token in tokens]}
