"""A gateway in this process, and stand-ins for what lies behind it."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from sluice_contracts.routing import Backend, RoutingLimits, RoutingTable
from sluice_devcluster.ports import free_port
from sluice_serving.gateway.main import serve
from sluice_serving.gateway.settings import Settings

MODEL = "support-bot"
KEY = "sk-test-5f1c2d"


async def until(condition: Callable[[], Any], what: str, seconds: float = 5.0) -> None:
    """Wait for a condition, awaitable or not, with a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


class FakeEngine:
    """Speaks the OpenAI API like vLLM behind Ray Serve, with knobs for what can go wrong."""

    def __init__(self, says: str = "Hello there , friend !") -> None:
        self.words = says.split(" ")
        self.status = 200
        self.first_delay = 0.0
        self.word_delay = 0.0
        self.break_after: int | None = None
        """Close the connection after so many words."""
        self.hold: asyncio.Event | None = None
        """Answer only once this is set."""
        self.asleep: asyncio.Event | None = None
        """A replica is up only once this is set."""
        self.questions = 0
        """GETs of /v1/models."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.most_running = 0
        self.aborted = 0
        self.port = free_port()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, _: web.Request) -> web.Response:
        """Answers once a replica is up, as Ray Serve lets it."""
        self.questions += 1
        if self.asleep is not None:
            await self.asleep.wait()
        return web.json_response({"object": "list", "data": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.hold is not None:
            await self.hold.wait()
        await asyncio.sleep(self.first_delay)
        if self.status != 200:
            error = {"message": "the engine says no", "type": "BadRequestError", "param": None, "code": self.status}
            return web.json_response({"error": error}, status=self.status)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        words, name = self.words[:limit], body["model"]
        reason = "stop" if len(words) == len(self.words) else "length"
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
        chat = request.path.endswith("chat/completions")
        if not body.get("stream"):
            choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
            choice |= (
                {"message": {"role": "assistant", "content": " ".join(words)}} if chat else {"text": "".join(words)}
            )
            kind = "chat.completion" if chat else "text_completion"
            return web.json_response(
                {"id": "x", "object": kind, "created": 1, "model": name, "choices": [choice], "usage": usage},
                dumps=lambda answer: json.dumps(answer, separators=(",", ":")),
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for i, word in enumerate(words):
            if self.break_after == i:
                assert request.transport is not None
                request.transport.close()
                return response
            last = i == len(words) - 1
            await self._event(response, name, self._choice(chat, word + " ", reason if last else None))
            await asyncio.sleep(self.word_delay)
        if (body.get("stream_options") or {}).get("include_usage"):
            await self._event(response, name, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    @staticmethod
    def _choice(chat: bool, text: str, reason: str | None) -> dict[str, Any]:
        content = {"delta": {"content": text}} if chat else {"text": text}
        return {"choices": [{"index": 0, "logprobs": None, "finish_reason": reason, **content}]}

    @staticmethod
    async def _event(response: web.StreamResponse, model: str, content: dict[str, Any]) -> None:
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model, **content}
        await response.write(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")


def backend(name: str, url: str, weight: int, **more: Any) -> Backend:
    digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    return Backend(
        model_version=name, lineage=f"lineage-of-{name}", manifest_digest=digest, url=url, weight=weight, **more
    )


@dataclass
class RunningGateway:
    """A gateway and the files it reads."""

    folder: Path
    settings: Settings
    stop: asyncio.Event
    task: "asyncio.Task[None]"
    session: aiohttp.ClientSession
    table: RoutingTable | None = None
    clients: list[openai.AsyncOpenAI] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def internal(self) -> str:
        return f"http://127.0.0.1:{self.settings.internal_port}"

    async def route(self, *backends: Backend, **more: Any) -> None:
        """Put a table in force and wait until it is."""
        limits = more.pop("limits", RoutingLimits())
        window = more.pop("window", f"w{time.monotonic_ns()}")
        self.table = RoutingTable(
            pool="pool", namespace="ns", model=MODEL, window=window, backends=list(backends), limits=limits, **more
        )
        path = self.folder / "routes.json"
        path.with_suffix(".new").write_bytes(self.table.canonical())
        path.with_suffix(".new").replace(path)

        async def in_force() -> bool:
            if (await self.analysis())["window"] != window:
                return False
            # Answers are kept once it is known who was forgotten.
            return self.table is None or self.table.cache is None or "sluice_cache_current 1.0" in await self.metrics()

        await until(in_force, "the table is in force")

    async def analysis(self) -> dict[str, Any]:
        async with self.session.get(f"{self.internal}/analysis") as got:
            assert got.status == 200
            content: dict[str, Any] = await got.json()
            return content

    async def metrics(self) -> str:
        async with self.session.get(f"{self.internal}/metrics") as got:
            return await got.text()

    def openai(self, key: str = KEY) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=10)
        self.clients.append(client)
        return client

    def chat(self, *, key: str = KEY, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """A raw request, for what no client would send."""
        content = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]} | body
        sent = {"authorization": f"Bearer {key}"} | (headers or {})
        return self.session.post(f"{self.url}/v1/chat/completions", json=content, headers=sent)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        self.stop.set()
        await self.task


StartGateway = Callable[..., Any]


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Starts gateways with chosen settings; all are stopped at the end."""
    running: list[RunningGateway] = []
    async with aiohttp.ClientSession() as session:

        async def start(**chosen: Any) -> RunningGateway:
            folder = tmp_path / f"gateway{len(running)}"
            keys = folder / "keys"
            keys.mkdir(parents=True)
            (keys / "acme").write_text(KEY + "\n")
            values: dict[str, Any] = {
                "keys_dir": keys,
                "database_url": f"sqlite:///{folder}/interactions.db",
                "host": "127.0.0.1",
                "port": free_port(),
                "internal_port": free_port(),
                "probe_seconds": 1.0,
                "drain_delay": 0.0,
                "drain_seconds": 5.0,
            }
            if "database_url" in chosen:
                values["spool_dir"] = folder / "spool"  # beside no file, it would be the machine's one place
            if "routes_config_map" not in chosen:
                values["routes_file"] = folder / "routes.json"
            settings = Settings(**values | chosen)
            stop = asyncio.Event()
            task = asyncio.create_task(serve(settings, stop))
            gateway = RunningGateway(folder, settings, stop, task, session)
            running.append(gateway)

            async def answers() -> bool:
                assert not task.done(), task.exception()
                try:
                    async with session.get(f"{gateway.internal}/healthz") as got:
                        return bool(got.status == 200)
                except aiohttp.ClientConnectionError:
                    return False

            await until(answers, "the gateway answers")
            return gateway

        yield start
        for gateway in running:
            await gateway.close()


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    """One gateway with an SQLite database and no routes yet."""
    running: RunningGateway = await start_gateway()
    return running


@pytest.fixture
async def engines() -> AsyncIterator[Callable[..., Any]]:
    """Starts fake engines; all are stopped at the end."""
    running: list[FakeEngine] = []

    async def start(*args: Any, **kwargs: Any) -> FakeEngine:
        engine = FakeEngine(*args, **kwargs)
        await engine.start()
        running.append(engine)
        return engine

    yield start
    for engine in running:
        await engine.stop()


@pytest.fixture
def served() -> Callable[..., Backend]:
    """A backend of the table for a fake engine: `v1` with all the weight unless told otherwise."""

    def make(engine: FakeEngine, name: str = "v1", weight: int = 100, **more: Any) -> Backend:
        return backend(name, engine.url, weight, **more)

    return make
